"""The gates of an evaluation: what each needed, what it got, and TFMA's verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow_model_analysis as tfma

from components.serving_check.bounds import CHECK_FILE, Bound
from components.world import files
from pipeline.models import FEED
from pipeline.report.measured import (
    OVERALL,
    Measured,
    baseline_name,
    evaluated,
    measured,
    metric_name,
    slice_key,
    slice_name,
)

Failures = set[tuple[Any, ...]]


@dataclass(frozen=True)
class Gate:
    """One threshold on one metric of one slice.

    Attributes:
        metric: Metric name; `ndcg@10` for a metric at a cut-off.
        slice: The slice in words.
        kind: `floor` and `ceiling` are absolute; `change` is against the model now served.
        at_most: Whether `needed` is an upper bound.
        needed: The bound on the candidate's value; for a change, the served value plus what may be lost. None where
            that cannot be known, because the slice or the served value is missing.
        got: The candidate's value; None if it was not measured.
        baseline: The served model's value; None without one.
        passed: TFMA's verdict.
    """

    metric: str
    slice: str
    kind: Literal["floor", "ceiling", "change"]
    at_most: bool
    needed: float | None
    got: float | None
    baseline: float | None
    passed: bool

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """The gate as a table row: metric, slice, kind, needed, got, served model."""
        sign = "≤" if self.at_most else "≥"
        needed = "–" if self.needed is None else f"{sign} {number(self.needed)}"
        return self.metric, self.slice, self.kind, needed, number(self.got), number(self.baseline)


def number(value: float | None) -> str:
    """A metric's value for people: four digits after the point, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


@dataclass(frozen=True)
class _Bound:
    kind: Literal["floor", "ceiling", "change"]
    at_most: bool
    offset: float  # the bound is offset + factor * the served value
    factor: float = 0.0

    def needed(self, baseline: float | None) -> float | None:
        if self.factor == 0:
            return self.offset
        return None if baseline is None else self.offset + self.factor * baseline

    def broken_by(self, got: float | None, baseline: float | None) -> bool:
        needed = self.needed(baseline)
        if needed is None or got is None or math.isnan(got):
            return True
        return got > needed if self.at_most else got < needed


def gates(evaluation_uri: str) -> list[Gate]:
    """Every gate of an evaluation, failed ones first.

    Which passed is TFMA's verdict, the one that blessed or refused the model; it is not decided anew here.

    Args:
        evaluation_uri: Folder of TFMA's output: the `evaluation` artifact of Evaluator.

    Returns:
        The gates; empty if the evaluation had no thresholds.
    """
    config = evaluated(evaluation_uri)
    thresholds = tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, eval_config=config)
    if not thresholds:
        return []
    slices = measured(evaluation_uri)
    failures = _failures(tfma.load_validation_result(evaluation_uri))
    served = baseline_name(config)
    found = [
        gate
        for key, conditions in thresholds.items()
        if key.model_name != served
        for spec, threshold in conditions
        if spec is None or isinstance(spec, tfma.SlicingSpec)  # comparisons between slices are not gates of ours
        for gate in _gates(key.to_proto(), spec, threshold, slices, failures)
    ]
    return sorted(dict.fromkeys(found), key=lambda gate: gate.passed)


def gates_of(name: str, artifacts: Mapping[str, str]) -> list[Gate]:
    """Every gate of what a run judged, failed ones first; none where it ended before.

    Args:
        name: A model, or the feed.
        artifacts: Folders of what was made of it, as `run.json` has them.
    """
    if name == FEED:
        if "infra_validation" in artifacts:
            return [_loaded(artifacts["infra_validation"])]
        return _tried(artifacts["serving_check"]) if "serving_check" in artifacts else []
    return gates(artifacts["evaluation"]) if "evaluation" in artifacts else []


def summary_of(held: Iterable[Gate]) -> str:
    """Gates that hold in one line: those over all examples by metric, and how many there are of slices."""
    held = list(held)
    bounds: dict[str, list[str]] = {}
    for gate in (gate for gate in held if gate.slice == slice_name(OVERALL)):
        bounds.setdefault(f"{gate.metric} {number(gate.got)}", []).append(gate.cells()[3])
    of_slices = sum(gate.slice != slice_name(OVERALL) for gate in held)
    listed = [f"{measured} ({', '.join(bound)})" for measured, bound in bounds.items()]
    return "; ".join([*listed, *([f"and {of_slices} of slices"] if of_slices else [])])


