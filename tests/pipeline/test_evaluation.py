"""Gates of the configuration become TFMA thresholds, and recall at k is what it says."""

import numpy as np
import pandas as pd
import pytest
import tensorflow_model_analysis as tfma
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from pipeline import config as run_configs
from pipeline.config import Gate, ModelConfig
from pipeline.evaluation import eval_config
from pipeline.recall_at_k import recall_at_k
from transform import contract as contracts
from transform.contract import Feature

PLAIN = contracts.load("microvideo")
WEIGHT = Feature(name="importance", role="weight", source="interactions.importance", kind="number")
WEIGHTED = PLAIN.model_copy(update={"features": (*PLAIN.features, WEIGHT)})


def metric(config: tfma.EvalConfig, name: str) -> tfma.MetricConfig:
    found = [m for spec in config.metrics_specs for m in spec.metrics if f'"name": "{name}"' in m.config]
    assert len(found) == 1
    return found[0]


def configured(*gates: Gate, slices: tuple[str, ...] = ()) -> tfma.EvalConfig:
    model = ModelConfig(gates=gates, slices=slices)
    return eval_config(contracts.load("microvideo"), model)


def test_floor_and_change_of_a_rising_metric():
    (bound,) = metric(configured(Gate(metric="auc", at_least=0.7, change=0.01)), "auc").per_slice_thresholds
    assert list(bound.slicing_specs) == [tfma.SlicingSpec()]  # all examples together, and no slice
    threshold = bound.threshold
    assert threshold.value_threshold.lower_bound.value == pytest.approx(0.7)
    assert not threshold.value_threshold.HasField("upper_bound")
    assert threshold.change_threshold.direction == tfma.MetricDirection.HIGHER_IS_BETTER
    assert threshold.change_threshold.absolute.value == pytest.approx(-0.01)


def test_ceiling_and_change_of_a_falling_metric():
    (bound,) = metric(configured(Gate(metric="logloss", at_most=0.6, change=0.02)), "logloss").per_slice_thresholds
    threshold = bound.threshold
    assert threshold.value_threshold.upper_bound.value == pytest.approx(0.6)
    assert threshold.change_threshold.direction == tfma.MetricDirection.LOWER_IS_BETTER
    assert threshold.change_threshold.absolute.value == pytest.approx(0.02)


def test_a_contract_with_weights_weighs_what_is_measured_over_rows():
    config = eval_config(WEIGHTED, ModelConfig(gates=(Gate(metric="auc", at_least=0.5),)))
    assert config.model_specs[0].example_weight_key == "importance"
    plain = {
        metric.class_name: spec.example_weights.unweighted for spec in config.metrics_specs for metric in spec.metrics
    }
    assert plain == {
        "ExampleCount": True,  # of rows
        **dict.fromkeys(("AUC", "BinaryCrossEntropy", "Calibration", "CalibrationPlot"), False),
        **dict.fromkeys(("NDCG", "RecallAtK"), True),
    }
    assert not configured(Gate(metric="auc", at_least=0.5)).model_specs[0].example_weight_key


def test_weights_count_as_they_do_in_training():
    """By TFMA itself, on rows whose weights differ within users; scikit-learn says what is expected."""
    config = eval_config(WEIGHTED, ModelConfig(gates=(Gate(metric="auc", at_least=0.5),)))
    config = tfma.EvalConfig(model_specs=config.model_specs, slicing_specs=[{}], metrics_specs=config.metrics_specs)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user_id": np.repeat([f"u{n}" for n in range(8)], 10),
            "clicked": rng.integers(0, 2, 80).astype(np.float32),
            "score": rng.uniform(0.1, 0.9, 80).astype(np.float32),
            "importance": rng.uniform(0.5, 9, 80).astype(np.float32),
        }
    )
    ((_, found),) = tfma.analyze_raw_data(rows, config).slicing_metrics
    measured = {name: value["doubleValue"] for name, value in found[""][""].items() if "doubleValue" in value}
    label, score, weight = (rows[name] for name in ("clicked", "score", "importance"))
    assert measured["example_count"] == 80
    assert measured["auc"] == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-3)
    assert measured["logloss"] == pytest.approx(log_loss(label, score, sample_weight=weight), abs=1e-5)
    assert measured["calibration"] == pytest.approx((score * weight).sum() / (label * weight).sum(), abs=1e-5)


