"""The MovieLens prefix from files to a feed, with the shipped configuration; and its gates against a random order."""

from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from components.importers.movielens import import_movielens
from pipeline import config, local_runner, recommend
from pipeline.recall_at_k import recall_at_k
from transform.contract import Contract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("movielens")
    import_movielens(str(shared_data / "movielens-1m"), str(folder / "world"))
    settings = config.load("movielens")
    return local_runner.run(settings, str(folder / "world"), folder / "run", Console(quiet=True), folder / "log")


def test_the_run_ends_pushed_and_answers(run):
    assert run.outcome == "pushed"
    with recommend.served(asdict(run), target=None) as client:
        feed = recommend.recommend(asdict(run), "2999", 10, client)
    assert feed.known_user
    assert len(feed.entries) == 10


def test_a_random_order_fails_the_gate_on_recall(run):
    contract = Contract.from_json(run.contract)
    files = tf.io.gfile.glob(f"{run.artifacts['ranker']['examples']}/Split-test/*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(files, "GZIP")]
    spec = {
        contract.user_key.name: tf.io.FixedLenFeature([], tf.string),
        contract.label.name: tf.io.FixedLenFeature([], tf.float32),
    }
    parsed = tf.io.parse_example(records, spec)
    users, labels = parsed[contract.user_key.name].numpy(), parsed[contract.label.name].numpy()
    order = np.argsort(users, kind="stable")
    scores = np.random.default_rng(0).random(len(users))
    groups = np.split(order, np.flatnonzero(users[order][1:] != users[order][:-1]) + 1)
    recalls = [recall_at_k(labels[rows], scores[rows], 10) for rows in groups]
    (gate,) = [gate for gate in config.load("movielens").models["ranker"].gates if gate.metric == "recall"]
    assert gate.at_least is not None
    assert np.mean([recall for recall in recalls if recall is not None]) < gate.at_least
