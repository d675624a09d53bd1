"""How often a topic representation is right on each of its tasks, as TFMA metrics over its own outputs."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import numpy as np
from tensorflow_model_analysis.metrics import metric_types


class TaskHits(metric_types.Metric):
    """Share of videos that are answered rightly, among those of which the right answer is known; NaN without any.

    The model says both itself: its outputs `<task>_hit` and `<task>_known`.

    Args:
        name: `<task>_hits`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_computations, name=name)


metric_types.register_metric(TaskHits)


def _computations(name: str, model_names: list[str] | None = None, **unused: Any) -> list[Any]:
    keys = [metric_types.MetricKey(name, model_name=model) for model in model_names or [""]]
    return [metric_types.MetricComputation(keys=[key], preprocessors=None, combiner=_Share(key)) for key in keys]


class _Share(beam.CombineFn):
    def __init__(self, key: metric_types.MetricKey) -> None:
        self._key, self._task = key, key.name.removesuffix("_hits")

    def create_accumulator(self) -> Any:
        return np.zeros(2)

    def add_input(self, accumulator: Any, element: Any) -> Any:
        answers = element.prediction.get(self._key.model_name, element.prediction)
        return accumulator + [np.sum(answers[f"{self._task}_{part}"]) for part in ("hit", "known")]

    def merge_accumulators(self, accumulators: Any) -> Any:
        return np.sum(list(accumulators), axis=0)

    def extract_output(self, accumulator: Any) -> dict[metric_types.MetricKey, float]:
        hits, known = accumulator
        return {self._key: float(hits / known) if known else float("nan")}
