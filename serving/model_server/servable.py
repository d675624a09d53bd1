"""A loaded version of a model and its signatures.

A version is a TensorFlow session of its own, as in TensorFlow Serving: its variables and tables go when it is closed,
and neither loading nor answering holds Python's lock for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (its ops are in a stock TensorFlow Serving)
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.saved_model import loader_impl

from serving.model_server.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"
_INITIALISER = "__saved_model_init_op"  # a signature that only loading runs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Signature:
    """One function of a model.

    Attributes:
        call: Takes arrays by input name, strings as objects, and returns them by output name.
        inputs: Dtype and shape by input name, sorted.
        outputs: Dtype and shape by output name, sorted.
        tensors: Names in the model's graph: of the inputs, then of the outputs.
    """

    call: Callable[..., dict[str, Array]]
    inputs: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    tensors: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Servable:
    """A loaded version of a model.

    Attributes:
        name: Of the model.
        version: Its version.
        signatures: By name.
        signature_defs: The SignatureDef messages by name, as GetModelMetadata answers them.
        session: Where its variables live until it is closed.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, Any]
    session: tf.compat.v1.Session

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
        Exception: What TensorFlow raises for a folder that holds none, or a broken one.
    """
    loader = loader_impl.SavedModelLoader(path)  # `tf.compat.v1.saved_model.load`, with a look between its two steps
    definitions = _signature_defs(loader, path)
    session = tf.compat.v1.Session(graph=tf.Graph())
    try:
        with session.graph.as_default():
            loader.load(session, ["serve"])
        asked = {key: definition for key, definition in definitions.items() if key != _INITIALISER}
        signatures = {key: _signature(session, definition) for key, definition in asked.items()}
        if not signatures:
            raise ValueError(f"{path} has no signatures: export it with tf.saved_model.save(..., signatures=...)")
    except BaseException:
        session.close()
        raise
    return Servable(name, version, MappingProxyType(signatures), MappingProxyType(definitions), session)


def _signature_defs(loader: Any, path: str) -> dict[str, Any]:
    try:
        graph = loader.get_meta_graph_def_from_tags(["serve"])
    except RuntimeError as error:
        raise ValueError(f"{path} holds no graph tagged 'serve': export it with tf.saved_model.save") from error
    for asset in graph.asset_file_def:
        if asset.filename.startswith("/") or ".." in asset.filename.split("/"):
            raise ValueError(f"{path} names an asset outside its own folder: {asset.filename}")
    # Copies, for a part of a message keeps the whole graph in memory.
    copies = {key: meta_graph_pb2.SignatureDef() for key in graph.signature_def}
    for key, copy in copies.items():
        copy.CopyFrom(graph.signature_def[key])
    return copies


def _signature(session: tf.compat.v1.Session, definition: Any) -> Signature:
    inputs, outputs = _specs(definition.inputs), _specs(definition.outputs)
    feeds, fetches = (
        tuple(infos[name].name for name in sorted(infos)) for infos in (definition.inputs, definition.outputs)
    )
    sparse = [name for name in outputs if definition.outputs[name].WhichOneof("encoding") != "name"]
    call = _refusing(sparse[0]) if sparse else calling(session, feeds, fetches, inputs, outputs)
    return Signature(call, inputs, outputs, (feeds, fetches))


def calling(
    session: tf.compat.v1.Session,
    feeds: Sequence[str],
    fetches: Sequence[str],
    inputs: Mapping[str, tf.TensorSpec],
    outputs: Mapping[str, tf.TensorSpec],
) -> Callable[..., dict[str, Array]]:
    """What runs a part of a session's graph: from arrays by input name to arrays by output name.

    TensorFlow prepares that part at the first call, which may take a second: it would slow loading down for signatures
    that nobody asks. Warm-up requests are such calls.

    Args:
        session: The session.
        feeds: Names of tensors in the order of `inputs`.
        fetches: Names of tensors in the order of `outputs`.
        inputs: By name.
        outputs: By name.

    Raises:
        KeyError: The graph has no such tensor.
    """
    for tensor in (*feeds, *fetches):
        session.graph.get_tensor_by_name(tensor)
    preparing = threading.Lock()
    prepared: list[Callable[..., Any]] = []

    def call(**arrays: Array) -> dict[str, Array]:
        with preparing:
            if not prepared:
                # `make_callable`, the public form, takes twice as long, and adds lines of this server's code to a
                # model's errors.
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                prepared.append(session._make_callable_from_options(options))
        answers = prepared[0](*(np.asarray(arrays[name]) for name in inputs))
        # A result of rank 0 is a bare value.
        return {n: np.asarray(a, outputs[n].dtype.as_numpy_dtype) for n, a in zip(outputs, answers, strict=True)}

    return call


def _specs(infos: Mapping[str, Any]) -> Mapping[str, tf.TensorSpec]:
    return MappingProxyType(
        {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
            for name, info in sorted(infos.items())
        }
    )


def _refusing(name: str) -> Callable[..., dict[str, Array]]:
    def call(**_: Array) -> dict[str, Array]:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"output {name} cannot be sent: it is ragged or sparse")

    return call
