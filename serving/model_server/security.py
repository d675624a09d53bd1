"""Who may call, and over what: TLS and a static bearer token, for gRPC and REST alike."""

from __future__ import annotations

import hmac
import os
import ssl
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import grpc

from transform.contract import ContractError

if TYPE_CHECKING:
    from serving.model_server.configuration import Tls

_HEALTH = "/grpc.health.v1.Health/"  # probes carry no secrets
_PROBES = ("/healthz", "/readyz")
_UNAUTHENTICATED = "expected the header 'authorization: Bearer TOKEN' with the token of this server"


def matches(header: str | bytes, token: str) -> bool:
    """Whether an `authorization` header carries the token; takes as long for a near miss as for any other."""
    header = header.encode() if isinstance(header, str) else header
    return hmac.compare_digest(header, b"Bearer " + token.encode())


class TokenInterceptor(grpc.ServerInterceptor):
    """Refuses gRPC calls without the token with UNAUTHENTICATED; health checks are exempt."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._refusal = grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, _UNAUTHENTICATED)
        )

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Lets the call through, or answers it."""
        headers = dict(handler_call_details.invocation_metadata)
        if handler_call_details.method.startswith(_HEALTH) or matches(headers.get("authorization", ""), self._token):
            return continuation(handler_call_details)
        return self._refusal


class TokenMiddleware:
    """The same for an ASGI application: 401 with TensorFlow Serving's error body.

    Attributes:
        application: What answers those who may call, and everybody who asks for liveness or readiness.
    """

    def __init__(self, application: Callable[..., Awaitable[None]], token: str) -> None:
        self.application = application
        self._token = token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Passes the request on, or answers it."""
        header = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or scope["path"] in _PROBES or matches(header, self._token):
            return await self.application(scope, receive, send)
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": "%s"}' % _UNAUTHENTICATED.encode()})
        return None


def grpc_credentials(tls: Tls) -> grpc.ServerCredentials:
    """What a secure gRPC port needs; the certificates are checked by `http_context`, for gRPC says too little."""
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )


def http_context(tls: Tls) -> ssl.SSLContext:
    """The same for HTTPS.

    Raises:
        ContractError: Key and certificate are none, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=tls.custom_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    # Python reads keys from files only; this one is ours alone and gone at once.
    descriptor, path = tempfile.mkstemp()
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{tls.server_key}\n{tls.server_cert}\n")
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise ContractError(
            f"the server_key and server_cert of --ssl_config_file do not fit: {error.reason}; expected PEM text of a "
            "private key without a password, and of its certificate"
        ) from error
    finally:
        os.unlink(path)
    return context
