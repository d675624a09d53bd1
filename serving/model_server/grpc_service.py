"""The gRPC service PredictionService of TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    model_service_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server.errors import as_request_error, invalid
from serving.model_server.inference import classify, multi_inference, regress
from serving.model_server.metrics import Call, Metrics
from serving.model_server.models import Models
from serving.model_server.predict import predict
from serving.model_server.servable import Servable

# Their files' descriptors must be loaded, too, for reflection to describe them.
SERVICES = tuple(
    service.full_name
    for file in (prediction_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        models: What is served.
        metrics: Observes the calls.
    """

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Runs a signature on tensors."""
        return self._serve(context, "Predict", request.model_spec, request, predict)

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Classes and scores of tf.Examples."""
        return self._serve(context, "Classify", request.model_spec, request, classify)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """A value for each of some tf.Examples."""
        return self._serve(context, "Regress", request.model_spec, request, regress)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Several signatures of the first task's model on the same tf.Examples."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        return self._serve(context, "MultiInference", spec, request, multi_inference)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The signatures of a model."""
        return answer(context, lambda: model_metadata(self._models, request))

    def _serve(
        self,
        context: grpc.ServicerContext,
        api: str,
        spec: Any,
        request: Any,
        work: Callable[[Servable, Any, Call], Any],
    ) -> Any:
        return answer(context, lambda: serve(self._models, self._metrics.call(api, "GRPC"), spec, request, work))


def serve(
    models: Models,
    observed: AbstractContextManager[Call],
    spec: Any,
    request: Any,
    work: Callable[[Servable, Any, Call], Any],
) -> Any:
    """Lets the servable that `spec` asks for do the work, and keeps it loaded meanwhile.

    Raises:
        RequestError: No such servable, or what the work raises.
    """
    with observed as call, models.serving(spec) as servable:
        call.model = servable.name
        return work(servable, request, call)


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


def answer(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    """What `work` returns; what it raises ends the call with the code that stands for it."""
    if not context.is_active():  # the caller gave up while the request waited for a thread
        return context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
    try:
        return work()
    except Exception as error:
        failure = as_request_error(error)
    return context.abort(failure.code, failure.message)
