"""Tries a model on a server and blesses it, or not."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import path_utils

from components.feed_assembler import golden
from components.serving_check import trial
from components.serving_check.bounds import CHECK_FILE, Bound
from components.serving_check.settings import ServingCheckSettings
from components.world import files

LOG_FILE = "server.log"
_MARKS = {True: "INFRA_BLESSED", False: "INFRA_NOT_BLESSED"}  # as InfraValidator leaves them


class Executor(base_executor.BaseExecutor):
    """Writes `check.json` and the server's log; `blessed` says whether every bound was kept."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Serve the model and measure it; a model that was never assembled is not blessed."""
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        settings = ServingCheckSettings.model_validate_json(exec_properties["settings_json"])
        files.make_folder(blessing.uri)
        found = trial.bounds(settings, {})
        if files.is_file(f"{model.uri}/{golden.FILE}"):
            candidate, asked = path_utils.serving_model_path(model.uri), golden.read(model.uri)
            with tempfile.NamedTemporaryFile("rb") as log:
                try:
                    found = trial.try_out(candidate, asked, settings, log.name)
                finally:
                    _write(log.read(), f"{blessing.uri}/{LOG_FILE}")
            other = float(model.get_int_custom_property("other_content"))
            found.append(Bound("rankers that learned from another classifier's vectors", 0.0, other))
        for bound in found:
            logging.info("%s: at most %g, got %s", bound.metric, bound.at_most, bound.got)
        passed = all(bound.passed for bound in found)
        _write(json.dumps([asdict(bound) for bound in found]).encode(), f"{blessing.uri}/{CHECK_FILE}")
        _write(b"", f"{blessing.uri}/{_MARKS[passed]}")
        blessing.set_int_custom_property("blessed", int(passed))


def _write(content: bytes, path: str) -> None:
    with files.writing(path) as file:
        file.write(content)
