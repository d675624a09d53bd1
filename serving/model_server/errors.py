"""How a request fails: one exception with a canonical code, and what that code is over HTTP."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

import grpc

# gRPC carries the message in a header, with three characters for a byte that is not printable ASCII, and clients
# refuse headers of more than 8 KiB.
_LONGEST_MESSAGE = 2000
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

_logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        code: The canonical status code.
        message: What was wrong, in TensorFlow Serving's words where it has some.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        text = message.encode(errors="backslashreplace")
        self.message = text[:_LONGEST_MESSAGE].decode(errors="ignore") + "..." * (len(text) > _LONGEST_MESSAGE)
        super().__init__(self.message)

    @property
    def http_status(self) -> int:
        """The status TensorFlow Serving's REST API answers this code with."""
        return _HTTP.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR).value


def invalid(message: str) -> RequestError:
    """An INVALID_ARGUMENT."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def as_request_error(error: Exception) -> RequestError:
    """What to answer when a request raised `error`; what nobody foresaw is INTERNAL, and in the log."""
    if isinstance(error, RequestError):
        return RequestError(
            error.code, error.message
        )  # whose traceback does not keep the request until it is collected
    _logger.error("a request failed", exc_info=error)
    return RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def from_tensorflow(code: int, message: str) -> RequestError:
    """What an op of the model refused, without the stack of the machine the model was exported on."""
    message = re.sub(r"^Graph execution error:.*?<stack traces unavailable>\s*", "", message, flags=re.DOTALL)
    return RequestError(_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), message)
