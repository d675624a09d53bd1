"""A client of TensorFlow Serving's gRPC API; the local model server and `tensorflow/serving` alike.

with Client("localhost:8500", timeout_seconds=2.0) as client:
    scores = client.predict("ranker", rows, contract)["score"]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

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
    """The request, or its answer, is larger than the server or the channel takes."""

    remedy = "send fewer rows per request: `predict` divides them if given a `batch_size`"


class Unavailable(ServingError):  # noqa: N818 - named after the status
    """Nobody answers there, or the server has too much to do."""

    remedy = "check the address and that the server runs (`shortlist serve`)"


_ERRORS: dict[grpc.StatusCode, type[ServingError]] = {
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


@dataclass(frozen=True)
class VersionStatus:
    """Where one version stands: START, LOADING, AVAILABLE, UNLOADING or END; `error` is what made it fail."""

    version: int
    state: str
    error: str


class Client:
    """One channel to a server; threads may share it.

    Attributes:
        target: `host:port`.
        timeout_seconds: How long one `predict` or `status` may take in all, retries and batches included.
        retries: How often a call that found the server UNAVAILABLE is sent again. No other failure is retried.
    """

    def __init__(self, target: str, timeout_seconds: float = 10.0, retries: int = 2) -> None:
        self.target = target
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
        self._channel = grpc.insecure_channel(target, options=[(limit, tensors.MAX_MESSAGE_BYTES) for limit in limits])
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]],
        contract: Contract,
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """The outputs for rows of raw features.

        Args:
            model: Its name.
            rows: Feature name to value, as `serving.requests.to_example` takes them.
            contract: What the model was trained on.
            signature_name: A signature that takes tf.Examples.
            version: Which version to ask; None: the newest.
            output_filter: Which outputs to return; none named: all.
            batch_size: Rows a call; None: all in one.

        Returns:
            Arrays by output name, one entry a row.

        Raises:
            ContractError: A row does not fit the contract; nothing was sent.
            ServingError: The call failed; its class says how.
        """
        examples = to_examples(rows, contract)
        return self.predict_examples(model, examples, signature_name, version, output_filter, batch_size)

    def predict_examples(
        self,
        model: str,
        examples: Sequence[bytes],
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """Like `predict`, for tf.Examples that are serialized already."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        deadline = time.monotonic() + self.timeout_seconds
        step = batch_size or max(len(examples), 1)
        parts = []
        for start in range(0, max(len(examples), 1), step):
            batch = np.array(examples[start : start + step], dtype=object)
            parts.append(self._predict(model, {"examples": batch}, signature_name, version, output_filter, deadline))
        return (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
        )

    def predict_tensors(
        self,
        model: str,
        inputs: Mapping[str, Any],
        signature_name: str = "serving_default",
        version: int | None = None,
        output_filter: Sequence[str] = (),
    ) -> dict[str, Array]:
        """The outputs for named tensors, as the signature `raw` takes them; values are arrays of the exact dtype."""
        deadline = time.monotonic() + self.timeout_seconds
        return self._predict(model, inputs, signature_name, version, output_filter, deadline)

    def _predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        signature_name: str,
        version: int | None,
        output_filter: Sequence[str],
        deadline: float,
    ) -> dict[str, Array]:
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = model
        request.model_spec.signature_name = signature_name
        if version is not None:
            request.model_spec.version.value = version
        for name, values in inputs.items():
            tensors.fill(request.inputs[name], values)
        response = self._call(self._prediction.Predict, request, model, deadline)
        return {name: tensors.to_array(proto) for name, proto in response.outputs.items()}

    def status(self, model: str) -> list[VersionStatus]:
        """Where the model's versions stand, newest first.

        Raises:
            ServingError: The call failed; `ModelNotFound` if the server does not know the model.
        """
        versions = self._status(model, time.monotonic() + self.timeout_seconds)
        return sorted(versions, key=lambda status: -status.version)

    def _status(self, model: str, deadline: float) -> list[VersionStatus]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        response = self._call(self._models.GetModelStatus, request, model, deadline)
        names = get_model_status_pb2.ModelVersionStatus.State
        return [
            VersionStatus(entry.version, names.Name(entry.state), entry.status.error_message)
            for entry in response.model_version_status
        ]

    def wait_until_ready(self, model: str, timeout_seconds: float) -> None:
        """Blocks until a version of the model is AVAILABLE.

        Raises:
            ServingError: It was not in time: what the last look found.
        """
        deadline = time.monotonic() + timeout_seconds
        failure: ServingError | None = None
        while True:
            found: list[VersionStatus] = []
            try:
                found, failure = self._status(model, deadline), None
            except (ModelNotFound, Unavailable) as error:
                failure = error
            except DeadlineExceeded as error:  # says less than what an earlier look found
                failure = failure or error
            if any(status.state == "AVAILABLE" for status in found):
                return
            if time.monotonic() + _FIRST_WAIT_SECONDS >= deadline:
                seen = ", ".join(f"version {s.version} {s.state} {s.error}".strip() for s in found)
                details = f"not ready after {timeout_seconds:g} s: {failure.details if failure else seen}"
                error_type = type(failure) if failure else Unavailable
                code = failure.code if failure else grpc.StatusCode.UNAVAILABLE
                raise error_type(self.target, model, code, details)
            time.sleep(_FIRST_WAIT_SECONDS)

    def _call(self, method: Callable[..., Any], request: Any, model: str, deadline: float) -> Any:
        wait = _FIRST_WAIT_SECONDS
        for left in range(self.retries, -1, -1):
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.0))
            except grpc.RpcError as error:
                code = error.code()
                if code is not grpc.StatusCode.UNAVAILABLE or not left or time.monotonic() + wait >= deadline:
                    raise _ERRORS.get(code, ServingError)(self.target, model, code, error.details() or "") from error
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
