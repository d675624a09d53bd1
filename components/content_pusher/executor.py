"""Copies artifacts into a version, whose last file says that it is whole and what is in it."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.world import files

MANIFEST = "manifest.json"
KEPT = 3  # whole versions: the newest, and those that somebody may still be copying


class Executor(base_executor.BaseExecutor):
    """Writes `VERSION/NAME/...` for each input, then `VERSION/manifest.json`; removes what nobody needs any more."""

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
            exec_properties: `push_destination` and `settings_json`.

        Raises:
            FileNotFoundError: Files of an input are gone.
        """
        destination, settings = exec_properties["push_destination"], json.loads(exec_properties["settings_json"])
        last = max(map(int, files.versions(destination)), default=0)
        version = f"{destination}/{max(int(time.time()), last + 1)}"
        manifest = {}
        for name, artifacts in input_dict.items():
            if artifacts:
                number = copy(artifact_utils.get_single_uri(artifacts), f"{version}/{name}")
                manifest[name] = {"files": number, "settings": settings[name]}
        with files.writing(f"{version}/{MANIFEST}") as file:
            file.write(json.dumps(manifest, indent=1).encode())
        _clean(destination)
        logging.info("pushed %s", version)


def copy(source: str, to: str) -> int:
    """Copies a folder, and gives the number of files in it.

    Raises:
        FileNotFoundError: There are none, or some went while they were copied, which the copying itself keeps quiet.
    """
    expected = _count(source)
    io_utils.copy_dir(source, to)
    if not expected or _count(to) != expected:
        raise FileNotFoundError(f"{source}: expected {expected or 'some'} files, got {_count(to)}: they were removed")
    return expected


def _count(folder: str) -> int:
    return sum(len(names) for _, _, names in fileio.walk(folder)) if fileio.isdir(folder) else 0


def whole_versions(destination: str) -> list[str]:
    """The versions below a push destination whose push came to its end, oldest first."""
    return [version for version in files.versions(destination) if files.is_file(f"{destination}/{version}/{MANIFEST}")]


def _clean(destination: str) -> None:
    """Removes old versions, and what earlier pushes left that came to no end."""
    whole = whole_versions(destination)
    kept = whole[-KEPT:]
    for version in files.versions(destination):
        if version not in kept and int(version) < int(kept[-1]):
            if version in whole:  # first of all, so that nobody starts to copy it
                fileio.remove(f"{destination}/{version}/{MANIFEST}")
            files.remove_folder(f"{destination}/{version}")
