"""Finds the served model in the push destination and hands on a copy of it."""

from __future__ import annotations

import logging
import os
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.world import files
from transform.clip_settings import SHAPE_FILE

SERVED_VERSION = "served_version"  # property of the baseline; "" where it is empty
_FILES = ("saved_model.pb", os.path.join("variables", "variables.index"))


class Executor(base_executor.BaseExecutor):
    """Copies the served model into `baseline`, which stays empty where nothing is served yet."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Copy the model to where TFX's Evaluator looks for one."""
        candidate = artifact_utils.get_single_instance(input_dict["candidate"])
        baseline = artifact_utils.get_single_instance(output_dict["baseline"])
        destination = exec_properties["push_destination"]
        version = served_version(destination)
        trained = path_utils.serving_model_path(candidate.uri)
        if version and (why := _cannot_be_asked(os.path.join(destination, version), trained, exec_properties)):
            logging.warning("version %s of %s reads %s: no baseline", version, destination, why)
            version = ""
        if version:
            io_utils.copy_dir(os.path.join(destination, version), path_utils.serving_model_dir(baseline.uri))
        baseline.set_string_custom_property(SERVED_VERSION, version)
        logging.info("baseline is %s", f"version {version} of {destination}" if version else "none")


def served_version(push_destination: str) -> str:
    """The largest version number under a push destination that holds a SavedModel; "" if there is none.

    A version is a folder whose name is ASCII digits and that holds the files `saved_model.pb` and
    `variables/variables.index`. Pusher copies straight into that folder, so a push cut off before either file was
    written does not count. Only that the two files exist is checked, not what is in them or that the rest is there.
    """
    newest_first = reversed(files.versions(push_destination))
    return next((n for n in newest_first if is_model(os.path.join(push_destination, n))), "")


def clip_shape(model: str) -> str:
    """The `ClipSettings.shape` that a SavedModel reads; "" if it does not say."""
    path = os.path.join(model, SHAPE_FILE)
    if not fileio.exists(path):
        return ""
    with fileio.open(path) as file:
        return str(file.read())


def _cannot_be_asked(served: str, candidate: str, properties: dict[str, Any]) -> str:
    """What the served model reads otherwise than today's examples have it; "" if it can be asked about them."""
    shape = properties.get("clip_shape")
    if shape and clip_shape(served) != shape:
        return "clips of another shape"
    before, now = _reads(served), _reads(candidate)
    return ", ".join(sorted(f"{n} in another form" for n in before.keys() & now.keys() if before[n] != now[n]))


def _reads(model: str) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and form of each feature that a SavedModel's signature `raw` takes; nothing without one."""
    saved = saved_model_pb2.SavedModel()
    with fileio.open(os.path.join(model, "saved_model.pb"), "rb") as file:
        saved.ParseFromString(file.read())
    inputs = saved.meta_graphs[0].signature_def["raw"].inputs if saved.meta_graphs else {}
    return {n: (info.dtype, tuple(d.size for d in info.tensor_shape.dim)) for n, info in inputs.items()}


def is_model(folder: str) -> bool:
    """Whether a folder holds the files of a SavedModel."""
    return all(fileio.exists(os.path.join(folder, file)) for file in _FILES)
