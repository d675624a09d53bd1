"""Prometheus metrics under TensorFlow Serving's names, so that its dashboards and alerts read this server too."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serving.model_server.errors import RequestError

_PREFIX = ":tensorflow:serving:"
_MICROSECONDS = tuple(10 * 1.8**power for power in range(33))  # to about 20 minutes
_EXAMPLES = tuple(2.0**power for power in range(15))


@dataclass
class Call:
    """What a request may have, and what it found out about itself.

    Attributes:
        model: Its name, once it was found; empty before, lest a client fill the memory with names it makes up.
        max_rows: How many rows it may have.
        examples: How many tf.Examples came with it.
        runtime_seconds: How long TensorFlow worked on it.
    """

    model: str = ""
    max_rows: float = math.inf
    examples: int = 0
    runtime_seconds: float = 0.0


class Metrics:
    """What one server has answered, and how fast."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("request_count", "The total number of requests.", ("model_name", "status"))
        self._latency = self._histogram(
            "request_latency", "Wall time (us) of requests that succeeded.", ("model_name", "API", "entrypoint")
        )
        self._runtime = self._histogram(
            "runtime_latency", "Wall time (us) in TensorFlow.", ("model_name", "API", "runtime")
        )
        self._examples = self._histogram("request_example_counts", "tf.Examples per request.", ("model",), _EXAMPLES)
        self._example_total = self._counter("request_example_count", "The total number of tf.Examples.", ("model",))

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(_PREFIX + name, documentation, labels, registry=self._registry)

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _MICROSECONDS
    ) -> Histogram:
        return Histogram(_PREFIX + name, documentation, labels, buckets=buckets, registry=self._registry)

    @contextmanager
    def call(self, api: str, entrypoint: str) -> Iterator[Call]:
        """Observes the request that its block answers.

        Args:
            api: `Predict`, `Classify`, `Regress` or `MultiInference`.
            entrypoint: `GRPC` or `REST`.
        """
        call = Call()
        started = time.perf_counter()
        try:
            yield call
        except Exception as error:
            code = error.code if isinstance(error, RequestError) else grpc.StatusCode.INTERNAL
            self._requests.labels(call.model, code.name).inc()
            raise
        self._requests.labels(call.model, grpc.StatusCode.OK.name).inc()
        self._latency.labels(call.model, api, entrypoint).observe((time.perf_counter() - started) * 1e6)
        self._runtime.labels(call.model, api, "TF2").observe(call.runtime_seconds * 1e6)
        if call.examples:
            self._examples.labels(call.model).observe(call.examples)
            self._example_total.labels(call.model).inc(call.examples)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        # The library ends every counter's name in _total; TensorFlow Serving does so in one only.
        return generate_latest(self._registry).replace(b":request_count_total", b":request_count")