def test_a_gate_on_slices_gates_every_value_of_the_feature():
    config = configured(Gate(metric="auc", at_least=0.6, slices=("user_novelty", "primary_category")))
    keys = [list(t.slicing_specs[0].feature_keys) for t in metric(config, "auc").per_slice_thresholds]
    assert keys == [["user_novelty"], ["primary_category"]]
    assert not metric(config, "auc").HasField("threshold")
    assert len(metric(config, "auc").per_slice_thresholds) == 2


def test_a_gate_may_name_one_value_of_a_feature():
    config = configured(Gate(metric="auc", at_least=0.6, slices=("user_novelty=new",)))
    (bound,) = metric(config, "auc").per_slice_thresholds
    assert list(bound.slicing_specs) == [tfma.SlicingSpec(feature_values={"user_novelty": "new"})]


def test_slices_are_the_contracts_and_the_configurations_without_repetition():
    config = configured(Gate(metric="auc", at_least=0.6, slices=("user_novelty",)), slices=("primary_category",))
    keys = [list(spec.feature_keys) for spec in config.slicing_specs]
    contracts_own = [["user_novelty"], ["video_novelty"], ["history_length"], ["modalities"]]
    assert keys == [[], *contracts_own, ["primary_category"]]


def test_label_and_user_key_come_from_the_contract():
    config = configured(Gate(metric="ndcg", at_least=0.5))
    assert config.model_specs[0].label_key == "clicked"
    assert config.model_specs[0].signature_name == "serving_default"
    assert config.model_specs[0].model_type == tfma.TF_GENERIC
    assert config.metrics_specs[-1].query_key == "user_id"
    assert '"gain_key": "clicked"' in metric(config, "ndcg").config


@pytest.mark.parametrize("name", ["tags", "duration_seconds"])
def test_slicing_by_anything_but_one_id_is_refused(name):
    with pytest.raises(contracts.ContractError, match="expected a feature of kind id"):
        configured(Gate(metric="auc", at_least=0.6), slices=(name,))


def test_slicing_by_an_unknown_feature_is_refused_with_a_hint():
    with pytest.raises(contracts.ContractError, match="did you mean 'primary_category'"):
        configured(Gate(metric="auc", at_least=0.6), slices=("primary_categori",))


def test_recall_counts_positives_among_the_best():
    labels, scores = np.array([1, 0, 1, 1]), np.array([0.9, 0.8, 0.7, 0.1])
    assert recall_at_k(labels, scores, 1) == pytest.approx(1 / 3)  # best: item 0
    assert recall_at_k(labels, scores, 3) == pytest.approx(2 / 3)  # best: items 0, 1, 2


def test_recall_of_a_user_with_no_more_than_k_examples_says_nothing():
    assert recall_at_k(np.array([1.0, 0.0]), np.array([0.1, 0.9]), 2) is None


def test_recall_of_a_user_without_positives_is_undefined():
    assert recall_at_k(np.zeros(3), np.arange(3.0), 2) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 30))
def test_recall_grows_with_k_up_to_one(pairs, k):
    labels = np.array([float(label) for label, _ in pairs])
    scores = np.array([score for _, score in pairs])
    here, further = recall_at_k(labels, scores, k), recall_at_k(labels, scores, k + 1)
    if here is None:
        assert labels.sum() == 0 or len(pairs) <= k
    else:
        assert 0 <= here <= (1 if further is None else further) <= 1


@pytest.mark.parametrize("name", ["demo", "movielens"])
def test_built_in_configurations_fit_their_contracts(name):
    settings = run_configs.load(name)
    config = eval_config(contracts.load(settings.contract), settings.models["ranker"])
    assert len(config.slicing_specs) > 1
