"""Recall at k by user, as a TFMA metric: TFMA has NDCG for queries, but no recall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util

Sums = tuple[np.ndarray, np.ndarray]  # of recalls and of users, each [number of k]


class RecallAtK(metric_types.Metric):
    """Mean over users of (positives among the k best scored) / (positives).

    Users without a positive, and users with no more than k examples, do not count: the recall of the latter is 1 in
    whatever order.

    The MetricsSpec must name a `query_key` and `binarize.top_k_list`.

    Args:
        name: Metric name.
    """

    def __init__(self, name: str = "recall") -> None:
        super().__init__(_computations, name=name)


metric_types.register_metric(RecallAtK)


def _computations(
    name: str,
    eval_config: tfma.EvalConfig | None = None,
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    sub_keys: list[Any] | None = None,
    example_weighted: bool = False,
    query_key: str = "",
) -> list[Any]:
    tops = [key for key in sub_keys or [] if key is not None and key.top_k is not None]
    if not query_key or not tops:
        raise ValueError(f"{name} needs a query_key and binarize.top_k_list, got query_key={query_key!r}, {sub_keys}")
    computations = []
    for model_name in model_names or [""]:
        for output_name in output_names or [""]:
            keys = [
                metric_types.MetricKey(name, model_name=model_name, output_name=output_name, sub_key=top)
                for top in tops
            ]
            computations.append(
                metric_types.MetricComputation(
                    keys=keys,
                    preprocessors=[metric_types.CombinedFeaturePreprocessor(feature_keys=[query_key])],
                    combiner=_RecallCombiner(keys, eval_config, model_name, output_name),
                )
            )
    return computations


def recall_at_k(labels: np.ndarray, scores: np.ndarray, k: int) -> float | None:
    """Recall of one user.

    Args:
        labels: [n], 1 for a positive.
        scores: [n], higher is better; ties keep the given order.
        k: How many of the best are looked at, at least 1.

    Returns:
        A share in [0, 1], or None where it says nothing: without a positive, or with no more than k examples.
    """
    positives = labels.sum()
    if positives <= 0 or len(labels) <= k:
        return None
    best = np.argsort(-scores, kind="stable")[:k]
    return float(labels[best].sum() / positives)


class _RecallCombiner(beam.CombineFn):
    """Accumulates, for each k, the sum of recalls and the number of users that count."""

    def __init__(self, keys: list[Any], eval_config: tfma.EvalConfig | None, model: str, output: str) -> None:
        self._keys = keys
        self._eval_config = eval_config
        self._model = model
        self._output = output

    def create_accumulator(self) -> Sums:
        return np.zeros(len(self._keys)), np.zeros(len(self._keys), int)

    def add_input(self, accumulator: Sums, element: Any) -> Sums:
        sums, users = accumulator
        labels, scores, _ = next(
            metric_util.to_label_prediction_example_weight(
                element,
                eval_config=self._eval_config,
                model_name=self._model,
                output_name=self._output,
                flatten=False,
                require_single_example_weight=True,
            )
        )
        recalls = [recall_at_k(labels.ravel(), scores.ravel(), key.sub_key.top_k) for key in self._keys]
        told = np.array([recall is not None for recall in recalls])
        return sums + np.array([recall or 0.0 for recall in recalls]), users + told

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        parts = list(accumulators)
        return np.sum([sums for sums, _ in parts], axis=0), np.sum([users for _, users in parts], axis=0)

    def extract_output(self, accumulator: Sums) -> dict[Any, float]:
        sums, users = accumulator
        return {key: sums[i] / users[i] if users[i] else float("nan") for i, key in enumerate(self._keys)}
