"""Start and stop: models, gRPC and REST in one object.

with start("served", port=8500, rest_port=8501) as server:
    server.wait()
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.model_server.grpc_service import SERVICES, ModelService, PredictionService
from serving.model_server.models import Models
from serving.model_server.rest import HttpServer
from serving.tensors import MAX_MESSAGE_BYTES
from transform.contract import ContractError

_THREADS = 16
_DRAIN_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class Server:
    """A running server; `start` makes it.

    Attributes:
        models: What it serves.
        host: The address it listens on.
        port: Of gRPC.
        rest_port: Of REST.
    """

    def __init__(self, models: Models, host: str, port: int, rest_port: int, poll_seconds: float) -> None:
        self.models = models
        self.host = host
        self._health = health.HealthServicer()
        self._grpc = self._grpc_server()
        self.port = _bind(self._grpc, host, port)
        try:
            self._http = HttpServer((host, rest_port), models)
        except OSError as error:
            self._grpc.stop(0)
            raise _cannot_listen(host, rest_port, "--rest_api_port") from error
        self.rest_port: int = self._http.server_address[1]
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._report_health()
        self._grpc.start()
        self._threads = [threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True, name="rest")]
        if poll_seconds > 0:
            self._threads.append(threading.Thread(target=self._poll, args=(poll_seconds,), daemon=True, name="poll"))
        for thread in self._threads:
            thread.start()

    @property
    def target(self) -> str:
        """`host:port` of gRPC, for a client."""
        return f"{self.host}:{self.port}"

    def _grpc_server(self) -> grpc.Server:
        limits = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        # Without the last option two servers could share a port, and a client would reach either.
        server = grpc.server(ThreadPoolExecutor(_THREADS), options=[*limits, ("grpc.so_reuseport", 0)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self.models), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.models), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def _poll(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            self._look()

    def _look(self) -> None:
        try:
            self.models.refresh()
            self._report_health()
        except Exception:  # the poller must outlive whatever a storage system raises
            _logger.exception("looking for new versions failed; the loaded ones keep serving")

    def _report_health(self) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if self.models.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", *SERVICES):
            self._health.set(service, status)

    def wait(self) -> None:
        """Blocks until `stop` is called."""
        self._stopped.wait()

    def stop(self) -> None:
        """Takes no new requests, answers those it has, and frees the ports. Calling it again does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._grpc.stop(_DRAIN_SECONDS).wait()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)
        self._stopped.set()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    models_dir: str,
    port: int = 0,
    rest_port: int = 0,
    host: str = "127.0.0.1",
    poll_seconds: float = 1.0,
    latest: int = 1,
) -> Server:
    """Loads the models of a folder and serves them.

    Args:
        models_dir: Folder with `<name>/<version>/saved_model.pb`; anything `tf.io.gfile` reads.
        port: Of gRPC; 0 takes a free one.
        rest_port: Of REST; 0 takes a free one.
        host: Address to listen on. There is no authentication, hence the local one.
        poll_seconds: How often to look for new versions; 0 never.
        latest: How many of the newest versions of each model to serve.

    Returns:
        The server, which answers already.

    Raises:
        ContractError: The folder does not exist, or a port is taken.
    """
    if not tf.io.gfile.isdir(models_dir):
        raise ContractError(
            f"no folder of models at {models_dir}: expected <name>/<version>/saved_model.pb below it; "
            "run the pipeline first, or give the folder it pushes to"
        )
    models = Models(models_dir, latest)
    models.refresh()
    if not models.ready:
        _logger.warning("not every model in %s could be loaded, or there is none yet", models_dir)
    return Server(models, host, port, rest_port, poll_seconds)


def _bind(server: grpc.Server, host: str, port: int) -> int:
    try:
        return int(server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise _cannot_listen(host, port, "--port") from error


def _cannot_listen(host: str, port: int, option: str) -> ContractError:
    return ContractError(f"cannot listen on {host}:{port}: it is in use or not ours; choose another with {option}")