def _loaded(infra_validation_uri: str) -> Gate:
    """What TFX's InfraValidator found."""
    passed = files.is_file(f"{infra_validation_uri}/INFRA_BLESSED")
    return Gate("loads in TensorFlow Serving", slice_name(OVERALL), "floor", False, 1.0, float(passed), None, passed)


def _tried(serving_check_uri: str) -> list[Gate]:
    """What ServingCheck found."""
    with files.reading(f"{serving_check_uri}/{CHECK_FILE}") as file:
        bounds = [Bound(**entry) for entry in json.loads(file.read())]
    found = [Gate(b.metric, slice_name(OVERALL), "ceiling", True, b.at_most, b.got, None, b.passed) for b in bounds]
    return sorted(found, key=lambda gate: gate.passed)


def _gates(key: Any, spec: Any, threshold: Any, slices: list[Measured], failures: Failures) -> Iterator[Gate]:
    matching = [s for s in slices if _applies(spec, s)]
    for each in matching:
        identity = (each.slice, metric_name(key), threshold.SerializeToString())
        yield from _verdicts(metric_name(key), each, _bounds(threshold), identity in failures)
    if not matching:  # TFMA refuses a model whose gated slice is nowhere in the data
        for bound in _bounds(threshold):
            yield Gate(
                metric_name(key), _spec_name(spec), bound.kind, bound.at_most, bound.needed(None), None, None, False
            )


def _verdicts(metric: str, measured_slice: Measured, bounds: list[_Bound], failed: bool) -> Iterator[Gate]:
    got, baseline = measured_slice.candidate.get(metric), measured_slice.baseline.get(metric)
    broken = [bound.broken_by(got, baseline) for bound in bounds]
    if failed and not any(broken):  # TFMA's own rounding decided: the whole threshold is to blame
        broken = [True] * len(bounds)
    for bound, is_broken in zip(bounds, broken, strict=True):
        needed = bound.needed(baseline)
        yield Gate(
            metric, measured_slice.name, bound.kind, bound.at_most, needed, got, baseline, not (failed and is_broken)
        )


def _failures(validation: Any) -> Failures:
    """(slice, metric, threshold) of all that failed: thresholds are told apart by their serialized form, as in TFMA."""
    found = set()
    for record in validation.metric_validations_per_slice:
        for failure in record.failures:
            threshold = failure.metric_threshold
            kind = threshold.change_threshold if failure.metric_key.is_diff else threshold.value_threshold
            found.add((slice_key(record.slice_key), metric_name(failure.metric_key), kind.SerializeToString()))
    return found


def _bounds(threshold: Any) -> list[_Bound]:
    if isinstance(threshold, tfma.GenericValueThreshold):
        bounds = []
        if threshold.HasField("lower_bound"):
            bounds.append(_Bound("floor", False, threshold.lower_bound.value))
        if threshold.HasField("upper_bound"):
            bounds.append(_Bound("ceiling", True, threshold.upper_bound.value))
        return bounds
    at_most = threshold.direction == tfma.MetricDirection.LOWER_IS_BETTER
    changes = []
    if threshold.HasField("absolute"):
        changes.append(_Bound("change", at_most, threshold.absolute.value, 1.0))
    if threshold.HasField("relative"):
        changes.append(_Bound("change", at_most, 0.0, 1 + threshold.relative.value))
    return changes


def _applies(spec: Any, measured_slice: Measured) -> bool:
    """Whether a threshold with this slicing spec is checked on the slice; without one TFMA checks every slice."""
    if spec is None:
        return True
    rest = dict(measured_slice.slice)
    for feature, value in spec.feature_values.items():
        if rest.pop(feature, None) != value:
            return False
    return sorted(rest) == sorted(spec.feature_keys)


def _spec_name(spec: Any) -> str:
    keys = [(feature, "(no such slice)") for feature in spec.feature_keys]
    return slice_name((*sorted(spec.feature_values.items()), *keys))
