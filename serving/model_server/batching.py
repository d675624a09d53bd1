"""Dynamic batching: concurrent requests for one signature are joined along axis 0 and answered by one run.

The queue, its threads and its parameters are TensorFlow's own (`BatchFunction`, the op behind
`tf.nondifferentiable_batch_function`), which is the scheduler that TensorFlow Serving uses as well. Differing from it,
requests are joined only where all other dimensions agree, and a request whose batch failed is run once more alone, so
that a bad request fails nobody else.

Reference: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import tensorflow as tf

from serving.model_server.errors import RequestError, invalid

if TYPE_CHECKING:
    from serving.model_server.configuration import BatchingParameters
    from serving.model_server.servable import Signature

Array = np.ndarray[Any, Any]

_FULL = "The batch scheduling queue to which this task was submitted is full"
_MOST_SHAPES = 32  # of one signature: a queue each, so that callers cannot make more and more of them

_queues = itertools.count()
_logger = logging.getLogger(__name__)


class Batcher:
    """Makes signatures that batch; all of them share the same threads.

    Attributes:
        parameters: TensorFlow Serving's BatchingParameters. TensorFlow keeps the threads, which idle between requests,
            for as long as the process lives; batchers of equal parameters share them.
    """

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters

    def wrap(self, signature: Signature) -> Signature:
        """The signature with a `call` that joins concurrent requests.

        Args:
            signature: Of a loaded model.

        Returns:
            The batching one; the same one where inputs or outputs have no batch dimension to join along.
        """
        shapes = [spec.shape for spec in (*signature.inputs.values(), *signature.outputs.values())]
        if not signature.inputs or not all(shape.rank and shape[0] is None for shape in shapes):
            _logger.info("a signature without a batch dimension is not batched: inputs %s", dict(signature.inputs))
            return signature
        return dataclasses.replace(signature, call=_Batched(signature, self.parameters))


class _Batched:
    """Called as the signature is.

    Raises:
        RequestError: INVALID_ARGUMENT, in TensorFlow Serving's words: the inputs differ in their number of rows, or
            there are more than `max_batch_size`. UNAVAILABLE: the queue is full.
    """

    def __init__(self, signature: Signature, parameters: BatchingParameters) -> None:
        self._alone = signature.call
        self._inputs, self._outputs = signature.inputs, signature.outputs
        self._parameters = parameters
        self._graphs: dict[tuple[Any, ...], Callable[..., list[tf.Tensor]]] = {}
        self._tracing = threading.Lock()

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        rows, *others = {array.shape[0] for array in inputs.values()}
        if others:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        limit = self._parameters.max_batch_size
        if rows > limit:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limit}")
        graph = self._graph(tuple(tuple(inputs[name].shape[1:]) for name in self._inputs)) if rows else None
        if graph is None:  # the op answers no rows with shape [0], whatever the shape is
            return self._alone(**inputs)
        try:
            answers = graph(*(tf.constant(inputs[name], spec.dtype) for name, spec in self._inputs.items()))
            return {name: answer.numpy() for name, answer in zip(self._outputs, answers, strict=True)}
        except tf.errors.UnavailableError as error:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, _FULL) from error
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter: see predict.py
            return self._alone(**inputs)

    def _graph(self, shape: tuple[Any, ...]) -> Callable[..., list[tf.Tensor]] | None:
        """What batches requests of these dimensions; None: the callers have tried too many."""
        graph = self._graphs.get(shape)
        if graph is None and len(self._graphs) < _MOST_SHAPES:
            with self._tracing:
                graph = self._graphs.get(shape) or self._graphs.setdefault(shape, self._trace(shape))
        return graph

    def _trace(self, shape: tuple[Any, ...]) -> Callable[..., list[tf.Tensor]]:
        specs = [
            tf.TensorSpec([None, *rest], spec.dtype, name)
            for (name, spec), rest in zip(self._inputs.items(), shape, strict=True)
        ]
        parameters = self._parameters
        types = [spec.dtype for spec in self._outputs.values()]
        batched = weakref.ref(self)  # TensorFlow never lets go of what it calls back; a caller holds us meanwhile

        def run(*arrays: Array) -> list[Array]:
            return cast(_Batched, batched())._together(*arrays)

        def call_back(*inputs: tf.Tensor) -> list[tf.Tensor]:
            return list(tf.numpy_function(run, inputs, types))

        body = tf.function(call_back, input_signature=specs, autograph=False).get_concrete_function()

        def enqueue(*inputs: tf.Tensor) -> list[tf.Tensor]:
            return list(
                tf.raw_ops.BatchFunction(
                    f=body,
                    in_tensors=list(inputs),
                    captured_tensors=[],
                    Tout=types,
                    num_batch_threads=parameters.num_batch_threads,
                    max_batch_size=parameters.max_batch_size,
                    batch_timeout_micros=parameters.batch_timeout_micros,
                    max_enqueued_batches=parameters.max_enqueued_batches,
                    allowed_batch_sizes=list(parameters.allowed_batch_sizes),
                    shared_name=f"batching/{parameters}",
                    batching_queue=str(next(_queues)),
                    enable_large_batch_splitting=False,
                )
            )

        return tf.function(enqueue, input_signature=specs, autograph=False).get_concrete_function()

    def _together(self, *arrays: Array) -> list[Array]:
        return list(self._alone(**dict(zip(self._inputs, arrays, strict=True))).values())
