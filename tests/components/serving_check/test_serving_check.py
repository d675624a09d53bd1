"""A candidate is served and measured before it is pushed; what is wrong with it is found, and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tfx.components.pusher.executor import Executor as PusherExecutor
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from components.feed_assembler import golden
from components.serving_check import trial
from components.serving_check.bounds import CHECK_FILE, Bound
from components.serving_check.executor import Executor
from components.serving_check.settings import ServingCheckSettings

OTHER_CONTENT = "rankers that learned from another classifier's vectors"


def doubler(folder: str, factor: float = 2.0) -> None:
    """A model of one signature: `values` float [B] to `twice`, and a name for each."""
    module = tf.Module()

    def answer(values: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"twice": factor * values, "name": tf.strings.as_string(tf.cast(values, tf.int32))}

    signature = tf.function(answer).get_concrete_function(tf.TensorSpec([None], tf.float32, "values"))
    module.constant = tf.Variable(factor)
    tf.saved_model.save(module, folder, signatures={"serving_default": signature, "recommend": signature})


def asked(values: list[float], twice: list[float], signature: str = "recommend") -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["values"].CopyFrom(tf.make_tensor_proto(np.float32(values)))
    names = np.array([str(int(value)) for value in values], object)
    for name, output in (("twice", np.float32(twice)), ("name", names)):
        log.predict_log.response.outputs[name].CopyFrom(tf.make_tensor_proto(output))
    return log


@pytest.fixture
def model(tmp_path: Path):
    artifact = standard_artifacts.Model()
    artifact.uri = str(tmp_path / "model")
    doubler(path_utils.serving_model_dir(artifact.uri))
    golden.write(iter([asked([1.0, 2.0], [2.0, 4.0])]), artifact.uri)
    return artifact


def blessing_of(model, tmp_path: Path, **settings) -> standard_artifacts.InfraBlessing:
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(tmp_path / "blessing")
    text = ServingCheckSettings(requests=20, **settings).model_dump_json()
    Executor().Do({"model": [model]}, {"blessing": [blessing]}, {"settings_json": text})
    return blessing


def checked(model, tmp_path: Path, **settings) -> tuple[bool, dict[str, dict]]:
    """Whether the model was blessed, and each bound by its metric."""
    blessing = blessing_of(model, tmp_path, **settings)
    found = json.loads((Path(blessing.uri) / CHECK_FILE).read_text())
    blessed = blessing.get_int_custom_property("blessed") == 1
    mark = "INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED"
    assert (Path(blessing.uri) / mark).is_file()
    return blessed, {bound["metric"]: bound for bound in found}


def test_a_model_that_answers_as_it_should_is_blessed_with_what_was_measured(model, tmp_path):
    blessed, found = checked(model, tmp_path)
    assert blessed
    assert found["golden requests answered wrongly"]["got"] == 0
    assert 0 < found["p99 in milliseconds"]["got"] < 1000
    assert 50 < found["megabytes of the server"]["got"] < 4096
    assert found["seconds until it answers"]["got"] > 0.1


def versions_pushed(model, blessing: standard_artifacts.InfraBlessing, models: Path) -> int:
    """How many versions are served after TFX's Pusher was given the model, as it is in the pipeline."""
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(models.parent / "pushed")
    destination = json.dumps({"filesystem": {"base_directory": str(models)}})
    given = {"model": [model], "infra_blessing": [blessing]}
    PusherExecutor().Do(given, {"pushed_model": [pushed]}, {"push_destination": destination})
    return len(list(models.glob("*/saved_model.pb")))


def test_a_refusal_is_what_keeps_the_pusher_from_pushing(model, tmp_path):
    blessing = blessing_of(model, tmp_path, memory_megabytes=1.0)  # no server holds itself in a megabyte
    assert versions_pushed(model, blessing, tmp_path / "feed") == 0
    blessing.set_int_custom_property("blessed", 1)
    assert versions_pushed(model, blessing, tmp_path / "feed") == 1


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of the model, and its process."""
    folder = tmp_path_factory.mktemp("served")
    doubler(str(folder / "model"))
    with trial._serving(str(folder / "model"), str(folder / "log")) as (process, client):
        client.wait_until_ready(trial.NAME, timeout_seconds=120)
        yield process, client


def measured(served, *logs: prediction_log_pb2.PredictionLog, **settings) -> dict[str, Bound]:
    """Each bound by its metric, of golden requests at a server that is ready."""
    bounds = ServingCheckSettings(requests=20, **settings)
    found = trial.bounds(bounds, trial._measured(*served, [log.predict_log for log in logs], bounds))
    return {bound.metric: bound for bound in found}


@pytest.mark.parametrize(
    "wrong",
    [asked([1.0], [2.001]), asked([3.0, 1.0], [6.0]), asked([1.0], [float("nan")]), asked([1.0], [2.0], "rank")],
)
def test_one_wrong_or_refused_answer_is_enough(served, wrong):
    found = measured(served, asked([1.0], [2.0]), wrong)
    assert found["golden requests answered wrongly"].got == 1
    assert not found["golden requests answered wrongly"].passed
    assert found["p99 in milliseconds"].got is None  # a wrong answer is not timed
    assert not found["p99 in milliseconds"].passed


@pytest.mark.parametrize(
    ("metric", "bound"),
    [
        ("p99 in milliseconds", {"p99_milliseconds": 1e-3}),
        ("megabytes of the server", {"memory_megabytes": 1.0}),
        (None, {"tolerance": 1e-3}),
    ],
)
def test_just_the_bound_that_is_broken_fails(served, metric, bound):
    found = measured(served, asked([1.0], [2.0001 if metric is None else 2.0]), **bound)
    assert [name for name, bound in found.items() if not bound.passed] == [metric] * (metric is not None)


def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason_in_the_log(model, tmp_path):
    (Path(path_utils.serving_model_path(model.uri)) / "variables" / "variables.index").write_bytes(b"broken")
    blessed, found = checked(model, tmp_path, startup_seconds=60)
    assert not blessed
    assert {bound["got"] for name, bound in found.items() if name != OTHER_CONTENT} == {None}
    assert "candidate" in (tmp_path / "blessing" / "server.log").read_text()


def test_a_feed_whose_ranker_learned_from_other_vectors_is_refused(model, tmp_path):
    model.set_int_custom_property("other_content", 1)
    blessed, found = checked(model, tmp_path)
    assert not blessed
    assert [name for name, bound in found.items() if bound["got"] > bound["at_most"]] == [OTHER_CONTENT]


def test_a_model_that_was_never_assembled_is_refused(tmp_path):
    artifact = standard_artifacts.Model()
    artifact.uri = str(tmp_path)
    blessed, found = checked(artifact, tmp_path)
    assert not blessed
    assert {bound["got"] for bound in found.values()} == {None}
