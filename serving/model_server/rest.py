"""TensorFlow Serving's REST API: routes, and a small threaded HTTP server that carries them.

`respond` holds the whole behaviour and knows nothing of sockets, so that another HTTP server can carry it.
"""

from __future__ import annotations

import json
import logging
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving import tensors
from serving.model_server import json_tensors
from serving.model_server.errors import RequestError, invalid
from serving.model_server.grpc_service import model_metadata, model_status
from serving.model_server.models import Models
from serving.model_server.predict import predict

MAX_BODY_BYTES = 64 * 1024 * 1024
_SLOWEST_SECONDS = 30  # a client that sends nothing for so long is let go

_CHOICE = r"(?:/(?:versions/(?P<version>\d+)|labels/(?P<label>[^/:]+)))?"
_PREDICT = re.compile(rf"/v1/models/(?P<name>[^/:]+){_CHOICE}:predict", re.IGNORECASE)
_MODEL = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?P<metadata>/metadata)?", re.IGNORECASE)

_logger = logging.getLogger(__name__)


def respond(models: Models, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Answers one HTTP request.

    Args:
        models: What is served.
        method: `GET` or `POST`.
        path: Of the URL, without the query.
        body: Of the request.

    Returns:
        HTTP status, and the response's body, which is JSON.
    """
    try:
        return HTTPStatus.OK.value, _route(models, method, path, body)
    except RequestError as error:
        failure = error
    except Exception as error:
        _logger.exception("a request failed")
        failure = RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    return failure.http_status, error_body(failure.message)


def error_body(message: str) -> bytes:
    """The body of every answer that is not a success."""
    return json.dumps({"error": message}).encode()


def _route(models: Models, method: str, path: str, body: bytes) -> bytes:
    if not path.lower().startswith("/v1/"):
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Not found: {path}")
    if method == "POST" and (match := _PREDICT.fullmatch(path)):
        return _predict(models, _spec(match), body)
    if method == "GET" and (match := _MODEL.fullmatch(path)):
        if not match["name"]:
            raise invalid("Missing model name in request.")
        return _metadata(models, _spec(match)) if match["metadata"] else _status(models, _spec(match))
    raise invalid(f"Malformed request: {method} {path}")


def _spec(match: re.Match[str]) -> Any:
    spec = model_pb2.ModelSpec(name=match["name"])
    if match["version"]:
        if len(match["version"]) > 19 or int(match["version"]) >= 2**63:
            raise invalid(f"Failed to convert version: {match['version'][:40]} to numeric.")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


def _predict(models: Models, spec: Any, body: bytes) -> bytes:
    servable = models.find(spec)
    content = json_tensors.parse(body)
    name = json_tensors.signature_name(content)
    request = predict_pb2.PredictRequest(model_spec=spec)
    request.model_spec.signature_name = name
    try:
        signature = servable.signature(name)
    except RequestError as error:  # Serving's REST API has words and a code of its own for this
        raise invalid(f'Serving signature name: "{name}" not found in signature def') from error
    arrays, as_rows = json_tensors.read(content, signature.inputs)
    for key, array in arrays.items():
        tensors.fill(request.inputs[key], array)
    response = predict(servable, request)
    return json_tensors.write(
        {key: tensors.to_array(response.outputs[key]) for key in sorted(response.outputs)}, as_rows
    )


def _status(models: Models, spec: Any) -> bytes:
    return _json(model_status(models, spec))


def _metadata(models: Models, spec: Any) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    response = model_metadata(models, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    content = {
        "model_spec": _fields(response.model_spec) | {"signature_name": ""},
        "metadata": {"signature_def": _fields(signatures)},
    }
    return json.dumps(content, indent=1).encode()


def _json(message: Any) -> bytes:
    return json.dumps(_fields(message), indent=1).encode()


def _fields(message: Any) -> dict[str, Any]:
    return dict(
        json_format.MessageToDict(message, including_default_value_fields=True, preserving_proto_field_name=True)
    )


class HttpServer(ThreadingHTTPServer):
    """A thread a connection; enough beside gRPC for trying things out and for tools."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], models: Models) -> None:
        super().__init__(address, _Handler)
        self.models = models

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event."""
        _logger.debug("connection of %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version = "shortlist"
    sys_version = ""
    timeout = _SLOWEST_SECONDS
    wbufsize = -1  # headers and body leave in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        try:
            body = self._body()
        except RequestError as error:
            self._send(error.http_status, error_body(error.message), keep=False)
            return
        if body is None:
            message = f"the body may have at most {MAX_BODY_BYTES} bytes: send smaller batches"
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error_body(message), keep=False)
            return
        self._send(*respond(self.server.models, self.command, self.path.partition("?")[0], body))

    def _body(self) -> bytes | None:
        """The body; None if it is too large to read."""
        if "Transfer-Encoding" in self.headers:
            raise invalid("a body needs a Content-Length: chunks are not understood")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 19:
            raise invalid(f"Content-Length must be a whole number, got {length[:40]!r}")
        return self.rfile.read(int(length)) if int(length) <= MAX_BODY_BYTES else None

    def _send(self, status: int, body: bytes, keep: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if not keep:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` refuses before it reaches us; in JSON like everything else."""
        self.request_version = self.protocol_version  # where it read none it would leave out the headers
        self._send(code, error_body(message or explain or HTTPStatus(code).phrase), keep=False)

    def log_message(self, format: str, *args: Any) -> None:
        _logger.debug(format, *args)
