"""Copies a version of what was learned of videos into artifacts."""

from __future__ import annotations

import json
import logging
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.content_pusher.executor import newest
from components.world import files
from transform.contract import ContractError


class Executor(base_executor.BaseExecutor):
    """Fills the outputs that are wanted."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Copy the newest whole version.

        Args:
            input_dict: Nothing.
            output_dict: `content`, `topics` and `frames`.
            exec_properties: `push_destination` and `parts_json`.

        Raises:
            ContractError: Nothing was pushed there, or without a part that is wanted.
        """
        destination, parts = exec_properties["push_destination"], json.loads(exec_properties["parts_json"])
        version = newest(destination)
        pushed = files.names(f"{destination}/{version}") if version else []
        if missing := [name for name in parts if name not in pushed]:
            raise ContractError(
                f"{destination}: expected a version with {', '.join(parts)}, got "
                f"{f'{version} without {missing[0]}' if version else 'none'}: run the content stream of the same "
                "configuration first"
            )
        for name in parts:
            io_utils.copy_dir(f"{destination}/{version}/{name}", artifact_utils.get_single_uri(output_dict[name]))
        logging.info("took version %s of %s", version, destination)
