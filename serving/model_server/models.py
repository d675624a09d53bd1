"""The models of a folder: which versions there are, which are loaded, and which answers a request.

Layout as TensorFlow Serving has it: `<models>/<name>/<version>/saved_model.pb`, version a whole number. The newest
version that loads is served. One that does not is reported in the status and never takes traffic; the version before it
keeps serving, and it is tried again once its files change (it may still be on its way here).

Requests read an immutable snapshot that the poller replaces, so they take no lock; a servable that was replaced lives
until its last request lets go of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_status_pb2

from serving.model_server.errors import RequestError, invalid

DEFAULT_SIGNATURE = "serving_default"
State = get_model_status_pb2.ModelVersionStatus.State

_logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class VersionStatus:
    """Where one version stands; `error` says why it failed, and is empty otherwise."""

    version: int
    state: int
    error: str = ""


class Models:
    """All models of a folder, kept up to date by `refresh`.

    Attributes:
        latest: How many of the newest versions of each model are served.
    """

    def __init__(self, models_dir: str, latest: int = 1) -> None:
        self.latest = latest
        self._models_dir = models_dir
        self._served: Mapping[str, Mapping[int, Servable]] = {}
        self._states: Mapping[str, Mapping[int, VersionStatus]] = {}
        self._found: frozenset[str] = frozenset()
        self._broken: dict[str, tuple[Any, ...]] = {}  # path of a version that failed -> the files it had then
        self._refreshing = threading.Lock()

    def find(self, spec: Any) -> Servable:
        """The servable a ModelSpec asks for: its version, or the newest.

        Raises:
            RequestError: No such model, version or label.
        """
        if not spec.name:
            raise invalid("Missing ModelSpec" if not spec.ByteSize() else "ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        versions = self._served.get(spec.name, {})
        if choice is None and versions:
            return versions[max(versions)]
        if choice is not None and spec.version.value in versions:
            return versions[spec.version.value]
        wanted = f"Latest({spec.name})" if choice is None else f"Specific({spec.name}, {spec.version.value})"
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")

    def status(self, spec: Any) -> list[VersionStatus]:
        """Where the versions of a model stand, or the one version the ModelSpec names, newest first.

        Raises:
            RequestError: No such model or version.
        """
        if not spec.name:
            raise invalid("Missing ModelSpec" if not spec.ByteSize() else "ModelSpec has no name specified.")
        states = self._states.get(spec.name, {})
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        if choice is not None and spec.version.value not in states:
            message = f"Could not find version {spec.version.value} of model {spec.name}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, message)
        if not states:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        chosen = sorted(states, reverse=True) if choice is None else [spec.version.value]
        return [states[version] for version in chosen]

    @property
    def ready(self) -> bool:
        """Whether there are models, and every one of them has a version that answers."""
        return bool(self._found) and all(self._served.get(name) for name in self._found)

    def refresh(self) -> None:
        """Looks for new and vanished versions, loads and unloads. Storage that cannot be read changes nothing."""
        with self._refreshing:
            try:
                found = {
                    name: _versions(tf.io.gfile.join(self._models_dir, name)) for name in _folders(self._models_dir)
                }
            except tf.errors.OpError as error:
                _logger.warning("cannot read %s, serving what is loaded: %s", self._models_dir, error.message)
                return
            self._found = frozenset(name for name, versions in found.items() if versions)
            for name in {*found, *self._served}:
                self._refresh_model(name, found.get(name, []))

    def _refresh_model(self, name: str, found: list[int]) -> None:
        before = self._served.get(name, {})
        after: dict[int, Servable] = {}
        for version in sorted(found, reverse=True):
            servable = before.get(version) or self._load(name, version)
            if servable is not None:
                after[version] = servable
            if len(after) == self.latest:
                break
        if after.keys() == before.keys():
            return
        # New versions take traffic before old ones go: there is no moment with neither.
        self._served = {**self._served, name: MappingProxyType(after)}
        for version in before.keys() - after.keys():
            _logger.info("unloaded %s version %d", name, version)
            self._note(name, VersionStatus(version, State.END))

    def _load(self, name: str, version: int) -> Servable | None:
        path = tf.io.gfile.join(self._models_dir, name, str(version))
        files = _files(path)
        if self._broken.get(path) == files:
            return None
        self._note(name, VersionStatus(version, State.LOADING))
        try:
            servable = load(name, version, path)
        except Exception as error:  # whatever a broken export raises, it must not stop the server
            _logger.error("cannot load %s version %d: %s", name, version, error)
            self._broken[path] = files
            self._note(name, VersionStatus(version, State.END, error=str(error) or type(error).__name__))
            return None
        self._broken.pop(path, None)
        _logger.info("loaded %s version %d", name, version)
        self._note(name, VersionStatus(version, State.AVAILABLE))
        return servable

    def _note(self, name: str, status: VersionStatus) -> None:
        states = {**self._states.get(name, {}), status.version: status}
        self._states = {**self._states, name: MappingProxyType(states)}


def load(name: str, version: int, path: str) -> Servable:
    """Loads one SavedModel.

    Raises:
        Exception: What `tf.saved_model.load` raises for a folder that holds none, or a broken one.
    """
    model = tf.saved_model.load(path, tags=["serve"])
    with tf.io.gfile.GFile(tf.io.gfile.join(path, "saved_model.pb"), "rb") as file:
        graphs = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    definitions = dict(next(graph for graph in graphs if "serve" in graph.meta_info_def.tags).signature_def)
    signatures = {key: _signature(function, definitions[key]) for key, function in model.signatures.items()}
    if not signatures:
        raise ValueError(f"{path} has no signatures: export it with tf.saved_model.save(..., signatures=...)")
    return Servable(name, version, MappingProxyType(signatures), MappingProxyType(definitions), model)


def _signature(function: Callable[..., dict[str, Any]], definition: Any) -> Signature:
    inputs = {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
        for name, info in sorted(definition.inputs.items())
    }
    return Signature(function, MappingProxyType(inputs), tuple(sorted(definition.outputs)))


def _folders(path: str) -> list[str]:
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
    return [name for name in names if not name.startswith(".") and tf.io.gfile.isdir(tf.io.gfile.join(path, name))]


def _versions(path: str) -> list[int]:
    """Folders whose name is a whole number as Serving writes it, and that hold a SavedModel."""
    numbers = [name for name in _folders(path) if name.isdecimal() and name == str(int(name))]
    return [int(name) for name in numbers if tf.io.gfile.exists(tf.io.gfile.join(path, name, "saved_model.pb"))]


def _files(path: str) -> tuple[Any, ...]:
    """What a version's folder holds: path, size and time of every file."""
    files = [tf.io.gfile.join(folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names]
    stats = [(file, tf.io.gfile.stat(file)) for file in sorted(files)]
    return tuple((file, stat.length, stat.mtime_nsec) for file, stat in stats)
