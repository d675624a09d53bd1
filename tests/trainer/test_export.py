"""The exported model: three signatures, one answer; any batch; whatever a request leaves out; TensorFlow alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from trainer.export import export, write_warm_up
from trainer.keras_version import keras
from trainer.ranker import Config, build_model
from transform.contract import Kind

LOAD_ALONE = """
import json, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
rows = tf.constant([bytes.fromhex(row) for row in json.load(open(sys.argv[2]))])
print(json.dumps(loaded.signatures["serving_default"](examples=rows)["score"].numpy().tolist()))
assert not any(name.startswith(("tensorflow_transform", "trainer", "transform", "tfx")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def exported(world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, str]:
    model = build_model(Config(embedding_width=4), world.contract, world.sizes)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(scale=0.2, size=w.shape) for w in model.get_weights()])
    directory = str(tmp_path_factory.mktemp("exported") / "1")
    export(model, world.contract, world.output, directory)
    return model, directory


@pytest.fixture(scope="module")
def loaded(exported: Any) -> Any:
    return tf.saved_model.load(exported[1])


def raw_tensors(world: Any, rows: list[dict[str, Any]]) -> dict[str, tf.Tensor]:
    tensors = {}
    for feature in world.contract.inputs:
        values = [row[feature.name] for row in rows]
        lists = feature.kind in (Kind.IDS, Kind.HISTORY)
        tensors[feature.name] = tf.ragged.constant(values, tf.string).to_tensor("") if lists else tf.constant(values)
    return tensors


def test_both_signatures_answer_as_the_model_does_on_transformed_rows(world: Any, exported: Any, loaded: Any):
    expected = exported[0](world.inputs)
    examples = tf.constant([world.example(row) for row in world.raw])
    served = loaded.signatures["serving_default"](examples=examples)
    composed = loaded.signatures["raw"](**raw_tensors(world, world.raw))
    for name in ("score", "modality_weights"):
        np.testing.assert_allclose(served[name], expected[name], rtol=0, atol=1e-6)
        np.testing.assert_allclose(composed[name], expected[name], rtol=0, atol=1e-6)


def test_signatures_are_those_of_the_interface(world: Any, loaded: Any):
    assert set(loaded.signatures) == {"serving_default", "raw", "transform_features"}
    shapes = {
        name: spec.shape.as_list() for name, spec in loaded.signatures["raw"].structured_input_signature[1].items()
    }
    assert shapes == {
        **{name: [None] for name in ("user_id", "events", "video_id", "author", "title")},
        **{name: [None, None] for name in ("followed", "history")},
        "look": [None, 3],
        "sound": [None, 2],
    }
    outputs = loaded.signatures["serving_default"].structured_outputs
    assert {name: spec.shape.as_list() for name, spec in outputs.items()} == {
        "score": [None],
        "modality_weights": [None, 2],
    }


def test_transform_features_gives_what_training_saw(world: Any, loaded: Any):
    got = loaded.signatures["transform_features"](examples=tf.constant([world.example(row) for row in world.raw[:20]]))
    assert set(got) == {f.name for f in world.contract.inputs}
    for name, values in got.items():
        np.testing.assert_array_equal(values, world.transformed[name][:20])


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"user_id": "nobody", "video_id": "nothing", "author": "", "history": ["never", "seen"], "title": "unheard of"},
        {"user_id": "u1", "video_id": "v1", "history": []},
        {"user_id": "u1", "video_id": "v1", "events": float("nan"), "look": [0.0, 0.0, 0.0]},
        {"user_id": "u1", "video_id": "v1", "history": ["v1"] * 500},
    ],
    ids=["nothing known", "all out of vocabulary", "empty history", "missing number and vector", "overlong history"],
)
def test_cold_and_partial_requests_get_finite_scores(world: Any, loaded: Any, row: dict[str, Any]):
    answer = loaded.signatures["serving_default"](examples=tf.constant([world.example(row)]))
    assert np.isfinite(answer["score"]).all()
    assert np.isfinite(answer["modality_weights"]).all()


@pytest.mark.parametrize("batch", [0, 1, 1000])
def test_any_number_of_rows_is_answered(world: Any, loaded: Any, batch: int):
    rows = tf.constant([world.example(world.raw[i % 240]) for i in range(batch)], tf.string, shape=[batch])
    assert loaded.signatures["serving_default"](examples=rows)["score"].shape == [batch]


def test_a_process_with_tensorflow_alone_loads_it_and_answers_the_same(
    world: Any, exported: Any, loaded: Any, tmp_path: Path
):
    rows = [world.example(row) for row in world.raw[:8]]
    request = tmp_path / "rows.json"
    request.write_text(json.dumps([row.hex() for row in rows]))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, exported[1], request],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here = loaded.signatures["serving_default"](examples=tf.constant(rows))["score"]
    np.testing.assert_allclose(json.loads(done.stdout), here, rtol=0, atol=1e-6)


def test_inside_another_module_and_exported_again_it_answers_the_same(
    world: Any, exported: Any, loaded: Any, tmp_path: Path
):
    outer = tf.Module()
    outer.ranker = tf.saved_model.load(exported[1])

    def score(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"doubled": 2 * outer.ranker.signatures["raw"](**features)["score"]}

    specs = {
        name: tf.TensorSpec(s.shape, s.dtype, name)
        for name, s in loaded.signatures["raw"].structured_input_signature[1].items()
    }
    tf.saved_model.save(outer, str(tmp_path / "outer"), tf.function(score).get_concrete_function(**specs))
    again = tf.saved_model.load(str(tmp_path / "outer"))
    inputs = raw_tensors(world, world.raw[:8])
    got = again.signatures["serving_default"](**inputs)["doubled"]
    np.testing.assert_allclose(got, 2 * loaded.signatures["raw"](**inputs)["score"], rtol=0, atol=1e-6)


def test_warm_up_requests_are_real_examples_that_the_model_answers(world: Any, exported: Any, loaded: Any):
    write_warm_up(world.fn_args.raw_files, exported[1])
    file = Path(exported[1]) / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    rows = [tf.make_ndarray(request.inputs["examples"]).tolist() for request in requests]
    assert rows == [[world.example(row) for row in world.raw[:count]] for count in (1, 8)]
    for batch in rows:
        assert loaded.signatures["serving_default"](examples=tf.constant(batch))["score"].shape == [len(batch)]
