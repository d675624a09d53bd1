"""A client of TensorFlow Serving's gRPC API; the local model server and `tensorflow/serving` alike.

with Client("localhost:8500", timeout_seconds=2.0) as client:
    scores = client.predict("ranker", rows, contract)["score"]

async with AsyncClient("serving:8500", tls=Tls(root_certificates=pem), token=token) as client:
    scores = (await client.predict("ranker", rows, contract))["score"]
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import grpc
import numpy as np
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import tensors
from serving.requests import to_examples
from transform.contract import Contract

Array = np.ndarray[Any, Any]
Metadata = Sequence[tuple[str, str]]
P = ParamSpec("P")
T = TypeVar("T")

_FIRST_WAIT_SECONDS = 0.05


class ServingError(Exception):
    """A call that failed.

    Attributes:
        target: Whom we called.
        model: Which model we asked for.
        code: The canonical status code.
        details: What the server said.
    """

    remedy = "see the server's log"

    def __init__(self, target: str, model: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{target}, model {model!r}: {details} ({code.name}): {self.remedy}")
        self.target = target
        self.model = model
        self.code = code
        self.details = details


class ModelNotFound(ServingError):  # noqa: N818 - named after the status
    """The server has no such model, or not in that version."""

    remedy = "check the model's name and that a version was pushed; the server's status lists what it serves"


class InvalidRequest(ServingError):  # noqa: N818 - named after the status
    """The request does not fit the model."""

    remedy = "check the signature's name and that the contract is the one the model was trained on"


class DeadlineExceeded(ServingError):  # noqa: N818 - named after the status
    """No answer in time."""

    remedy = "allow more time, or send fewer rows"


class ResourceExhausted(ServingError):  # noqa: N818 - named after the status
    """The request, or its answer, is larger than the server or the channel takes; or too many wait already."""

    remedy = "send fewer rows per request (`predict` divides them if given a `batch_size`), or fewer requests at once"


class Unavailable(ServingError):  # noqa: N818 - named after the status
    """Nobody answers there, or the server has too much to do."""

    remedy = "check the address and that the server runs (`shortlist serve`)"


class Unauthenticated(ServingError):  # noqa: N818 - named after the status
    """The server asks for a token, and got none or another."""

    remedy = "give the client the server's `token`"


_ERRORS: dict[grpc.StatusCode, type[ServingError]] = {
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


@dataclass(frozen=True)
class VersionStatus:
    """Where one version stands: START, LOADING, AVAILABLE, UNLOADING or END; `error` is what made it fail."""

    version: int
    state: str
    error: str


@dataclass(frozen=True)
class Tls:
    """A channel that is encrypted; all PEM.

    Attributes:
        root_certificates: Who may have signed the server's certificate; None: the usual authorities.
        private_key: Of the client, where the server asks for its certificate.
        certificate_chain: Of the client.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None


