"""Recall at k by user, as a TFMA metric: TFMA has NDCG for queries, but no recall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util


class RecallAtK(metric_types.Metric):
    """Mean over users of (positives among the k best scored) / (positives), over users with any positive.

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
        A share in [0, 1], or None without any positive.
    """
    positives = labels.sum()
    if positives <= 0:
        return None
    best = np.argsort(-scores, kind="stable")[:k]
    return float(labels[best].sum() / positives)


class _RecallCombiner(beam.CombineFn):
    """Accumulates, for each k, the sum of recalls; and the number of users."""

    def __init__(self, keys: list[Any], eval_config: tfma.EvalConfig | None, model: str, output: str) -> None:
        self._keys = keys
        self._eval_config = eval_config
        self._model = model
        self._output = output

    def create_accumulator(self) -> tuple[np.ndarray, int]:
        return np.zeros(len(self._keys)), 0

    def add_input(self, accumulator: tuple[np.ndarray, int], element: Any) -> tuple[np.ndarray, int]:
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
        if any(recall is None for recall in recalls):
            return accumulator
        return sums + np.array(recalls), users + 1

    def merge_accumulators(self, accumulators: Iterable[tuple[np.ndarray, int]]) -> tuple[np.ndarray, int]:
        parts = list(accumulators)
        return np.sum([sums for sums, _ in parts], axis=0), sum(users for _, users in parts)

    def extract_output(self, accumulator: tuple[np.ndarray, int]) -> dict[Any, float]:
        sums, users = accumulator
        return {key: sums[i] / users if users else float("nan") for i, key in enumerate(self._keys)}
