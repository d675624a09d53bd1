"""What a candidate is held against where something is served, and where nothing is."""

import json
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from google.protobuf import json_format
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from components.evaluator.executor import Executor
from transform.contract import ContractError

LABELS = (0.0, 0.0, 1.0, 1.0, 1.0)
BETTER = tfma.GenericChangeThreshold(direction=tfma.MetricDirection.HIGHER_IS_BETTER, absolute={"value": 0.01})
ABOVE = tfma.GenericValueThreshold(lower_bound={"value": 0.5})
CONFIG = tfma.EvalConfig(
    model_specs=[tfma.ModelSpec(label_key="label", signature_name="serving_default", model_type=tfma.TF_GENERIC)],
    slicing_specs=[tfma.SlicingSpec()],
    metrics_specs=[
        tfma.MetricsSpec(
            metrics=[
                tfma.MetricConfig(
                    class_name="AUC",
                    threshold=tfma.MetricThreshold(value_threshold=ABOVE, change_threshold=BETTER),
                )
            ]
        )
    ],
)


class _Recite(tf.Module):
    """Answers with the label, or with its opposite."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        label = tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.float32)})["label"]
        return {"score": 0.5 + self._factor * (label - 0.5)}


def _model(folder: Path, factor: float | None) -> standard_artifacts.Model:
    artifact = standard_artifacts.Model()
    artifact.uri = str(folder)
    folder.mkdir()
    if factor is not None:
        model = _Recite(factor)
        tf.saved_model.save(
            model, path_utils.serving_model_dir(str(folder)), signatures={"serving_default": model.score}
        )
    return artifact


@pytest.fixture
def judge(tmp_path):
    """Judges a candidate against a served model; each right with 1, wrong with -1, and None for nothing."""
    examples = standard_artifacts.Examples()
    examples.uri, examples.split_names = str(tmp_path / "examples"), artifact_utils.encode_split_names(["test"])
    (tmp_path / "examples" / "Split-test").mkdir(parents=True)
    with tf.io.TFRecordWriter(f"{examples.uri}/Split-test/data.gz", "GZIP") as writer:
        for label in LABELS:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=[label]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"label": feature})).SerializeToString())

    def judged(candidate: float, served: float | None, version: str = "") -> tuple[bool, tfma.EvalConfig]:
        for name in ("candidate", "served", "evaluation", "blessing"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
        evaluation.uri, blessing.uri = str(tmp_path / "evaluation"), str(tmp_path / "blessing")
        given = {
            "examples": [examples],
            "model": [_model(tmp_path / "candidate", candidate)],
            "baseline_model": [_model(tmp_path / "served", served)],
        }
        given["baseline_model"][0].set_string_custom_property("served_version", version)
        properties = {
            "eval_config": json_format.MessageToJson(CONFIG, preserving_proto_field_name=True),
            "example_splits": json.dumps(["test"]),
        }
        Executor().Do(given, {"evaluation": [evaluation], "blessing": [blessing]}, properties)
        return bool(blessing.get_int_custom_property("blessed")), tfma.load_eval_result(evaluation.uri).config

    return judged


def test_where_nothing_is_served_floors_alone_decide(judge):
    blessed, config = judge(1.0, None)
    assert blessed
    assert [spec.is_baseline for spec in config.model_specs] == [False]  # judged once
    assert not judge(-1.0, None)[0]


def test_where_a_model_is_served_the_candidate_must_beat_it(judge):
    assert judge(1.0, -1.0)[0]
    blessed, config = judge(1.0, 1.0)  # as good is not better
    assert not blessed
    assert sorted(spec.is_baseline for spec in config.model_specs) == [False, True]


def test_a_served_model_that_was_lost_is_not_taken_for_none(judge):
    with pytest.raises(ContractError, match="expected version 17"):
        judge(1.0, None, version="17")