class _Calls:
    """Every call, once, as a coroutine; a client says how to send and how to wait."""

    _api: Any = grpc

    def __init__(
        self,
        target: str,
        timeout_seconds: float = 10.0,
        retries: int = 2,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        self.target = target
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self._headers = [("authorization", f"Bearer {token}")] if token else []
        limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
        options = [(limit, tensors.MAX_MESSAGE_BYTES) for limit in limits]
        if tls:
            keys = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
            self._channel = self._api.secure_channel(target, keys, options)
        else:
            self._channel = self._api.insecure_channel(target, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    async def _send(self, method: Any, request: Any, timeout: float, metadata: Metadata) -> Any:
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def _predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]],
        contract: Contract,
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
        version_label: str | None = None,
        metadata: Metadata = (),
    ) -> dict[str, Array]:
        """The outputs for rows of raw features.

        Args:
            model: Its name.
            rows: Feature name to value, as `serving.requests.to_example` takes them.
            contract: What the model was trained on.
            signature_name: A signature that takes tf.Examples.
            version: Which version to ask; None: the newest, or that of the label.
            output_filter: Which outputs to return; none named: all.
            batch_size: Rows a call; None: all in one.
            version_label: Which label to ask, as `canary`; not together with `version`.
            metadata: Headers of this call; names in lower case.

        Returns:
            Arrays by output name, one entry a row.

        Raises:
            ContractError: A row does not fit the contract; nothing was sent.
            ServingError: The call failed; its class says how.
        """
        examples = to_examples(rows, contract)
        return await self._predict_examples(
            model, examples, signature_name, version, output_filter, batch_size, version_label, metadata
        )

    async def _predict_examples(
        self,
        model: str,
        examples: Sequence[bytes],
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
        version_label: str | None = None,
        metadata: Metadata = (),
    ) -> dict[str, Array]:
        """Like `predict`, for tf.Examples that are serialized already."""
        deadline = time.monotonic() + self.timeout_seconds
        responses = []
        for inputs in _example_batches(examples, batch_size):
            request = _request(model, inputs, signature_name, version, output_filter, version_label)
            responses.append(await self._call(self._prediction.Predict, request, model, deadline, metadata))
        return _joined(responses)

    async def _predict_tensors(
        self,
        model: str,
        inputs: Mapping[str, Any],
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
        version_label: str | None = None,
        metadata: Metadata = (),
    ) -> dict[str, Array]:
        """The outputs for named tensors, as the signature `raw` takes them; values are arrays of the exact dtype."""
        request = _request(model, inputs, signature_name, version, output_filter, version_label)
        deadline = time.monotonic() + self.timeout_seconds
        return _joined([await self._call(self._prediction.Predict, request, model, deadline, metadata)])

    async def _status(self, model: str, metadata: Metadata = ()) -> list[VersionStatus]:
        """Where the model's versions stand, newest first.

        Raises:
            ServingError: The call failed; `ModelNotFound` if the server does not know the model.
        """
        return await self._status_until(time.monotonic() + self.timeout_seconds, model, metadata)

    async def _wait_until_ready(self, model: str, timeout_seconds: float, metadata: Metadata = ()) -> None:
        """Returns once a version of the model is AVAILABLE.

        Raises:
            ServingError: It was not in time: what the last look found.
        """
        deadline = time.monotonic() + timeout_seconds
        failure: ServingError | None = None
        while True:
            found: list[VersionStatus] = []
            try:
                found, failure = await self._status_until(deadline, model, metadata), None
            except (ModelNotFound, Unavailable) as error:
                failure = error
            except DeadlineExceeded as error:  # says less than what an earlier look found
                failure = failure or error
            if any(status.state == "AVAILABLE" for status in found):
                return
            if time.monotonic() + _FIRST_WAIT_SECONDS >= deadline:
                seen = ", ".join(f"version {s.version} {s.state} {s.error}".strip() for s in found)
                failure = failure or Unavailable(self.target, model, grpc.StatusCode.UNAVAILABLE, seen)
                details = f"not ready after {timeout_seconds:g} s: {failure.details}"
                raise type(failure)(self.target, model, failure.code, details)
            await self._sleep(_FIRST_WAIT_SECONDS)

    async def _status_until(self, deadline: float, model: str, metadata: Metadata) -> list[VersionStatus]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        response = await self._call(self._models.GetModelStatus, request, model, deadline, metadata)
        names = get_model_status_pb2.ModelVersionStatus.State
        found = [
            VersionStatus(entry.version, names.Name(entry.state), entry.status.error_message)
            for entry in response.model_version_status
        ]
        return sorted(found, key=lambda status: -status.version)

    async def _call(self, method: Any, request: Any, model: str, deadline: float, metadata: Metadata) -> Any:
        wait = _FIRST_WAIT_SECONDS
        for left in range(self.retries, -1, -1):
            try:
                return await self._send(
                    method, request, max(deadline - time.monotonic(), 0.0), [*self._headers, *metadata]
                )
            except grpc.RpcError as error:
                code = error.code()
                if code is not grpc.StatusCode.UNAVAILABLE or not left or time.monotonic() + wait >= deadline:
                    raise _ERRORS.get(code, ServingError)(self.target, model, code, error.details() or "") from error
            await self._sleep(wait * random.uniform(0.5, 1.0))  # so that clients do not come back all at once
            wait *= 2
        raise AssertionError("the last try returns or raises")


def _example_batches(examples: Sequence[bytes], batch_size: int | None) -> list[dict[str, Array]]:
    """The inputs of each call."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    count = max(len(examples), 1)  # no rows are a call too
    starts = range(0, count, batch_size or count)
    return [{"examples": np.array(examples[start : start + starts.step], dtype=object)} for start in starts]


def _request(
    model: str,
    inputs: Mapping[str, Any],
    signature_name: str,
    version: int | None,
    output_filter: Iterable[str],
    version_label: str | None,
) -> Any:
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = model
    request.model_spec.signature_name = signature_name
    if version is not None:
        request.model_spec.version.value = version
    if version_label is not None:
        request.model_spec.version_label = version_label
    for name, values in inputs.items():
        tensors.fill(request.inputs[name], values)
    return request


def _joined(responses: Sequence[Any]) -> dict[str, Array]:
    parts = [{name: tensors.to_array(proto) for name, proto in each.outputs.items()} for each in responses]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _blocking(call: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The same call for a client that sends and waits by blocking, so that its coroutines never give way."""

    @functools.wraps(call)
    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            call(self, *args, **kwargs).send(None)
        except StopIteration as done:
            return cast(T, done.value)
        raise AssertionError("a blocking call gave way")

    return run


class Client(_Calls):
    """One channel to a server, kept open; threads may share it.

    Args:
        target: `host:port`.
        timeout_seconds: How long one `predict` or `status` may take in all, retries and batches included.
        retries: How often a call that found the server UNAVAILABLE is sent again. No other failure is retried.
        tls: How the channel is encrypted; None: it is not.
        token: Shown to the server with every call.
    """

    predict = _blocking(_Calls._predict)
    predict_examples = _blocking(_Calls._predict_examples)
    predict_tensors = _blocking(_Calls._predict_tensors)
    status = _blocking(_Calls._status)
    wait_until_ready = _blocking(_Calls._wait_until_ready)

    async def _send(self, method: Any, request: Any, timeout: float, metadata: Metadata) -> Any:
        return method(request, timeout=timeout, metadata=metadata)

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Calls):
    """`Client` for asyncio: the same arguments, answers and errors. Make it where the event loop runs."""

    predict = _Calls._predict
    predict_examples = _Calls._predict_examples
    predict_tensors = _Calls._predict_tensors
    status = _Calls._status
    wait_until_ready = _Calls._wait_until_ready
    _api = grpc.aio

    async def _send(self, method: Any, request: Any, timeout: float, metadata: Metadata) -> Any:
        return await method(request, timeout=timeout, metadata=metadata)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
