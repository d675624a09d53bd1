"""Start and stop: models, gRPC, REST, health and reflection in one object.

with start("served", port=8500, rest_port=8501) as server:
    server.wait()
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.http_server import HttpServer
from serving.model_server import configuration, security
from serving.model_server.backend import MAX_REQUEST_BYTES, Backend
from serving.model_server.configuration import BatchingParameters, ModelSource, Monitoring, Tls
from serving.model_server.errors import RequestError
from serving.model_server.grpc_service import SERVICES, ModelService, PredictionService
from serving.model_server.metrics import Metrics
from serving.model_server.models import Models
from serving.model_server.options import Options
from serving.model_server.rest import application
from serving.tensors import MAX_MESSAGE_BYTES
from transform import file_systems
from transform.contract import ContractError

_WAITING = 16  # calls that may wait, for each that is answered
_DRAIN_SECONDS = 20.0
_GRACE_SECONDS = 0.5
_LOOK_SECONDS = 0.25  # how often health follows what is loaded

_logger = logging.getLogger(__name__)


class Server:
    """Loads the models and serves them; it answers once it is constructed.

    Args:
        options: What to serve, where and how.

    Attributes:
        models: What it serves.
        host: The address it listens on.
        port: Of gRPC.
        rest_port: Of REST.

    Raises:
        ContractError: A file of the options is missing or wrong, or a port is taken.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.host = options.host
        token = options.token()
        tls = configuration.read_ssl(options.ssl_config_file) if options.ssl_config_file else None
        context = security.http_context(tls) if tls else None  # before gRPC, which would say less about a bad key
        if token and not tls and not (self.host == "::1" or self.host.startswith("127.")):
            _logger.warning("the token travels in clear: add --ssl_config_file, or listen on 127.0.0.1 only")
        file = options.monitoring_config_file
        monitoring = configuration.read_monitoring(file) if file else Monitoring()
        self.models = _models(options)
        self._backend = Backend(self.models, Metrics(), options.max_request_rows)
        self._health = health.HealthServicer()
        self._healthy: bool | None = None
        self._grpc = self._grpc_server(token)
        self.port = _bind(self._grpc, self.host, options.port, tls)
        app: ASGIApp = application(self._backend, monitoring, options.rest_api_timeout_in_ms / 1000)
        if token:
            app = security.TokenMiddleware(app, token)
        try:
            self._http = HttpServer(app, self.host, options.rest_api_port, context)
        except OSError as error:
            self._grpc.stop(0)
            raise _cannot_listen(self.host, options.rest_api_port, "--rest_api_port") from error
        self.rest_port = self._http.port
        self._start()

    def _start(self) -> None:
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._report_health()
        self._grpc.start()
        self._http.start()
        with tf.compat.v1.Session(graph=tf.Graph()):
            pass  # TensorFlow starts its threads, to which one that loads would hand its priority down
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="watch")
        self._watcher.start()

    @property
    def target(self) -> str:
        """`host:port` of gRPC, for a client."""
        return _address(self.host, self.port)

    def _grpc_server(self, token: str) -> grpc.Server:
        threads = self._options.grpc_max_threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        server = grpc.server(
            self._pool,
            interceptors=[security.TokenInterceptor(token)] if token else [],
            maximum_concurrent_rpcs=threads * (1 + _WAITING),
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # else two servers could share a port, and a client would reach either
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self._backend), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._backend), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _watch(self) -> None:
        """Looks for versions and at the configuration when it is time to, and keeps health up to date."""
        seconds = {
            self.models.refresh: self._options.file_system_poll_wait_seconds,
            self._reload: self._options.model_config_file_poll_wait_seconds,
        }
        last = dict.fromkeys(seconds, time.monotonic())
        while not self._stopping.wait(_LOOK_SECONDS):
            for work, at in last.items():
                if seconds[work] and time.monotonic() >= at + seconds[work]:
                    _try(work)
                    last[work] = time.monotonic()
            self._report_health()

    def _reload(self) -> None:
        if self._options.model_config_file:
            self.models.reload(configuration.models_config(self._options.model_config_file))

    def _report_health(self) -> None:
        if self._healthy is not self.models.ready:  # watchers are told of every call, changed or not
            self._healthy = self.models.ready
            states = health_pb2.HealthCheckResponse
            for service in ("", *SERVICES):
                self._health.set(service, states.SERVING if self._healthy else states.NOT_SERVING)

    def wait(self) -> None:
        """Blocks until `stop` is called."""
        self._stopped.wait()

    def stop(self) -> None:
        """Takes no new requests, answers those it has, and frees the ports. Calling it again does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        end = time.monotonic() + _DRAIN_SECONDS
        self._health.enter_graceful_shutdown()
        answered = self._grpc.stop(_DRAIN_SECONDS)  # refuses from now on; REST drains meanwhile
        self._http.stop(_DRAIN_SECONDS)
        if not answered.wait(_GRACE_SECONDS):  # who watches health, which takes no thread, does not leave
            busy = threading.Thread(target=self._pool.shutdown, daemon=True)
            busy.start()
            busy.join(max(end - time.monotonic(), 0))
            self._grpc.stop(_GRACE_SECONDS).wait()
        self._watcher.join(max(end - time.monotonic(), 0))
        self.models.close()
        self._stopped.set()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except (ContractError, RequestError) as error:
        _logger.error("the configuration is not taken over, the last one keeps serving: %s", error)
    except Exception:  # the watcher must outlive whatever a storage system raises
        _logger.exception("looking for changes failed; what is loaded keeps serving")


def start(
    models_dir: str,
    port: int = 0,
    rest_port: int = 0,
    host: str = "127.0.0.1",
    poll_seconds: float = 1.0,
    latest: int = 1,
) -> Server:
    """`Server` with the options, as `Options` has them, that a program embedding it needs."""
    asked: dict[str, Any] = {"port": port, "rest_api_port": rest_port, "host": host, "latest": latest}
    return Server(Options(models=models_dir, file_system_poll_wait_seconds=poll_seconds, **asked))


def run(options: Options) -> None:
    """Serves until SIGTERM or SIGINT, then drains and ends the process with 0.

    Raises:
        ContractError: As `Server`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    # While a version is loaded or unloaded, requests wait less: neither for collections of what stays anyway (all that
    # was imported), nor as long for their turn with Python's lock.
    gc.freeze()
    sys.setswitchinterval(0.00002)
    try:
        with Server(options) as server:
            _logger.info("gRPC on %s, REST on %s", server.target, _address(server.host, server.rest_port))
            server.wait()
    except SystemExit:
        logging.shutdown()
        os._exit(0)  # Python would wait for threads whose requests outlasted the draining


