"""Requests that a version answers before it takes traffic, so that no client waits for what a first call sets up.

They are a TFRecord file of tensorflow.serving.PredictionLog in the version's folder, as TensorFlow Serving has it; one
that fails fails the version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server.errors import RequestError, invalid
from serving.model_server.inference import classify, multi_inference, regress
from serving.model_server.metrics import Call
from serving.model_server.predict import predict
from serving.model_server.servable import Servable

MAX_RECORDS = 1000

_RUN: dict[str, Callable[[Servable, Any, Call], Any]] = {
    "predict_log": predict,
    "classify_log": classify,
    "regress_log": regress,
    "multi_inference_log": multi_inference,
}

_logger = logging.getLogger(__name__)


def warm_up(servable: Servable, path: str) -> None:
    """Runs the warm-up requests in a version's folder, if there are any.

    Raises:
        RequestError: The file is damaged or too long, or a request is of an unknown kind or fails; in TensorFlow
            Serving's words where it has some.
    """
    file = tf.io.gfile.join(path, "assets.extra", "tf_serving_warmup_requests")
    if not tf.io.gfile.exists(file):
        return
    count = 0
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(file).as_numpy_iterator(), 1):
            if count > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
            _run(servable, record, file)
    except tf.errors.DataLossError as error:
        message = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise RequestError(grpc.StatusCode.DATA_LOSS, message) from error
    _logger.info("%s version %d: answered %d warm-up requests", servable.name, servable.version, count)


def _run(servable: Servable, record: bytes, file: str) -> None:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid(f"Failed to parse warmup record from {file}: {error}") from error
    kind = log.WhichOneof("log_type")
    if kind not in _RUN:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind} in {file}")
    _RUN[kind](servable, getattr(log, kind).request, Call())
