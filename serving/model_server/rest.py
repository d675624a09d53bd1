"""TensorFlow Serving's REST API on Starlette and uvicorn: routes, guards, health and metrics.

`respond` holds the behaviour of `/v1/...` and knows nothing of sockets. It runs in threads, for it waits for the model.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from serving import http_server
from serving.model_server import json_examples, json_tensors
from serving.model_server.backend import MAX_REQUEST_BYTES, TOO_MANY, Backend
from serving.model_server.configuration import Monitoring
from serving.model_server.errors import RequestError, as_request_error, invalid
from serving.model_server.inference import classify, regress
from serving.model_server.metrics import Call
from serving.model_server.predict import run
from serving.model_server.servable import Servable

_THREADS = 16
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_T = TypeVar("_T")

_CHOICE = r"(?:/(?:versions/(?P<version>\d+)|labels/(?P<label>[^/:]+)))?"
_RUN = re.compile(rf"/v1/models/(?P<name>[^/:]+){_CHOICE}:(?P<api>predict|classify|regress)", re.IGNORECASE)
_MODEL = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?P<metadata>/metadata)?", re.IGNORECASE)


def respond(backend: Backend, method: str, path: str, body: bytearray) -> tuple[int, bytes]:
    """Answers one HTTP request.

    Args:
        backend: Knows the answer.
        method: `GET` or `POST`.
        path: Of the URL, without the query.
        body: Of the request.

    Returns:
        HTTP status, and the response's body, which is JSON.
    """
    try:
        return HTTPStatus.OK.value, _route(backend, method, path, body)
    except Exception as error:
        failure = as_request_error(error)
    return failure.http_status, json.dumps({"error": failure.message}).encode()


def _route(backend: Backend, method: str, path: str, body: bytearray) -> bytes:
    if not path.lower().startswith("/v1/"):
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Not found: {path}")
    if method == "POST" and (match := _RUN.fullmatch(path)):
        api, work = _APIS[match["api"].lower()]
        return backend.run(work, api, "REST", _spec(match), body)
    if method == "GET" and (match := _MODEL.fullmatch(path)):
        if not match["name"]:
            raise invalid("Missing model name in request.")
        if match["metadata"]:
            return _metadata(backend, _spec(match))
        asked = get_model_status_pb2.GetModelStatusRequest(model_spec=_spec(match))
        return _json(_fields(backend.status(asked)))
    raise invalid(f"Malformed request: {method} {path}")


def _spec(match: re.Match[str]) -> Any:
    spec = model_pb2.ModelSpec(name=json_tensors.utf8(match["name"]))
    if match["version"]:
        if len(match["version"]) > 19 or int(match["version"]) >= 2**63:
            raise invalid(f"Failed to convert version: {match['version'][:40]} to numeric.")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


def _predict(servable: Servable, body: bytearray, call: Call) -> bytes:
    content = json_tensors.parse(body)
    name = json_tensors.signature_name(content)
    try:
        signature = servable.signature(name)
    except RequestError as error:  # Serving's REST API has words and a code of its own for this
        raise invalid(f'Serving signature name: "{name}" not found in signature def') from error
    arrays, as_rows = json_tensors.read(content, signature.inputs)
    return json_tensors.write(run(signature, arrays, call), as_rows)


def _classify(servable: Servable, body: bytearray, call: Call) -> bytes:
    return json_examples.write_classes(
        classify(servable, _examples(classification_pb2.ClassificationRequest, body), call)
    )


def _regress(servable: Servable, body: bytearray, call: Call) -> bytes:
    request = _examples(regression_pb2.RegressionRequest, body)
    return json_examples.write_values(regress(servable, request, call))


def _examples(request: Callable[..., Any], body: bytearray) -> Any:
    content = json_tensors.parse(body)
    spec = model_pb2.ModelSpec(signature_name=json_tensors.signature_name(content))
    return request(model_spec=spec, input=json_examples.read(content))


_APIS: dict[str, tuple[str, Callable[[Servable, bytearray, Call], bytes]]] = {
    "predict": ("Predict", _predict),
    "classify": ("Classify", _classify),
    "regress": ("Regress", _regress),
}


def _metadata(backend: Backend, spec: Any) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    response = backend.metadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec = _fields(response.model_spec) | {"signature_name": ""}
    return _json({"model_spec": spec, "metadata": {"signature_def": _fields(signatures)}})


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _fields(message: Any) -> Any:
    return json_format.MessageToDict(message, including_default_value_fields=True, preserving_proto_field_name=True)


def application(backend: Backend, monitoring: Monitoring, timeout_seconds: float = 30.0) -> Starlette:
    """The ASGI application: `/v1/...`, `/healthz`, `/readyz` and, if enabled, the metrics.

    Args:
        backend: Knows the answers.
        monitoring: Whether and where its metrics are shown.
        timeout_seconds: A request that is not answered in so long after it came is answered DEADLINE_EXCEEDED.
    """

    async def alive(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(_: Request) -> Response:
        status = HTTPStatus.OK if backend.models.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": status is HTTPStatus.OK, "waiting_for": backend.models.waiting}, status)

    async def page(_: Request) -> Response:
        return Response(backend.metrics.page(), media_type="text/plain")

    @asynccontextmanager
    async def threads(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rest")
        yield {"pool": pool}
        pool.shutdown(wait=False, cancel_futures=True)

    routes = [Route("/healthz", alive), Route("/readyz", ready)]
    if monitoring.enable:
        routes.append(Route(monitoring.path, page))
    routes.append(Route("/{path:path}", _Answering(backend, timeout_seconds).answer, methods=_METHODS))
    return Starlette(routes=routes, lifespan=threads, exception_handlers={HTTPException: _refuse})


class _Answering:
    """Receives a body within its limits, and has a thread answer it."""

    def __init__(self, backend: Backend, timeout_seconds: float) -> None:
        self._backend = backend
        self._timeout_seconds = timeout_seconds

    async def answer(self, request: Request) -> Response:
        body = bytearray()
        try:
            await _within(http_server.SLOWEST_SECONDS, self._receive(request, body), HTTPStatus.REQUEST_TIMEOUT)
            work = request.state.pool.submit(respond, self._backend, request.method, request.url.path, body)
        except BaseException:
            self._backend.hold(-len(body))
            raise
        # A thread that is not done in time goes on, and holds the body until then.
        work.add_done_callback(lambda _: self._backend.hold(-len(body)))
        status, content = await _within(self._timeout_seconds, asyncio.wrap_future(work), HTTPStatus.GATEWAY_TIMEOUT)
        return Response(content, status, media_type="application/json")

    async def _receive(self, request: Request, body: bytearray) -> None:
        def hold(size: int) -> None:
            if not self._backend.hold(size):
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY)

        refusal = f"the body may have at most {MAX_REQUEST_BYTES} bytes: send smaller batches"
        await http_server.receive(request, body, MAX_REQUEST_BYTES, refusal, hold)


async def _within(seconds: float, work: Awaitable[_T], status: HTTPStatus) -> _T:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise HTTPException(status, f"it took longer than {seconds:g} s") from error


async def _refuse(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, {"Connection": "close"})
