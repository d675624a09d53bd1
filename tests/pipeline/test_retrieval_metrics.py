"""Retrieval metrics by hand, alone and through TFMA on a SavedModel; gates become thresholds."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma

from pipeline.config import Gate, ModelConfig
from pipeline.evaluation import retrieval_eval_config
from pipeline.models import RETRIEVAL
from pipeline.retrieval_metrics import Sums
from transform import contract as contracts

# What each user is answered, best first: 25 places. v0..v29 is the catalogue; v20 and above are new to the towers.
ANSWERS = {"a": [f"v{i}" for i in range(25)], "b": [f"v{i}" for i in range(10)] + [""] * 15}
EXACT = {"a": ["v0", "v1", "v28", "v29"], "b": ["v3", "", "", ""]}
IMPRESSIONS = [("a", "v1", 1.0), ("a", "v22", 1.0), ("a", "v28", 1.0), ("a", "v2", 0.0), ("b", "v11", 1.0)]

# By hand. Ranks of a's positives, from 0: 1, 22, none; of b's: none.
EXPECTED = {
    "recall_at_20": (1 / 3 + 0) / 2,
    "recall_at_100": (2 / 3 + 0) / 2,
    "recall_at_600": (2 / 3 + 0) / 2,
    "ndcg": (1 / np.log2(3)) / 4,
    "hit_rate": 1 / 2,
    "coverage": 20 / 30,
    "share_of_new": 0.0,  # v20 and above are behind the first 20
    "index_recall": (4 * 2 + 1) / (4 * 4 + 1),  # four impressions of a find v0 and v1 of four, b's finds its one
}


def configured(gate: Gate) -> tfma.EvalConfig:
    return retrieval_eval_config(contracts.load("movielens"), ModelConfig(gates=(gate,)))


def row(user: str) -> dict[str, np.ndarray]:
    ids = np.array(ANSWERS[user], "S")
    new = np.array([name != "" and int(name[1:]) >= 20 for name in ANSWERS[user]])
    trained = ~new & (ids != b"")
    exact = np.array(EXACT[user], "S")
    return {"video_ids": ids, "trained": trained, "exact_ids": exact, "catalogue_size": np.array([30])}


def test_values_by_hand_in_one_part_and_in_several():
    parts = []
    for user, video, label in IMPRESSIONS:
        parts.append(Sums())
        parts[-1].add(user, video.encode(), label, row(user))
    together = Sums()
    for part in parts:
        together.merge(pickle.loads(pickle.dumps(part)))
    assert together.values() == pytest.approx(EXPECTED)
    assert set(EXPECTED) == set(RETRIEVAL)


def test_new_videos_among_the_first_answers_are_counted():
    sums = Sums()
    trained = np.array([True, False, False])
    answers = {"video_ids": np.array([b"x", b"y", b""]), "trained": trained}
    sums.add("u", b"y", 0.0, {**answers, "exact_ids": np.array([b"x"]), "catalogue_size": np.array([4])})
    assert sums.values()["share_of_new"] == 0.5
    assert np.isnan(sums.values()["recall_at_20"])  # nobody clicked


class Answering(tf.Module):
    """Answers from the tables above."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def evaluate(self, examples):
        spec = {"user_id": tf.io.FixedLenFeature([], tf.string)}
        user = tf.cast(tf.io.parse_example(examples, spec)["user_id"] == "b", tf.int32)
        tables = {name: np.stack([row("a")[name], row("b")[name]]) for name in row("a")}
        outputs = {name: tf.gather(tf.constant(table), user) for name, table in tables.items()}
        return {**outputs, "catalogue_size": outputs["catalogue_size"][:, 0]}


def test_tfma_measures_the_signature_evaluate_of_candidate_and_served_model(tmp_path: Path):
    module = Answering()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"evaluate": module.evaluate})
    with tf.io.TFRecordWriter(str(tmp_path / "examples")) as writer:
        for user, video, label in IMPRESSIONS:
            strings = {"user_id": user, "video_id": video}
            feature = {
                n: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode()])) for n, v in strings.items()
            }
            feature["liked"] = tf.train.Feature(float_list=tf.train.FloatList(value=[label]))
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    config = configured(Gate(metric="recall_at_20", at_least=0.5, change=0.0))
    config = tfma.utils.update_eval_config_with_defaults(config, has_baseline=True)
    shared = [
        tfma.default_eval_shared_model(str(tmp_path / "1"), model_name=name, eval_config=config)
        for name in ("candidate", "baseline")
    ]
    results = tfma.run_model_analysis(shared, config, data_location=str(tmp_path / "examples")).get_results()
    assert len(results) == 2
    for result in results:
        measured = result.get_metrics_for_slice()
        values = {name: value["doubleValue"] for name, value in measured.items() if name in EXPECTED}
        assert values == pytest.approx(EXPECTED)


def test_gates_are_floors_and_changes():
    config = configured(Gate(metric="index_recall", at_least=0.98, change=0.01))
    metrics = {m.config.rpartition('": "')[2][:-2]: m for spec in config.metrics_specs for m in spec.metrics}
    (bound,) = metrics["index_recall"].per_slice_thresholds
    threshold = bound.threshold
    assert threshold.value_threshold.lower_bound.value == pytest.approx(0.98)
    assert threshold.change_threshold.absolute.value == pytest.approx(-0.01)
    assert threshold.change_threshold.direction == tfma.MetricDirection.HIGHER_IS_BETTER
    assert not metrics["ndcg"].per_slice_thresholds
