"""Copies a version of what was learned of videos into artifacts."""

from __future__ import annotations

import json
import logging
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from components.content_pusher.executor import MANIFEST, copy, whole_versions
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
        """Copy the newest whole version, and a newer one where that is removed meanwhile.

        Args:
            input_dict: Nothing.
            output_dict: `content`, `topics` and `frames`.
            exec_properties: `push_destination` and `settings_json`.

        Raises:
            ContractError: Nothing was pushed there, without a part that is wanted, or by other settings.
            FileNotFoundError: Files of the version are gone.
        """
        destination, wanted = exec_properties["push_destination"], json.loads(exec_properties["settings_json"])
        to = {name: artifact_utils.get_single_uri(output_dict[name]) for name in wanted}
        version, expected = _newest(destination, wanted)
        while True:
            try:
                for name, uri in to.items():
                    _take(f"{destination}/{version}/{name}", uri, expected[name])
                break
            except (FileNotFoundError, tf.errors.NotFoundError):
                gone, (version, expected) = version, _newest(destination, wanted)
                if version == gone:
                    raise
        logging.info("took version %s of %s", version, destination)


def _newest(destination: str, wanted: dict[str, Any]) -> tuple[str, dict[str, int]]:
    """The newest version, which has what is wanted, and how many files of each."""
    version = next(reversed(whole_versions(destination)), "")
    pushed = _manifest(f"{destination}/{version}") if version else {}
    remedy = "run the content stream of the same configuration first"
    for name, settings in wanted.items():
        if name not in pushed:
            got = f"version {version} without it" if version else "no version"
            raise ContractError(f"{destination}: expected {name}, got {got}: {remedy}")
        if pushed[name]["settings"] != settings:
            raise ContractError(
                f"{destination}/{version}: expected {name} by the settings {json.dumps(settings)}, got "
                f"{json.dumps(pushed[name]['settings'])}: {remedy}"
            )
    return version, {name: pushed[name]["files"] for name in wanted}


def _take(source: str, to: str, expected: int) -> None:
    """Copy a part, all of it."""
    got = copy(source, to)
    if got != expected:
        raise FileNotFoundError(f"{source}: expected {expected} files, got {got}: some were removed")


def _manifest(version: str) -> dict[str, Any]:
    with files.reading(f"{version}/{MANIFEST}") as file:
        return dict(json.loads(file.read()))
