import pytest
import tensorflow_model_analysis as tfma

from pipeline.report.gates import Gate, gates
from pipeline.report.measured import calibration, measured

SLICE = "user_novelty = new"


def find(evaluation: str, metric: str, slice_name: str, kind: str) -> Gate:
    found = [g for g in gates(evaluation) if (g.metric, g.slice, g.kind) == (metric, slice_name, kind)]
    assert len(found) == 1
    return found[0]


def test_exactly_the_gates_that_tfma_failed_are_failed_and_they_come_first(evaluation):
    validation = tfma.load_validation_result(evaluation)
    failed = [g for g in gates(evaluation) if not g.passed]
    assert not validation.validation_ok
    assert len(failed) == sum(len(s.failures) for s in validation.metric_validations_per_slice)
    assert {(g.metric, g.slice, g.kind) for g in failed} == {
        ("auc", SLICE, "floor"),
        ("auc", SLICE, "change"),
        ("logloss", SLICE, "ceiling"),
    }
    assert gates(evaluation)[: len(failed)] == failed


def test_a_floor_says_what_was_needed_and_what_tfma_measured(evaluation):
    gate = find(evaluation, "auc", SLICE, "floor")
    assert gate.needed == 0.55
    failures = tfma.load_validation_result(evaluation).metric_validations_per_slice[0].failures
    assert gate.got in [f.metric_value.double_value.value for f in failures]
    assert not gate.at_most


def test_a_change_needs_the_served_models_value_less_what_may_be_lost(evaluation):
    gate = find(evaluation, "auc", "user_novelty = known", "change")
    served = next(m for m in measured(evaluation) if m.name == gate.slice).baseline["auc"]
    assert gate.baseline == served
    assert gate.needed == pytest.approx(served - 0.02)  # the threshold is -0.02, absolute
    assert gate.passed


def test_a_threshold_with_two_bounds_is_two_gates(evaluation):
    floor = find(evaluation, "ndcg@10", "all examples", "floor")
    ceiling = find(evaluation, "ndcg@10", "all examples", "ceiling")
    assert (floor.needed, ceiling.needed) == (0.1, 1.0)
    assert floor.passed
    assert ceiling.passed
    assert floor.got == ceiling.got


def test_a_threshold_without_slicing_spec_gates_every_slice_as_tfma_does(evaluation):
    slices = [g.slice for g in gates(evaluation) if g.metric == "logloss"]
    assert sorted(slices) == sorted(m.name for m in measured(evaluation))
    assert len(slices) == 5  # all, two of user_novelty, two of category


def test_candidate_and_served_model_are_told_apart(evaluation):
    new = next(m for m in measured(evaluation) if m.name == SLICE)
    assert new.candidate["auc"] < 0.1  # it orders new users backwards
    assert new.baseline["auc"] > 0.9
    assert new.examples == 100


def test_calibration_is_the_share_of_positives_by_mean_score(evaluation):
    points = calibration(evaluation)
    assert len(points) <= 10
    assert all(0 <= share <= 1 for _, share in points)
    # Each point lies in a range of its own, a tenth wide, in rising order.
    assert [int(score * 10) for score, _ in points] == sorted({int(score * 10) for score, _ in points})


def test_cells_show_the_direction_of_the_bound_and_a_dash_for_what_is_unknown():
    gate = Gate("auc", "all examples", "floor", False, 0.6, None, None, False)
    assert gate.cells() == ("auc", "all examples", "floor", "≥ 0.6000", "–", "–")
    gate = Gate("logloss", "all examples", "ceiling", True, 0.65, 0.7, 0.61, False)
    assert gate.cells()[3:] == ("≤ 0.6500", "0.7000", "0.6100")
