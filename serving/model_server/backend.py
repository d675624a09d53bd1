"""What both ports ask: the models, the metrics, and what requests may take, for gRPC and REST alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2

from serving.model_server.errors import invalid
from serving.model_server.metrics import Call, Metrics
from serving.model_server.models import Models
from serving.model_server.servable import Servable

MAX_ROWS = 10_000
MAX_REQUEST_BYTES = 64 * 1024 * 1024
MAX_HELD_BYTES = 512 * 1024 * 1024  # of all requests together; each takes several times that while it is answered
TOO_MANY = "too many large requests at once: try again"

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class Backend:
    """Answers requests, wherever they come from.

    Args:
        models: What is served.
        metrics: Observes the requests.
        max_rows: How many rows one may have.
    """

    def __init__(self, models: Models, metrics: Metrics, max_rows: int = MAX_ROWS) -> None:
        self.models = models
        self.metrics = metrics
        self._max_rows = max_rows
        self._held_bytes = 0
        self._holding = threading.Lock()

    def hold(self, count: int) -> bool:
        """Counts so many more bytes of requests (or fewer, below 0); whether they are not too many now."""
        with self._holding:
            self._held_bytes += count
            return self._held_bytes <= MAX_HELD_BYTES

    def run(
        self,
        work: Callable[[Servable, _Asked, Call], _Answer],
        api: str,
        entrypoint: str,
        spec: Any,
        request: _Asked,
    ) -> _Answer:
        """Lets the servable that `spec` asks for do the work, and keeps it loaded meanwhile.

        Raises:
            RequestError: No such servable, or what the work raises.
        """
        with self.metrics.call(api, entrypoint) as call, self.models.serving(spec) as servable:
            call.model, call.max_rows = servable.name, self._max_rows
            return work(servable, request, call)

    def metadata(self, request: Any) -> Any:
        """A GetModelMetadataResponse; `signature_def` is the one field there is.

        Raises:
            RequestError: No such model, or another field.
        """
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        servable = self.models.find(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in servable.signature_defs.items():
            signatures.signature_def[name].CopyFrom(definition)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        """A GetModelStatusResponse.

        Raises:
            RequestError: No such model or version.
        """
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self.models.status(request.model_spec):
            status = response.model_version_status.add(version=version.version, state=version.state)
            status.status.error_code = version.code
            status.status.error_message = version.error
        return response

    def reload(self, request: Any) -> Any:
        """Other models, versions or labels from now on.

        Raises:
            RequestError: The configuration is refused, and changes nothing; or a new model does not load.
        """
        self.models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()
