"""A loaded version of a model and its signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import tensorflow as tf
import tensorflow_text  # noqa: F401 (its ops are in a stock TensorFlow Serving)
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from serving.model_server.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Signature:
    """One function of a model.

    Attributes:
        call: The concrete function; takes tensors by input name, returns them by output name.
        inputs: Dtype and shape by input name.
        outputs: Output names, sorted.
    """

    call: Callable[..., dict[str, Any]]
    inputs: Mapping[str, tf.TensorSpec]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Servable:
    """A loaded version of a model.

    Attributes:
        name: Of the model.
        version: Its version.
        signatures: By name.
        signature_defs: The SignatureDef messages by name, as GetModelMetadata answers them.
        model: What `tf.saved_model.load` returned; its variables live as long as this is held.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, Any]
    model: Any

    def signature(self, name: str) -> Signature:
        """The signature of that name, or of the default name for the empty string.

        Raises:
            RequestError: There is none.
        """
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            message = f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.'
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)
        return signature


def load(name: str, version: int, path: str) -> Servable:
    """Loads one SavedModel.

    Raises:
        Exception: What `tf.saved_model.load` raises for a folder that holds none, or a broken one.
    """
    definitions = _signature_defs(path)
    model = tf.saved_model.load(path, tags=["serve"])
    signatures = {key: _signature(function, definitions[key]) for key, function in model.signatures.items()}
    if not signatures:
        raise ValueError(f"{path} has no signatures: export it with tf.saved_model.save(..., signatures=...)")
    return Servable(name, version, MappingProxyType(signatures), MappingProxyType(definitions), model)


def unload(servable: Servable) -> None:
    """Frees the tables of a model that nobody will call again: TensorFlow keeps them by name, not by reference."""
    for node in tf.train.TrackableView(servable.model).descendants():
        if (handle := getattr(node, "resource_handle", None)) is not None:
            tf.raw_ops.DestroyResourceOp(resource=handle)


def _signature_defs(path: str) -> dict[str, Any]:
    with tf.io.gfile.GFile(tf.io.gfile.join(path, "saved_model.pb"), "rb") as file:
        graphs = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    graph = next((graph for graph in graphs if "serve" in graph.meta_info_def.tags), None)
    if graph is None:
        raise ValueError(f"{path} holds no graph tagged 'serve': export it with tf.saved_model.save")
    for asset in graph.asset_file_def:
        if asset.filename.startswith("/") or ".." in asset.filename.split("/"):
            raise ValueError(f"{path} names an asset outside its own folder: {asset.filename}")
    # Copies, for a part of a message keeps the whole graph in memory.
    copies = {key: meta_graph_pb2.SignatureDef() for key in graph.signature_def}
    for key, copy in copies.items():
        copy.CopyFrom(graph.signature_def[key])
    return copies


def _signature(function: Callable[..., dict[str, Any]], definition: Any) -> Signature:
    inputs = {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
        for name, info in sorted(definition.inputs.items())
    }
    return Signature(function, MappingProxyType(inputs), tuple(sorted(definition.outputs)))
