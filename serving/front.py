"""The feed over HTTP and JSON, as an application asks for it, with what the topic queues hold at that moment.

`POST /feed` takes, by name, what `serving.requests.to_feed_example` takes (but for `queue`, which the front knows), and
answers `{"videos": [...], "candidates": n}`: `serving.feed_answer.Shown`, best first. A front keeps nothing of anybody:
start as many as there is to answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving import client as clients
from serving import http_server
from serving.feed_answer import Shown, shown_videos
from serving.model_server.security import TokenMiddleware
from serving.requests import to_feed_example
from serving.topic_queues.queues import TopicQueues
from transform.contract import Contract, ContractError, Kind

MODEL, SIGNATURE = "feed", "recommend"
_PREFIX = "shortlist_front_"
_MAX_BODY_BYTES = 1024 * 1024
_TOO_LARGE = f"the body may have at most {_MAX_BODY_BYTES} bytes"
_DRAIN_SECONDS = 20.0
_STATUS: dict[type[clients.ServingError], HTTPStatus] = {
    clients.InvalidRequest: HTTPStatus.BAD_REQUEST,
    clients.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    clients.ModelNotFound: HTTPStatus.SERVICE_UNAVAILABLE,
    clients.ResourceExhausted: HTTPStatus.SERVICE_UNAVAILABLE,
    clients.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

_logger = logging.getLogger(__name__)


class Asked(BaseModel):
    """The body of a request; its values are checked against the contract."""

    model_config = ConfigDict(extra="forbid")

    features: dict[str, Any] = Field(default_factory=dict)
    length: int | None = None
    now: int | None = None
    exclude: list[str] = Field(default_factory=list)
    categories: dict[str, tuple[float, float]] = Field(default_factory=dict)
    profile: list[float] = Field(default_factory=list)


class Metrics:
    """What a front has answered, how fast, and how often without what it should have known."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(f"{_PREFIX}requests", "Requests for a feed.", ["status"], registry=self.registry)
        self.seconds = Histogram(f"{_PREFIX}request_seconds", "Time to answer a request.", registry=self.registry)
        self.without_queues = Counter(
            f"{_PREFIX}without_queues", "Feeds made while the store of queues did not answer.", registry=self.registry
        )


class Front:
    """Asks the served feed.

    Args:
        client: Of the model server.
        contract: What the feed was assembled for.
        queues: None: no further candidates; the feed holds the queues as they were when it was pushed.
    """

    def __init__(self, client: clients.Client, contract: Contract, queues: TopicQueues | None) -> None:
        self.client, self.metrics = client, Metrics()
        self._contract, self._queues = contract, queues
        self._histories = [feature.name for feature in contract.inputs if feature.kind is Kind.HISTORY]

    def feed(self, asked: Asked) -> tuple[list[Shown], int]:
        """The videos, best first, and how many candidates were ranked.

        Raises:
            ContractError: The request does not fit the contract.
            ServingError: The model server gave no answer.
        """
        told = dict(asked)
        features = told.pop("features")
        to_feed_example(features, self._contract, **told)  # refused now, before anybody else is asked
        example = to_feed_example(features, self._contract, queue=self._candidates(features, asked.exclude), **told)
        answer = self.client.predict_examples(MODEL, [example], SIGNATURE)
        return shown_videos(answer), int(answer["candidates"][0])

    def _candidates(self, features: Mapping[str, Any], exclude: list[str]) -> list[str]:
        if self._queues is None:
            return []
        clicks = [str(video) for name in self._histories for video in features.get(name) or ()]
        try:
            return [found.video_id for found in self._queues.candidates(clicks, {*exclude, *clicks})]
        except ContractError as error:  # a feed without them is better than none
            self.metrics.without_queues.inc()
            _logger.warning("a feed without the queues' candidates: %s", error)
            return []


def application(front: Front) -> Starlette:
    """The ASGI application: `POST /feed`, `/healthz`, `/readyz` and `/metrics`."""

    async def feed(request: Request) -> Response:
        with front.metrics.seconds.time():
            status, content = await _answer(front, request)
        front.metrics.requests.labels(str(status.value)).inc()
        return JSONResponse(content, status)

    async def alive(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(_: Request) -> Response:
        try:
            states = {version.state for version in await run_in_threadpool(front.client.status, MODEL)}
        except clients.ServingError as error:
            return JSONResponse({"ready": False, "error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        status = HTTPStatus.OK if "AVAILABLE" in states else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": status is HTTPStatus.OK}, status)

    async def page(_: Request) -> Response:
        return Response(generate_latest(front.metrics.registry), media_type="text/plain")

    async def refuse(_: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code)

    routes = [Route("/feed", feed, methods=["POST"])]
    routes += [Route(path, page) for path, page in (("/healthz", alive), ("/readyz", ready), ("/metrics", page))]
    return Starlette(routes=routes, exception_handlers={HTTPException: refuse})


async def _answer(front: Front, request: Request) -> tuple[HTTPStatus, dict[str, Any]]:
    try:
        body = bytearray()
        received = http_server.receive(request, body, _MAX_BODY_BYTES, _TOO_LARGE)
        await asyncio.wait_for(received, http_server.SLOWEST_SECONDS)
        videos, candidates = await run_in_threadpool(front.feed, Asked.model_validate_json(body))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "the body"
        return HTTPStatus.BAD_REQUEST, {"error": f"{place}: {wrong['msg']}"}
    except ContractError as error:
        return HTTPStatus.BAD_REQUEST, {"error": str(error)}
    except clients.ServingError as error:
        return _STATUS.get(type(error), HTTPStatus.BAD_GATEWAY), {"error": str(error)}
    except HTTPException as error:
        return HTTPStatus(error.status_code), {"error": error.detail}
    except asyncio.TimeoutError:
        return HTTPStatus.REQUEST_TIMEOUT, {"error": f"the body took longer than {http_server.SLOWEST_SECONDS:g} s"}
    return HTTPStatus.OK, {"videos": [dataclasses.asdict(video) for video in videos], "candidates": candidates}


def start(front: Front, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> http_server.HttpServer:
    """Listens, in a thread of its own, until it is stopped; `token` is what callers must show, if any.

    Raises:
        ContractError: The port is taken, or not ours.
    """
    app: ASGIApp = application(front)
    try:
        server = http_server.HttpServer(TokenMiddleware(app, token) if token else app, host, port)
    except OSError as error:
        raise ContractError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    server.start()
    return server


def run(front: Front, host: str, port: int, token: str | None) -> None:
    """Serves until SIGTERM or SIGINT, and then answers what it has begun."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = start(front, host, port, token)
    _logger.info("the feed on http://%s:%d/feed, from %s", host, server.port, front.client.target)
    ended.wait()
    server.stop(_DRAIN_SECONDS)
