"""What metrics over a model's own signature `evaluate` share: one pass over the answers yields all of them.

TFMA asks for each metric by itself. All of a kind come from one combiner, under private keys; each is handed on under
its own name, and TFMA leaves out a computation that it has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
from tensorflow_model_analysis.metrics import metric_types


class Sums(Protocol):
    """What a pass has counted so far."""

    def merge(self, other: Any) -> None:
        """Counts what the other has counted."""

    def values(self) -> dict[str, float]:
        """The metrics by name."""


class AnswerCombiner(beam.CombineFn):
    """Counts examples into sums; a subclass says how in `add_input`.

    Args:
        model: Whose answers.
        names: Of the metrics.
        features: Of an example that are read.
        start: Makes sums of nothing.
    """

    def __init__(self, model: str, names: Sequence[str], features: Sequence[str], start: Callable[[], Sums]) -> None:
        self._model, self._start, self.features = model, start, list(features)
        self.keys = {name: metric_types.MetricKey(f"_{name}", model_name=model) for name in names}

    def create_accumulator(self) -> Any:
        """Sums of nothing."""
        return self._start()

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Any:
        """All of them together."""
        total = self._start()
        for part in accumulators:
            total.merge(part)
        return total

    def extract_output(self, accumulator: Sums) -> dict[metric_types.MetricKey, float]:
        """The metrics by their private keys."""
        return {self.keys[name]: value for name, value in accumulator.values().items()}

    def answered(self, element: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The label of an example, and one row of each output."""
        label, answers = element.get_labels(self._model), element.get_predictions(self._model)
        return float(np.ravel(label)[0]), {name: np.ravel(value) for name, value in answers.items()}


def computations(
    name: str, model_names: Sequence[str] | None, combiner_of: Callable[[str], AnswerCombiner]
) -> list[Any]:
    """What TFMA computes for one metric.

    Args:
        name: Of the metric.
        model_names: The models that are judged; None is one without a name.
        combiner_of: Makes the combiner for a model.
    """
    found: list[Any] = []
    for model in model_names or [""]:
        combiner = combiner_of(model)
        features = metric_types.FeaturePreprocessor(feature_keys=combiner.features)
        found.append(metric_types.MetricComputation(list(combiner.keys.values()), [features], combiner))
        found.append(_handed_on(metric_types.MetricKey(name, model_name=model), combiner.keys[name]))
    return found


def _handed_on(key: metric_types.MetricKey, private: metric_types.MetricKey) -> metric_types.DerivedMetricComputation:
    return metric_types.DerivedMetricComputation(keys=[key], result=lambda metrics: {key: metrics[private]})
