"""Dynamic batching: concurrent requests for one signature are joined along axis 0 and answered by one run.

The queue, its threads and its parameters are TensorFlow's own (`BatchFunction`, the op behind
`tf.nondifferentiable_batch_function`), added to the model's graph; TensorFlow Serving uses the same scheduler.
Differing from it, requests are joined only where all other dimensions agree, and a request whose batch failed is run
once more alone, so that a bad request fails nobody else.

Reference: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import tensorflow as tf

from serving.model_server.errors import RequestError, invalid
from serving.model_server.servable import Array, calling

if TYPE_CHECKING:
    from serving.model_server.configuration import BatchingParameters
    from serving.model_server.servable import Signature

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

    def wrap(self, signature: Signature, session: tf.compat.v1.Session) -> Signature:
        """The signature with a `call` that joins concurrent requests.

        Args:
            signature: Of a loaded model.
            session: The model's.

        Returns:
            The batching one; the same one where inputs or outputs have no batch dimension to join along, or where it
            is not one function, as TensorFlow 2 saves them.
        """
        shapes = [spec.shape for spec in (*signature.inputs.values(), *signature.outputs.values())]
        function = _function(signature, session.graph)
        if not signature.inputs or not function or not all(shape.rank and shape[0] is None for shape in shapes):
            _logger.info("a signature is not batched: inputs %s", dict(signature.inputs))
            return signature
        return dataclasses.replace(signature, call=_Batched(signature, session, function, self.parameters))


def _function(signature: Signature, graph: tf.Graph) -> tf.Operation | None:
    """The one call of a function that takes all inputs first, and gives all outputs."""
    feeds, fetches = signature.tensors
    if not all(fetches):
        return None
    operations = {graph.get_tensor_by_name(name).op for name in fetches}
    operation = operations.pop()
    given = sorted(tensor.name for tensor in operation.inputs[: len(feeds)])
    is_call = operation.type in ("PartitionedCall", "StatefulPartitionedCall")
    return operation if is_call and not operations and given == sorted(feeds) else None


class _Batched:
    """Called as the signature is.

    Raises:
        RequestError: INVALID_ARGUMENT, in TensorFlow Serving's words: the inputs differ in their number of rows, or
            there are more than `max_batch_size`. UNAVAILABLE: the queue is full.
    """

    def __init__(
        self,
        signature: Signature,
        session: tf.compat.v1.Session,
        function: tf.Operation,
        parameters: BatchingParameters,
    ) -> None:
        self._signature, self._session, self._function = signature, session, function
        self._alone, self._inputs = signature.call, signature.inputs
        self._parameters = parameters
        self._calls: dict[tuple[Any, ...], Callable[..., dict[str, Array]]] = {}
        self._building = threading.Lock()

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        rows, *others = {array.shape[0] for array in inputs.values()}
        if others:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        limit = self._parameters.max_batch_size
        if rows > limit:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limit}")
        if rows and not self._calls:
            self._alone(**inputs)  # a request warms up both ways to an answer: this one is for batches that fail
        call = self._call(tuple(inputs[name].shape[1:] for name in self._inputs)) if rows else None
        if call is None:  # the op answers no rows with shape [0], whatever the shape is
            return self._alone(**inputs)
        try:
            return call(**inputs)
        except tf.errors.UnavailableError as error:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, _FULL) from error
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter: see predict.py
            return self._alone(**inputs)

    def _call(self, shape: tuple[Any, ...]) -> Callable[..., dict[str, Array]] | None:
        """What batches requests of these dimensions; None: the callers have tried too many."""
        call = self._calls.get(shape)
        if call is None and len(self._calls) < _MOST_SHAPES:
            with self._building:
                call = self._calls.get(shape) or self._calls.setdefault(shape, self._build(shape))
        return call

    def _build(self, shape: tuple[Any, ...]) -> Callable[..., dict[str, Array]]:
        parameters, (feeds, fetches) = self._parameters, self._signature.tensors
        arguments = list(self._function.inputs)
        with self._session.graph.as_default() as graph:
            placeholders = {
                feed: tf.compat.v1.placeholder(spec.dtype, [None, *rest])
                for feed, spec, rest in zip(feeds, self._inputs.values(), shape, strict=True)
            }
            outputs = tf.raw_ops.BatchFunction(
                f=self._function.get_attr("f").name,
                in_tensors=[placeholders[tensor.name] for tensor in arguments[: len(feeds)]],
                captured_tensors=arguments[len(feeds) :],
                Tout=[output.dtype for output in self._function.outputs],
                num_batch_threads=parameters.num_batch_threads,
                max_batch_size=parameters.max_batch_size,
                batch_timeout_micros=parameters.batch_timeout_micros,
                max_enqueued_batches=parameters.max_enqueued_batches,
                allowed_batch_sizes=list(parameters.allowed_batch_sizes),
                shared_name=f"batching/{parameters}",
                batching_queue=str(next(_queues)),
                enable_large_batch_splitting=False,
            )
            batched = [outputs[graph.get_tensor_by_name(fetch).value_index].name for fetch in fetches]
        fed = [placeholders[feed].name for feed in feeds]
        return calling(self._session, fed, batched, self._inputs, self._signature.outputs)
