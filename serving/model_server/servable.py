"""A loaded version of a model and its signatures.

A version is a TensorFlow session of its own, as in TensorFlow Serving: its variables and tables go when it is closed,
and neither loading nor answering holds Python's lock for long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (its ops are in a stock TensorFlow Serving)
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.saved_model import loader_impl

from serving.model_server.errors import RequestError
from serving.model_server.priority import giving_way

DEFAULT_SIGNATURE = "serving_default"
_AT_ONCE, _PAUSE_SECONDS = 2, 0.01
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


def load(name: str, version: int, path: str, requests: bool = True) -> Servable:
    """Loads one SavedModel.

    Args:
        name: Of the model.
        version: Its version.
        path: Its folder.
        requests: Whether others are answered meanwhile, to which loading gives way.

    Raises:
        Exception: What TensorFlow raises for a folder that holds none, or a broken one.
    """
    loader = loader_impl.SavedModelLoader(path)  # what `tf.compat.v1.saved_model.load` does, step by step
    definitions = _signature_defs(loader, path)
    session = tf.compat.v1.Session(graph=tf.Graph())
    try:
        functions = _taken_out(loader.get_meta_graph_def_from_tags(["serve"]).graph_def) if requests else []
        saver, _ = loader.load_graph(session.graph, ["serve"])
        with session.graph.as_default():
            for part in functions:
                tf.graph_util.import_graph_def(part)
                time.sleep(_PAUSE_SECONDS)  # in which requests have Python's lock to themselves
        giving_way(lambda: _initialise(session, loader, saver), requests)
        asked = {key: definition for key, definition in definitions.items() if key != _INITIALISER}
        signatures = {key: _signature(session, definition) for key, definition in asked.items()}
        if not signatures:
            raise ValueError(f"{path} has no signatures: export it with tf.saved_model.save(..., signatures=...)")
    except BaseException:
        session.close()
        raise
    return Servable(name, version, MappingProxyType(signatures), MappingProxyType(definitions), session)


def _initialise(session: tf.compat.v1.Session, loader: Any, saver: Any) -> None:
    with session.graph.as_default():
        loader.restore_variables(session, saver)
        loader.run_init_ops(session, ["serve"])


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


def _taken_out(graph: Any) -> list[graph_pb2.GraphDef]:
    """The functions of a graph that is to be imported, a few at a time.

    Requests wait while TensorFlow imports, for it keeps Python's lock: for the whole graph, of which it would work out
    all shapes through all functions, a tenth of a second or more.
    """
    functions = list(graph.library.function)
    parts = []
    for first in range(0, len(functions), _AT_ONCE):
        parts.append(graph_pb2.GraphDef(versions=graph.versions))
        parts[-1].library.function.extend(functions[first : first + _AT_ONCE])
    del graph.library.function[:]
    return parts


def _signature(session: tf.compat.v1.Session, definition: Any) -> Signature:
    inputs, outputs = _specs(definition.inputs), _specs(definition.outputs)
    feeds, fetches = (
        tuple(infos[name].name for name in sorted(infos)) for infos in (definition.inputs, definition.outputs)
    )
    both = {"input": definition.inputs, "output": definition.outputs}
    parts = {f"{kind} {name}": infos[name] for kind, infos in both.items() for name in sorted(infos)}
    sparse = [name for name, info in parts.items() if info.WhichOneof("encoding") != "name"]
    call = _unsendable(sparse[0]) if sparse else calling(session, feeds, fetches, inputs, outputs)
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
        ValueError: A tensor has another type than it is said to have.
    """
    for tensor, (name, spec) in zip((*feeds, *fetches), (*inputs.items(), *outputs.items()), strict=True):
        found = session.graph.get_tensor_by_name(tensor).dtype.base_dtype
        if found != spec.dtype:
            raise ValueError(f"the signature says that {name} is {spec.dtype.name}, and the graph {found.name}")
    preparing = threading.Lock()
    prepared: list[Callable[..., Any]] = []

    def call(**arrays: Array) -> dict[str, Array]:
        with preparing:
            if not prepared:
                prepared.append(_prepared(session, feeds, fetches))
        answers = prepared[0](*(np.asarray(arrays[name]) for name in inputs))
        # A result of rank 0 is a bare value.
        return {n: np.asarray(a, outputs[n].dtype.as_numpy_dtype) for n, a in zip(outputs, answers, strict=True)}

    return call


def _prepared(session: tf.compat.v1.Session, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., Any]:
    """What runs a part of a graph; where there is no way to run it, what says so."""
    try:
        # `make_callable`, the public form, takes twice as long, and adds lines of this server's code to a model's
        # errors.
        return session._make_callable_from_options(config_pb2.CallableOptions(feed=feeds, fetch=fetches))
    except tf.errors.OpError as error:
        return _refusing(grpc.StatusCode.FAILED_PRECONDITION, error.message)


def _specs(infos: Mapping[str, Any]) -> Mapping[str, tf.TensorSpec]:
    return MappingProxyType(
        {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
            for name, info in sorted(infos.items())
        }
    )


def _refusing(code: grpc.StatusCode, message: str) -> Callable[..., Any]:
    def call(*_: Array, **__: Array) -> Any:
        raise RequestError(code, message)

    return call


def _unsendable(name: str) -> Callable[..., Any]:
    return _refusing(grpc.StatusCode.UNIMPLEMENTED, f"{name} cannot be sent: it is ragged or sparse")
