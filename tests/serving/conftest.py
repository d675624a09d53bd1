"""Tiny models, saved once, and one server over them for all tests that only ask."""

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from serving.client import Client
from serving.model_server.server import start

ECHOED = {
    "float": tf.float32,
    "double": tf.float64,
    "half": tf.float16,
    "int32": tf.int32,
    "int64": tf.int64,
    "uint8": tf.uint8,
    "int8": tf.int8,
    "uint64": tf.uint64,
    "bool": tf.bool,
    "text": tf.string,
    "raw_bytes": tf.string,
}


class Scaler(tf.Module):
    """Multiplies by a factor, so that the answer tells which version gave it."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(self, examples):
        features = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32, default_value=1.0)})
        return {"score": features["x"] * self.factor, "x": features["x"]}

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, name="a"), tf.TensorSpec([None], tf.int64, name="n")]
    )
    def two(self, a, n):
        return {"sum": tf.reduce_sum(a, axis=1) * self.factor, "n": n}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def one(self, x):
        return {"y": x * self.factor}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def anything(self, x):
        return {"y": x, "total": tf.reduce_sum(x)}

    @tf.function
    def echo(self, **inputs):
        return {name: tf.identity(value) for name, value in inputs.items()}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="indices")])
    def pick(self, indices):
        with tf.control_dependencies([tf.debugging.assert_less(indices, 3, message="index too large")]):
            return {"picked": tf.gather([10, 20, 30], indices)}


def save_scaler(path: Path, factor: float) -> None:
    """Under another name first, as a pusher does, so that a poller never sees half a version."""
    model = Scaler(factor)
    echoed = {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in ECHOED.items()}
    signatures = {
        "serving_default": model.score,
        "two": model.two,
        "one": model.one,
        "anything": model.anything,
        "echo": model.echo.get_concrete_function(**echoed),
        "pick": model.pick,
    }
    unfinished = path.parent / f".{path.name}"
    tf.saved_model.save(model, str(unfinished), signatures=signatures)
    unfinished.rename(path)


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """Versions 1 (factor 2) and 2 (factor 3) of `scaler`."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "scaler").mkdir()
    save_scaler(folder / "scaler" / "1", 2.0)
    save_scaler(folder / "scaler" / "2", 3.0)
    return folder


@pytest.fixture(scope="session")
def server(saved):
    with start(str(saved), latest=2, poll_seconds=0) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def models_dir(saved, tmp_path) -> Path:
    """A folder of one's own with version 1 of `scaler`, to change."""
    shutil.copytree(saved / "scaler" / "1", tmp_path / "models" / "scaler" / "1")
    return tmp_path / "models"
