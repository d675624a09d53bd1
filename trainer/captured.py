"""SavedModels of signatures and what they capture, and of nothing else.

TensorFlow saves every function of every object that a saved object holds: Keras's of each layer, TensorFlow
Transform's, those of models that were loaded. None of them answers a request, but all are loaded with those that do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf


def captured(holders: Iterable[Any], functions: Iterable[tf.types.experimental.ConcreteFunction]) -> list[Any]:
    """The variables, tables and files that functions use.

    Args:
        holders: Have them, at any depth, among other things.
        functions: May use others too, which saving them will complain about.
    """
    handles = {id(tensor) for function in functions for tensor in function.captured_inputs}
    parts = {id(part): part for holder in holders for part in tf.train.TrackableView(holder).descendants()}
    return [part for part in parts.values() if id(_handle(part)) in handles]


def save(holder: tf.Module, signatures: Mapping[str, tf.types.experimental.ConcreteFunction], directory: str) -> None:
    """Writes a SavedModel of signatures.

    Args:
        holder: Holds what they capture.
        signatures: By name.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.
    """
    saved = tf.Module()
    saved.captured = captured([holder], signatures.values())
    tf.saved_model.save(saved, directory, signatures=signatures)


def _handle(part: Any) -> Any:
    """The tensor by which functions capture a part of a model: a variable, a table or a file."""
    names = ("handle",) if isinstance(part, tf.Variable) else ("resource_handle", "asset_path")
    return next((getattr(part, name) for name in names if hasattr(part, name)), None)
