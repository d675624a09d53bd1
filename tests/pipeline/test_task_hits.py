"""The three tasks of a topic representation, measured by TFMA on a SavedModel; a gate refuses what falls short."""

from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma

from pipeline.config import Gate, ModelConfig
from pipeline.evaluation import video_eval_config
from pipeline.models import TASKS

# (hit, known) of four videos. By hand: 2 of the 3 whose primary class is known, 1 of 2, and tags are known of none.
ANSWERS = {"primary": [(1, 1), (0, 1), (1, 1), (0, 0)], "secondary": [(1, 1), (0, 1), (0, 0), (0, 0)]}
ANSWERS["tags"] = [(0, 0)] * 4


class Answering(tf.Module):
    """Answers by the number of the video."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def serving_default(self, examples):
        ids = tf.io.parse_example(examples, {"video_id": tf.io.FixedLenFeature([], tf.string)})["video_id"]
        number = tf.strings.to_number(ids, tf.int32)
        pairs = {name: tf.gather(tf.constant(ANSWERS[name], tf.float32), number) for name in ANSWERS}
        return {f"{name}_{part}": pair[:, i] for name, pair in pairs.items() for i, part in enumerate(("hit", "known"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, module = tmp_path_factory.mktemp("hits"), Answering()
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": module.serving_default})
    with tf.io.TFRecordWriter(str(folder / "examples")) as writer:
        for number in range(4):
            value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(number).encode()]))
            features = tf.train.Features(feature={"video_id": value})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return folder


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        (Gate(metric="primary_hits", at_least=0.66), True),
        (Gate(metric="primary_hits", at_least=0.67), False),
        (Gate(metric="tags_hits", at_least=0.1), False),  # not a number: nothing was measured
    ],
)
def test_a_gate_on_a_task_holds_what_tfma_measures_of_it(folder: Path, tmp_path: Path, gate: Gate, passes: bool):
    config = tfma.utils.update_eval_config_with_defaults(video_eval_config(ModelConfig(gates=(gate,))))
    model = tfma.default_eval_shared_model(str(folder / "1"), eval_config=config)
    result = tfma.run_model_analysis(
        model, config, data_location=str(folder / "examples"), output_path=str(tmp_path / "out")
    )
    measured = {
        name: float(value["doubleValue"]) for name, value in result.get_metrics_for_slice().items() if name in TASKS
    }
    assert measured == pytest.approx(
        {"primary_hits": 2 / 3, "secondary_hits": 1 / 2, "tags_hits": float("nan")}, nan_ok=True
    )
    assert tfma.load_validation_result(str(tmp_path / "out")).validation_ok == passes
