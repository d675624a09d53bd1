"""An ASGI application behind uvicorn, with bounds on who may hold a connection, and for how long."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOWEST_SECONDS = 60.0  # a client that has not sent its request in so long is let go
_MOST_CONNECTIONS = 512


async def receive(
    request: Request, body: bytearray, most: int, refusal: str, hold: Callable[[int], None] = lambda size: None
) -> None:
    """Adds a request's body to `body`, as it comes.

    Args:
        request: Whose.
        body: What has come so far stays in it when this raises.
        most: Bytes that it may have.
        refusal: What is said of one that has more.
        hold: Is told of every part's bytes once they are in `body`; may raise.

    Raises:
        HTTPException: The body is too large, or the client left.
    """
    too_large = HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, refusal)
    if int(request.headers.get("content-length", 0)) > most:  # that it is a number, h11 has seen to
        raise too_large
    try:
        async for chunk in request.stream():
            body += chunk
            hold(len(chunk))
            if len(body) > most:
                raise too_large
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the client left") from error


class _Protocol(H11Protocol):
    """uvicorn's, which also lets go of clients whose headers do not arrive in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._let_go_at(self.loop.time() + SLOWEST_SECONDS)

    def data_received(self, data: bytes) -> None:
        timer = self.timeout_keep_alive_task
        super().data_received(data)
        if timer and self.timeout_keep_alive_task is None and (not self.cycle or self.cycle.response_complete):
            self._let_go_at(timer.when())

    def _let_go_at(self, when: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(when, self.timeout_keep_alive_handler)


class HttpServer:
    """uvicorn in a thread of its own.

    Args:
        application: What answers.
        host: The address to listen on.
        port: 0 takes a free one.
        tls: Speak HTTPS; None: HTTP.

    Attributes:
        port: The one it listens on.

    Raises:
        OSError: The port is taken, or not ours.
    """

    def __init__(self, application: ASGIApp, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it; 40 ms otherwise
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=int(SLOWEST_SECONDS),
        )
        config.load()
        config.ssl = tls
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True, name="rest")

    def start(self) -> None:
        """Returns once it answers."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self, drain_seconds: float) -> None:
        """Takes no new requests, and ends once those it has are answered, or the time is over."""
        self._server.config.timeout_graceful_shutdown = drain_seconds  # type: ignore[assignment]  # floats do as well
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(drain_seconds + 1)
        self._socket.close()
