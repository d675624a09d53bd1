"""The gRPC services of TensorFlow Serving: PredictionService and ModelService."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.model_server.errors import RequestError, invalid
from serving.model_server.models import Models
from serving.model_server.predict import predict

SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")

_logger = logging.getLogger(__name__)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other methods answer UNIMPLEMENTED."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Runs a signature."""
        return _answer(context, lambda: predict(self._models.find(request.model_spec), request))

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The signatures of a model."""
        return _answer(context, lambda: model_metadata(self._models, request))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Where the versions of a model stand."""
        return _answer(context, lambda: model_status(self._models, request.model_spec))


def model_metadata(models: Models, request: Any) -> Any:
    """A GetModelMetadataResponse; `signature_def` is the one field there is.

    Raises:
        RequestError: No such model, or another field.
    """
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    servable = models.find(request.model_spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in servable.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    response.metadata["signature_def"].Pack(signatures)
    return response


def model_status(models: Models, spec: Any) -> Any:
    """A GetModelStatusResponse.

    Raises:
        RequestError: No such model or version.
    """
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in models.status(spec):
        status = response.model_version_status.add(version=version.version, state=version.state)
        status.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if version.error else grpc.StatusCode.OK.value[0]
        status.status.error_message = version.error
    return response


def _answer(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    if not context.is_active():  # the caller gave up while the request waited for a thread
        return context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
    try:
        return work()
    except RequestError as error:
        failure = error
    except Exception as error:
        _logger.exception("a request failed")
        failure = RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    return context.abort(failure.code, failure.message)
