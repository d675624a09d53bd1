"""The models of a server: which versions there are, which are loaded, and which answers a request.

Layout as TensorFlow Serving has it: `<base_path>/<version>/saved_model.pb`, version a whole number. What is new is
loaded and warmed up before it takes traffic, and what it replaces is unloaded after its last request. A version that
does not load is reported in the status and never takes traffic; the last good one keeps serving, and the broken one is
tried again once its files change (it may still be on its way here).

Requests read an immutable snapshot that the poller replaces; a lease, which is one counter, keeps a version loaded.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2

from serving.model_server import memory
from serving.model_server.batching import Batcher
from serving.model_server.configuration import BatchingParameters, Latest, ModelSource, Specific, sources_of
from serving.model_server.errors import RequestError, invalid
from serving.model_server.priority import giving_way
from serving.model_server.servable import Servable, load
from serving.model_server.warmup import warm_up
from transform.contract import ContractError

State = get_model_status_pb2.ModelVersionStatus.State

_DRAIN_SECONDS = 5.0
_MOST = 2**63 - 1  # version numbers are int64
_UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]
_PASSING: frozenset[int] = frozenset(  # neither of the model's making, nor to be told by its files
    code.value[0]
    for code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
    )
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionStatus:
    """Where one version stands; `error` says why it failed with which canonical code, and is empty otherwise."""

    version: int
    state: int
    error: str = ""
    code: int = 0


class _Loaded:
    """A servable and how many requests hold it."""

    def __init__(self, servable: Servable, path: str) -> None:
        self.servable = servable
        self.path = path
        self._leases = 0
        self._retired = False
        self._changed = threading.Condition()

    def take(self) -> bool:
        """Whether the servable was still in service; if so it stays until `give_back`."""
        with self._changed:
            self._leases += not self._retired
            return not self._retired

    def give_back(self) -> None:
        with self._changed:
            self._leases -= 1
            self._changed.notify_all()

    def retire(self) -> bool:
        """Allows no more leases; whether the last one has ended."""
        with self._changed:
            self._retired = True
            return not self._leases

    def free(self) -> None:
        """Gives the memory back after the last lease."""
        with self._changed:
            self._changed.wait_for(lambda: not self._leases)
        self.servable.session.close()
        del self.servable
        gc.collect()  # a session and its graph refer to each other; counting references never frees them
        memory.give_back()


@dataclass(frozen=True)
class _Served:
    """What of one model takes traffic; labels point at loaded versions only."""

    versions: Mapping[int, _Loaded]
    labels: Mapping[str, int]


_NOTHING = _Served(MappingProxyType({}), MappingProxyType({}))


class Models:
    """All models of a server, kept up to date by `refresh`.

    Args:
        models: What to serve; or a folder, every sub-folder of which is a model.
        latest: How many of the newest versions of each model of a folder are served.
        batching: How to join concurrent requests; None leaves each alone.
    """

    def __init__(
        self,
        models: str | Iterable[ModelSource],
        latest: int = 1,
        batching: BatchingParameters | None = None,
    ) -> None:
        self._folder = models if isinstance(models, str) else None
        self._latest = Latest(latest)
        self._sources: tuple[ModelSource, ...] = () if isinstance(models, str) else tuple(models)
        self._batcher = Batcher(batching) if batching else None
        self._served: Mapping[str, _Served] = {}
        self._states: Mapping[str, Mapping[int, VersionStatus]] = {}
        self._broken: dict[str, tuple[Any, ...]] = {}  # path of a version that failed -> the files it had then
        self._refreshing, self._reloading = threading.Lock(), threading.Lock()
        self._noting = threading.Lock()
        self._draining: list[threading.Thread] = []

    @contextmanager
    def serving(self, spec: Any) -> Iterator[Servable]:
        """The servable a ModelSpec asks for, which stays loaded within the `with` block.

        Raises:
            RequestError: No such model, version or label.
        """
        while not (loaded := self._find(spec)).take():
            pass  # it was replaced just now, and so was the snapshot
        try:
            yield loaded.servable
        finally:
            loaded.give_back()

    def find(self, spec: Any) -> Servable:
        """The servable a ModelSpec asks for: its version, that of its label, or the newest; without a lease.

        Raises:
            RequestError: No such model, version or label.
        """
        with self.serving(spec) as servable:
            return servable

    def _find(self, spec: Any) -> _Loaded:
        served = self._served_of(spec)
        version = _version(spec, served)
        chosen = max(served.versions, default=None) if version is None else version
        if chosen is not None and chosen in served.versions:
            return served.versions[chosen]
        wanted = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")

    def _served_of(self, spec: Any) -> _Served:
        if not spec.name:
            raise invalid("Missing ModelSpec" if not spec.ByteSize() else "ModelSpec has no name specified.")
        return self._served.get(spec.name, _NOTHING)

    def status(self, spec: Any) -> list[VersionStatus]:
        """Where the versions of a model stand, or the one version the ModelSpec names, newest first.

        Raises:
            RequestError: No such model, version or label.
        """
        version = _version(spec, self._served_of(spec))
        states = self._states.get(spec.name, {})
        if version is not None and version not in states:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}")
        if not states:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return [states[v] for v in (sorted(states, reverse=True) if version is None else [version])]

    @property
    def waiting(self) -> list[str]:
        """The models that have no version that answers."""
        return [source.name for source in self._sources if not self._served.get(source.name, _NOTHING).versions]

    @property
    def ready(self) -> bool:
        """Whether there are models, and every one of them has a version that answers."""
        return bool(self._sources) and not self.waiting

    def refresh(self) -> None:
        """Looks for new and vanished versions, loads and unloads. Storage that cannot be read changes nothing."""
        with self._refreshing:
            self._refresh()

    def reload(self, config: Any) -> None:
        """Serves the models of a tensorflow.serving.ModelServerConfig instead, and returns once they are loaded.

        Raises:
            RequestError: The configuration is refused, and nothing changed (UNAVAILABLE: another one is being taken
                over); or (UNKNOWN) a new model has no version that loads.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        try:
            sources = sources_of(config)
        except ContractError as error:
            raise invalid(str(error)) from error
        if not self._reloading.acquire(blocking=False):  # who waits takes a thread from those who ask for answers
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "Another configuration is being loaded: try again")
        try:
            with self._refreshing:
                for source in sources:
                    self._check(source)
                self._folder, self._sources = None, sources
                self._refresh()
                failed = self.waiting
        finally:
            self._reloading.release()
        if failed:
            reasons = ", ".join(f"{{{name}{self._why(name)}}}" for name in failed)
            message = f"{len(failed)} model(s) did not become available: {{{reasons}}}"
            raise RequestError(grpc.StatusCode.UNKNOWN, message)

    def close(self) -> None:
        """Unloads everything, each version after its last request; after 5 seconds what is not done is left."""
        end = time.monotonic() + _DRAIN_SECONDS
        if not self._refreshing.acquire(timeout=_DRAIN_SECONDS):
            _logger.warning("a version is still being loaded: nothing is unloaded")
            return
        try:
            self._folder, self._sources = None, ()
            self._refresh()
        finally:
            self._refreshing.release()
        for thread in self._draining:
            thread.join(max(end - time.monotonic(), 0))

    def _check(self, source: ModelSource) -> None:
        if not tf.io.gfile.isdir(source.base_path):
            raise invalid(f"Could not find base path {source.base_path} for servable {source.name}")
        loaded = self._served.get(source.name, _NOTHING).versions
        for version in source.labels.values():
            if version not in loaded:
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {source.name}, "
                    "which is not currently available for inference",
                )

    def _why(self, name: str) -> str:
        errors = [status.error for status in self._states.get(name, {}).values() if status.error]
        return f" due to error: {errors[-1]}" if errors else ": no versions found under its base path"

    def _refresh(self) -> None:
        try:
            self._sources = self._sources if self._folder is None else _listed(self._folder, self._latest)
        except tf.errors.OpError as error:
            _logger.warning("cannot read %s, serving what is loaded: %s", self._folder, error.message)
            return
        for source in self._sources:
            try:
                found = _versions(source.base_path)
            except tf.errors.OpError as error:
                _logger.warning("cannot read %s, serving what is loaded: %s", source.base_path, error.message)
                continue
            self._refresh_model(source, found)
        for name in self._served.keys() - {source.name for source in self._sources}:
            self._switch(ModelSource(name, ""), self._served[name].versions, {})

    def _refresh_model(self, source: ModelSource, found: Mapping[int, str]) -> None:
        before = self._served.get(source.name, _NOTHING).versions
        policy = source.policy
        wanted = [v for v in found if not isinstance(policy, Specific) or v in policy.versions]
        most = policy.count if isinstance(policy, Latest) else len(wanted)
        after: dict[int, _Loaded] = {}
        for version in sorted(wanted, reverse=True):
            if len(after) == most:
                break
            path, old = tf.io.gfile.join(source.base_path, found[version]), before.get(version)
            loaded = old if old and old.path == path else self._load(source.name, version, path)
            if loaded:
                after[version] = loaded
                self._publish(source, {**before, **after})
                if loaded is not old:
                    self._note(source.name, VersionStatus(version, State.AVAILABLE))
        self._switch(source, before, after if after or not wanted else before)

    def _switch(self, source: ModelSource, before: Mapping[int, _Loaded], after: Mapping[int, _Loaded]) -> None:
        """From now on only `after` takes traffic; the others are unloaded when their requests are done."""
        self._publish(source, after)
        self._draining = [thread for thread in self._draining if thread.is_alive()]
        for version, old in before.items():
            if after.get(version) is old:
                continue
            if version not in after:
                self._note(source.name, VersionStatus(version, State.UNLOADING))
            unload = threading.Thread(target=self._unload, args=(source.name, version, old), daemon=True)
            if old.retire():
                unload.run()
            else:
                self._draining.append(unload)
                unload.start()

    def _publish(self, source: ModelSource, versions: Mapping[int, _Loaded]) -> None:
        labels = {label: version for label, version in source.labels.items() if version in versions}
        known = self._served.get(source.name, _NOTHING)
        for label in source.labels.keys() - labels.keys() if versions.keys() != known.versions.keys() else ():
            _logger.warning("label %s of %s waits for version %d", label, source.name, source.labels[label])
        served = _Served(MappingProxyType(dict(versions)), MappingProxyType(labels))
        self._served = {**self._served, source.name: served}

    def _unload(self, name: str, version: int, loaded: _Loaded) -> None:
        loaded.free()
        self._note(name, VersionStatus(version, State.END), only_from=State.UNLOADING)

    def _load(self, name: str, version: int, path: str) -> _Loaded | None:
        files = _files(path)
        if self._broken.get(path) == files:
            return None
        self._note(name, VersionStatus(version, State.START))
        self._note(name, VersionStatus(version, State.LOADING))
        try:
            servable = self._load_warm(name, version, path)
            if _files(path) != files:
                raise RequestError(
                    grpc.StatusCode.UNAVAILABLE, f"{path} changed while it was loaded; it is tried again"
                )
        except Exception as error:  # whatever a broken export raises, it must not stop the server
            code = _code(error)
            _logger.error("cannot load %s version %d: %s", name, version, error)
            if code not in _PASSING:
                self._broken[path] = files
            self._note(name, VersionStatus(version, State.END, str(error) or type(error).__name__, code))
            return None
        self._broken.pop(path, None)
        return _Loaded(servable, path)

    def _load_warm(self, name: str, version: int, path: str) -> Servable:
        requests = any(served.versions for served in self._served.values())  # none before the first version
        servable = self._batched(load(name, version, path, requests))
        try:
            giving_way(lambda: warm_up(servable, path), requests)
        except BaseException:
            servable.session.close()
            raise
        return servable

    def _batched(self, servable: Servable) -> Servable:
        if self._batcher is None:
            return servable
        signatures = {
            name: self._batcher.wrap(signature, servable.session) for name, signature in servable.signatures.items()
        }
        return replace(servable, signatures=MappingProxyType(signatures))

    def _note(self, name: str, status: VersionStatus, only_from: int | None = None) -> None:
        with self._noting:
            states = self._states.get(name, {})
            if only_from is not None and states[status.version].state != only_from:
                return
            self._states = {**self._states, name: MappingProxyType({**states, status.version: status})}
        _logger.info("%s version %d: %s", name, status.version, State.Name(status.state))


