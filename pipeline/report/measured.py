"""What TFMA measured, as plain numbers by slice and model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import tensorflow_model_analysis as tfma

SliceKey = tuple[tuple[str, str], ...]
OVERALL: SliceKey = ()
EXAMPLES = "example_count"
CALIBRATION_POINTS = 10


@dataclass(frozen=True)
class Measured:
    """The metrics of one slice.

    Attributes:
        slice: (feature, value) pairs; empty for all examples.
        candidate: Values of the model under evaluation by metric name; `ndcg@10` for a metric at a cut-off.
        baseline: The same of the model now served; empty where there was none.
    """

    slice: SliceKey
    candidate: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The slice in words."""
        return slice_name(self.slice)

    @property
    def features(self) -> tuple[str, ...]:
        """The features the slice was cut by."""
        return tuple(feature for feature, _ in self.slice)

    @property
    def value(self) -> str:
        """The slice's values without the features; `(none)` for examples that have none."""
        return ", ".join(value or "(none)" for _, value in self.slice)

    @property
    def examples(self) -> int | None:
        """How many examples the slice holds, where that was counted."""
        count = self.candidate.get(EXAMPLES)
        return None if count is None else round(count)

    @property
    def metrics(self) -> dict[str, float]:
        """The candidate's values without the example counts."""
        return {name: value for name, value in self.candidate.items() if not name.endswith(EXAMPLES)}


def slice_name(key: SliceKey) -> str:
    """`all examples`, or `feature = value` pairs."""
    return ", ".join(f"{feature} = {value or '(none)'}" for feature, value in key) or "all examples"


def slice_key(proto: Any) -> SliceKey:
    """The key in a TFMA SliceKey message."""
    return tuple((single.column, _slice_value(single)) for single in proto.single_slice_keys)


def metric_name(key: Any) -> str:
    """A metric's name in a TFMA MetricKey message: `auc`, or `ndcg@10` where it has a cut-off."""
    return f"{key.name}@{key.sub_key.top_k.value}" if key.sub_key.HasField("top_k") else str(key.name)


@lru_cache(maxsize=16)  # TFMA has no way to read the configuration alone, and reading all of it takes a while
def evaluated(evaluation_uri: str) -> tfma.EvalConfig:
    """What an evaluation was asked to do: models, metrics, slices, thresholds."""
    return tfma.load_eval_result(evaluation_uri).config


def baseline_name(config: tfma.EvalConfig) -> str | None:
    """What the evaluation calls the model now served; None where it had none."""
    return next((spec.name for spec in config.model_specs if spec.is_baseline), None)


def measured(evaluation_uri: str) -> list[Measured]:
    """Every slice of an evaluation, all examples first.

    Args:
        evaluation_uri: Folder of TFMA's output.
    """
    served = baseline_name(evaluated(evaluation_uri))
    slices = [_measured(record, served) for record in tfma.load_metrics(evaluation_uri)]
    return sorted((s for s in slices if s.candidate), key=lambda s: s.slice)


def confusion(evaluation_uri: str) -> dict[tuple[int, int], float]:
    """How many of all examples have (label, answer), as indices of classes; empty if that was not measured."""
    served = baseline_name(evaluated(evaluation_uri))
    for record in tfma.load_metrics(evaluation_uri):
        for entry in record.metric_keys_and_values if slice_key(record.slice_key) == OVERALL else ():
            matrices = entry.value.multi_class_confusion_matrix_at_thresholds.matrices
            if matrices and not entry.key.is_diff and (served is None or entry.key.model_name != served):
                return {(e.actual_class_id, e.predicted_class_id): e.num_weighted_examples for e in matrices[0].entries}
    return {}


def calibration(evaluation_uri: str) -> list[tuple[float, float]]:
    """(mean score, share of positives) of all examples in ten ranges of the score; empty if that was not recorded."""
    served = baseline_name(evaluated(evaluation_uri))
    for record in tfma.load_plots(evaluation_uri):
        if slice_key(record.slice_key) != OVERALL:
            continue
        for entry in record.plot_keys_and_values:
            buckets = entry.value.calibration_histogram_buckets.buckets
            if buckets and (served is None or entry.key.model_name != served):
                return _points(buckets)
    return []


def _measured(record: Any, served: str | None) -> Measured:
    found = Measured(slice_key(record.slice_key))
    for entry in record.metric_keys_and_values:
        key = entry.key
        if key.is_diff or entry.value.WhichOneof("type") != "double_value":
            continue  # differences are derived; an omitted small slice holds a message instead of a value
        values = found.baseline if served is not None and key.model_name == served else found.candidate
        values[metric_name(key)] = entry.value.double_value.value
    return found


def _slice_value(single: Any) -> str:
    kind = single.WhichOneof("kind")
    value = getattr(single, kind) if kind else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:g}"


def _points(buckets: Iterable[Any]) -> list[tuple[float, float]]:
    sums = [[0.0, 0.0, 0.0] for _ in range(CALIBRATION_POINTS)]  # examples, scores, labels
    for bucket in buckets:
        weight = bucket.num_weighted_examples.value
        if weight <= 0:
            continue
        scores = bucket.total_weighted_refined_prediction.value
        place = min(max(int(scores / weight * CALIBRATION_POINTS), 0), CALIBRATION_POINTS - 1)
        for index, addend in enumerate((weight, scores, bucket.total_weighted_label.value)):
            sums[place][index] += addend
    return [(scores / weight, labels / weight) for weight, scores, labels in sums if weight > 0]
