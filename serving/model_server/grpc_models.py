"""TensorFlow Serving's ModelService: where the versions of a model stand, and which models are served."""

from __future__ import annotations

from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc

from serving.model_server.grpc_service import answer
from serving.model_server.models import Models


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Where the versions of a model stand."""
        return answer(context, lambda: model_status(self._models, request.model_spec))

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Other models, versions or labels from now on; a refused configuration changes nothing."""
        return answer(context, lambda: self._reload(request.config))

    def _reload(self, config: Any) -> Any:
        self._models.reload(config)
        return model_management_pb2.ReloadConfigResponse()


def model_status(models: Models, spec: Any) -> Any:
    """A GetModelStatusResponse.

    Raises:
        RequestError: No such model or version.
    """
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in models.status(spec):
        status = response.model_version_status.add(version=version.version, state=version.state)
        status.status.error_code = version.code
        status.status.error_message = version.error
    return response