def _version(spec: Any, served: _Served) -> int | None:
    """The version a ModelSpec asks for; None for the newest."""
    choice = spec.WhichOneof("version_choice")
    if choice != "version_label":
        return int(spec.version.value) if choice else None
    if spec.version_label not in served.labels:
        raise invalid(f"Unrecognized servable version label: {spec.version_label}")
    return served.labels[spec.version_label]


def _code(error: Exception) -> int:
    if isinstance(error, RequestError):
        return int(error.code.value[0])
    return int(error.error_code) if isinstance(error, tf.errors.OpError) else _UNKNOWN


def _listed(folder: str, policy: Latest) -> tuple[ModelSource, ...]:
    """A source for every sub-folder that has a version in it."""
    paths = {name: tf.io.gfile.join(folder, name) for name in _folders(folder)}
    return tuple(ModelSource(name, path, policy) for name, path in paths.items() if _versions(path))


def _folders(path: str) -> list[str]:
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
    return [name for name in names if not name.startswith(".") and tf.io.gfile.isdir(tf.io.gfile.join(path, name))]


def _versions(path: str) -> dict[int, str]:
    """By version, the folders whose name is a whole number of 64 bits, and that hold a SavedModel."""
    names = [name for name in _folders(path) if name.isascii() and name.isdecimal() and int(name) <= _MOST]
    names.sort(key=len, reverse=True)  # of `005` and `5` the latter counts
    found = {int(name): name for name in names}
    return {v: n for v, n in found.items() if tf.io.gfile.exists(tf.io.gfile.join(path, n, "saved_model.pb"))}


def _files(path: str) -> tuple[Any, ...]:
    """What a version's folder holds: path, size and time of every file."""
    files = [tf.io.gfile.join(folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names]
    return tuple((file, *_size_and_time(file)) for file in sorted(files))


def _size_and_time(file: str) -> tuple[int, int]:
    try:
        stat = tf.io.gfile.stat(file)
    except tf.errors.NotFoundError:  # a link to nothing, or gone since it was listed: loading will say what it lacks
        return -1, -1
    return stat.length, stat.mtime_nsec