def _terminate(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a second one must not end the draining
    sys.exit(0)


def _models(options: Options) -> Models:
    file_systems.register()
    batching = None
    if options.enable_batching:
        file = options.batching_parameters_file
        batching = configuration.read_batching(file) if file else BatchingParameters()
        if batching.max_batch_size > options.max_request_rows:
            raise ContractError(
                f"max_batch_size of {batching.max_batch_size} is more rows than a request may have: "
                f"raise --max_request_rows, which is {options.max_request_rows}"
            )
    models = Models(_sources(options), options.latest, batching)
    models.refresh()
    if not models.ready:
        _logger.warning("not every model could be loaded, or there is none yet")
    return models


def _sources(options: Options) -> str | tuple[ModelSource, ...]:
    if options.model_config_file:
        return configuration.read_models_config(options.model_config_file)
    if path := options.model_base_path:
        return (ModelSource(options.model_name, path if "://" in path else os.path.abspath(path)),)
    if not tf.io.gfile.isdir(options.models):
        raise ContractError(
            f"no folder of models at {options.models}: expected <name>/<version>/saved_model.pb below it; "
            "run the pipeline first, or give the folder it pushes to"
        )
    return options.models


def _bind(server: grpc.Server, host: str, port: int, tls: Tls | None) -> int:
    address = _address(host, port)
    try:
        if tls:
            return int(server.add_secure_port(address, security.grpc_credentials(tls)))
        return int(server.add_insecure_port(address))
    except RuntimeError as error:
        raise _cannot_listen(host, port, "--port") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # brackets tell an IPv6 address from its port


def _cannot_listen(host: str, port: int, option: str) -> ContractError:
    where = _address(host, port)
    return ContractError(f"cannot listen on {where}: it is in use or not ours; choose another with {option}")
