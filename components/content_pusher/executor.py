"""Copies artifacts into a version, whose last file says that it is whole."""

from __future__ import annotations

import logging
import time
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.world import files

WHOLE = "_SUCCESS"
KEPT = 3  # versions: the newest, and those that somebody may still be copying


class Executor(base_executor.BaseExecutor):
    """Writes `VERSION/NAME/...` for each input, then `VERSION/_SUCCESS`, and removes all but the last versions."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Copy what there is.

        Args:
            input_dict: Any of `content`, `topics` and `frames`.
            output_dict: Nothing.
            exec_properties: `push_destination`.
        """
        destination = exec_properties["push_destination"]
        known = versions(destination)
        version = str(max(int(time.time()), int(known[-1]) + 1 if known else 0))
        for name, artifacts in input_dict.items():
            if artifacts:
                io_utils.copy_dir(artifact_utils.get_single_uri(artifacts), f"{destination}/{version}/{name}")
        with files.writing(f"{destination}/{version}/{WHOLE}") as file:
            file.write(b"")
        for old in versions(destination)[:-KEPT]:
            files.remove_folder(f"{destination}/{old}")
        logging.info("pushed version %s to %s", version, destination)


def versions(destination: str) -> list[str]:
    """The versions below a push destination, oldest first, whole or not."""
    names = files.names(destination) if files.is_folder(destination) else []
    return sorted((name for name in names if name.isascii() and name.isdigit()), key=int)


def newest(destination: str) -> str:
    """The newest version that is whole; "" if there is none."""
    whole = (version for version in versions(destination) if files.is_file(f"{destination}/{version}/{WHOLE}"))
    return max(whole, key=int, default="")
