"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server.backend import TOO_MANY, Backend
from serving.model_server.errors import RequestError, as_request_error
from serving.model_server.inference import classify, multi_inference, regress
from serving.model_server.predict import predict

# Their files' descriptors must be loaded, too, for reflection to describe them.
SERVICES = tuple(
    service.full_name
    for file in (prediction_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


def _method(work: Callable[[Backend, Any], Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """A method that answers what `work` returns; what it raises ends the call with the code that stands for it."""

    def method(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        if not context.is_active():  # the caller gave up while the request waited for a thread
            return context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
        size = request.ByteSize()
        try:
            if not self.backend.hold(size):
                raise RequestError(grpc.StatusCode.UNAVAILABLE, TOO_MANY)
            return work(self.backend, request)
        except Exception as error:
            failure = as_request_error(error)
        finally:
            self.backend.hold(-size)
        return context.abort(failure.code, failure.message)

    return method


def _spec_of_tasks(request: Any) -> Any:
    return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference (of the first task's model) and GetModelMetadata."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    Predict = _method(lambda backend, asked: backend.run(predict, "Predict", "GRPC", asked.model_spec, asked))
    Classify = _method(lambda backend, asked: backend.run(classify, "Classify", "GRPC", asked.model_spec, asked))
    Regress = _method(lambda backend, asked: backend.run(regress, "Regress", "GRPC", asked.model_spec, asked))
    MultiInference = _method(
        lambda backend, asked: backend.run(multi_inference, "MultiInference", "GRPC", _spec_of_tasks(asked), asked)
    )
    GetModelMetadata = _method(Backend.metadata)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Where the versions of a model stand, and which models are served."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    GetModelStatus = _method(Backend.status)
    HandleReloadConfigRequest = _method(Backend.reload)
