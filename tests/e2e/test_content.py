"""Clips to content vectors to ranker: one tiny world through both streams, cached, refused, and embedded only once."""

import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from rich.console import Console

from components.content_embedder.executor import read_summary
from components.importers.demo import import_demo
from pipeline import local_runner
from pipeline.config import RunConfig
from transform.contract import Contract
from transform.schema import parse_spec

pytestmark = pytest.mark.e2e

WIDTH = 16  # of the contract's content vectors
SETTINGS = RunConfig.model_validate(
    {
        "name": "clips",
        "contract": "microvideo",
        "clips": {"frames": 4, "size": 16, "sound_steps": 2, "mels": 4, "key_frames": 0},
        "models": {
            "video_classifier": {
                "model": {"filters": [4], "sound_filters": [2], "title_width": 4, "width": WIDTH, "clusters": 2},
                "training": {"epochs": 1},
                "gates": [{"metric": "accuracy", "at_least": 0.0}],
            },
            "ranker": {
                "model": {"architecture": "mhsa_crossing", "embedding_width": 4, "deep": None},
                "training": {"epochs": 1, "batch_size": 256},
                "gates": [{"metric": "auc", "at_least": 0.1}],
            },
        },
    }
)
CHAIN = ["Transform", "Trainer", "ServingBaseline", "Evaluator", "Pusher"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("world")
    import_demo(None, str(out), users=60, videos=90, interactions=2500, seed=2)
    return str(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "clips"


def run(settings: RunConfig, world: str, folder: Path) -> local_runner.Run:
    return local_runner.run(settings, world, folder, Console(quiet=True), folder / "test.log")


@pytest.fixture(scope="module")
def pushed(world, folder) -> local_runner.Run:
    return run(SETTINGS, world, folder)


def test_the_classifier_is_judged_and_pushed_before_its_vectors_are_made(pushed):
    names = [step.name for step in pushed.steps]
    assert pushed.outcome == "pushed"
    order = [f"{step}.video_classifier" for step in CHAIN] + ["ContentEmbedder", "ImpressionExampleGen"]
    assert [name for name in names if name in order] == order
    assert [name for name in names if name.endswith(".ranker")] == [f"{step}.ranker" for step in CHAIN]
    rows = {step.name: step.rows for step in pushed.steps}
    assert rows["ContentEmbedder"] == rows["ClipExampleGen"] > 70


def content_of(record: local_runner.Run) -> dict[str, dict]:
    parts = [pq.read_table(path) for path in glob.glob(f"{record.artifacts['ranker']['content']}/content/*.parquet")]
    return {row["video_id"]: row for row in pa.concat_tables(parts).to_pylist()}


def test_impressions_hold_the_vectors_of_their_video_and_zeros_where_it_has_none(pushed):
    content, contract = content_of(pushed), Contract.from_json(pushed.contract)
    files = glob.glob(f"{pushed.artifacts['ranker']['examples']}/Split-*/*")
    raw = next(iter(tf.data.TFRecordDataset(files, "GZIP").batch(5000)))
    parsed = tf.io.parse_example(raw, {**parse_spec(contract), "modalities": tf.io.FixedLenFeature([], tf.string)})
    seen = set()
    for index, video in enumerate(parsed["video_id"].numpy()):
        row = content.get(video.decode(), {})
        for name in ("visual_vector", "audio_vector", "text_vector"):
            expected = row.get(name) or np.zeros(WIDTH)
            np.testing.assert_array_equal(parsed[name][index], np.float32(expected))
        seen.add(parsed["modalities"][index].numpy().decode())
    assert seen == {"none", "visual+text", "visual+audio+text"}


def test_an_unchanged_run_comes_from_the_cache(pushed, world, folder):
    assert all(step.cached for step in run(SETTINGS, world, folder).steps)


@pytest.mark.slow
def test_a_refused_classifier_leaves_the_served_one_and_its_vectors(pushed, world, folder):
    classifier = SETTINGS.models["video_classifier"]
    gates = tuple(gate.model_copy(update={"at_least": 0.999}) for gate in classifier.gates)
    models = {**SETTINGS.models, "video_classifier": classifier.model_copy(update={"gates": gates})}
    record = run(SETTINGS.model_copy(update={"models": models}), world, folder)
    assert record.outcome == "refused"
    assert record.served_version["video_classifier"] == ""
    assert record.served_version["ranker"] != ""
    assert record.served_after["video_classifier"] == pushed.served_version["video_classifier"]
    counted = read_summary(record.artifacts["ranker"]["content"])
    assert counted == {"embedded": 0, "reused": len(content_of(pushed))}
    assert content_of(record) == content_of(pushed)
