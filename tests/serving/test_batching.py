"""Dynamic batching answers what single requests are answered, and joins them."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.client import Client, InvalidRequest
from serving.model_server.batching import Batcher
from serving.model_server.configuration import BatchingParameters
from serving.model_server.errors import RequestError
from serving.model_server.options import Options
from serving.model_server.servable import load
from serving.model_server.server import Server

PARAMETERS = BatchingParameters(
    max_batch_size=32, batch_timeout_micros=20_000, max_enqueued_batches=100, num_batch_threads=2
)


class Probe(tf.Module):
    """`joined` is how many rows were run at once."""

    def __init__(self):
        super().__init__()
        self.factor = tf.Variable(2.0)
        self.big = tf.Variable(tf.zeros([1_000_000]))

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.float32, "x"), tf.TensorSpec([None], tf.string, "text")]
    )
    def score(self, x, text):
        with tf.control_dependencies([tf.debugging.assert_less(x, 1000.0, message="too large")]):
            joined = tf.repeat(tf.shape(x)[0], tf.shape(x)[0])
        return {"y": x * self.factor, "echo": text + "!", "joined": joined}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def slow(self, x):
        i = tf.while_loop(lambda i, _: i < 20_000, lambda i, s: (i + 1, s + tf.sin(s)), (0, tf.reduce_sum(x)))
        return {"y": x + 0.0 * i[1]}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, "x")])
    def free(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def total(self, x):
        return {"total": tf.reduce_sum(x)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return saved_probe(tmp_path_factory, 2.0)


def saved_probe(tmp_path_factory, factor):
    path, probe = str(tmp_path_factory.mktemp("probe")), Probe()
    probe.factor.assign(factor)
    signatures = {name: getattr(probe, name) for name in ("score", "slow", "free", "total")}
    tf.saved_model.save(probe, path, signatures=signatures)
    return path


def loaded(path, parameters=PARAMETERS):
    """A servable, with batching signatures."""
    servable, batcher = load("probe", 1, path), Batcher(parameters)
    return replace(
        servable, signatures={name: batcher.wrap(one, servable.session) for name, one in servable.signatures.items()}
    )


@pytest.fixture(scope="module")
def batched(path):
    return loaded(path)


@pytest.fixture(scope="module")
def score(batched):
    return batched.signature("score")


def ask(score, number, rows=1, width=3):
    return score.call(x=tf.fill([rows, width], float(number)), text=tf.fill([rows], str(number)))


def test_concurrent_callers_get_their_own_rows_and_what_they_get_alone(path, score):
    alone = load("probe", 1, path)

    def correct(number: int) -> int:
        rows, width = 1 + number % 5, 2 + number % 3  # three widths: never joined with each other
        got, expected = ask(score, number, rows, width), ask(alone.signature("score"), number, rows, width)
        assert sorted(got) == sorted(expected) == ["echo", "joined", "y"]
        np.testing.assert_array_equal(got["y"], expected["y"])
        np.testing.assert_array_equal(got["echo"], expected["echo"])
        assert got["joined"].shape == expected["joined"].shape == (rows,)
        return int(got["joined"][0])

    with ThreadPoolExecutor(32) as pool:
        joined = list(pool.map(correct, range(640)))
    assert np.mean(joined) > 5  # 3 rows a request: they were joined indeed
    assert max(joined) <= 32


def test_rows_are_neither_lost_nor_added_where_batches_are_padded_to_allowed_sizes(path):
    servable = loaded(path, replace(PARAMETERS, allowed_batch_sizes=(8, 32)))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(servable.signature("score"), number, rows=3), range(16)))
    assert [answer["y"].tolist() for answer in answers] == [[[2.0 * n] * 3] * 3 for n in range(16)]
    assert {int(answer["joined"][0]) for answer in answers} <= {8, 32}


def test_a_bad_request_fails_alone(score):
    def answer(number: int):
        try:
            return ask(score, 5000 if number % 7 == 3 else number)["y"].tolist()
        except tf.errors.InvalidArgumentError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, range(56)))
    bad = [number for number, answer in enumerate(answers) if not isinstance(answer, list)]
    assert bad == [number for number in range(56) if number % 7 == 3]
    assert all("too large" in answers[number].message for number in bad)
    assert all(answers[number] == [[2.0 * number] * 3] for number in range(56) if number not in bad)


@pytest.mark.parametrize(
    ("rows", "texts", "message"),
    [
        (33, 33, "Task size 33 is larger than maximum input batch size 32"),
        (2, 3, "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_what_cannot_be_a_batch_is_refused_in_servings_words(score, rows, texts, message):
    with pytest.raises(RequestError) as raised:
        score.call(x=tf.zeros([rows, 1]), text=tf.fill([texts], ""))
    assert (raised.value.code, raised.value.message) == (grpc.StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("rows", [0, 1, 32])
def test_no_row_and_the_most_rows_are_answered(score, rows):
    assert ask(score, 4, rows)["y"].shape == (rows, 3)


def test_a_full_queue_is_unavailable_and_empties_again(path):
    servable = loaded(path, BatchingParameters(1, 0, 2, num_batch_threads=1))
    slow = servable.signature("slow")
    slow.call(x=tf.ones([1]))

    def answer(_):
        try:
            return float(slow.call(x=tf.ones([1]))["y"][0])
        except RequestError as error:
            return error.code, error.message

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(answer, range(12)))
    refused = [answer for answer in answers if answer != 1.0]
    assert 0 < len(refused) < 12
    full = (grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")
    assert set(refused) == {full}
    assert answer(0) == 1.0


@pytest.mark.parametrize("name", ["free", "total"])
def test_a_signature_without_a_batch_dimension_is_left_as_it_is(path, name):
    servable = load("probe", 1, path)
    signature = servable.signatures[name]
    assert Batcher(PARAMETERS).wrap(signature, servable.session) is signature


def test_more_shapes_than_there_are_queues_for_are_answered_alone(path):
    servable = loaded(path, replace(PARAMETERS, batch_timeout_micros=0))
    score = servable.signature("score")
    for width in range(1, 41):
        assert ask(score, 1, 1, width)["y"].tolist() == [[2.0] * width]
    assert len(score.call._calls) == 32


def test_two_versions_in_one_batcher_do_not_meet(path, tmp_path_factory):
    versions = loaded(path), loaded(saved_probe(tmp_path_factory, 3.0))
    both = [version.signature("score") for version in versions]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: float(ask(both[number % 2], 1)["y"][0, 0]), range(64)))
    assert answers == [2.0, 3.0] * 32


def test_an_unloaded_version_is_freed(path):
    servable = loaded(path)
    ask(servable.signature("score"), 1)
    session = weakref.ref(servable.session)
    servable.session.close()
    del servable
    gc.collect()
    assert session() is None


def test_a_batching_server_answers_many_clients_and_refuses_too_large_a_request(saved, tmp_path):
    (tmp_path / "batching.config").write_text("max_batch_size { value: 16 } batch_timeout_micros { value: 5000 }")
    flags = {"enable_batching": True, "batching_parameters_file": str(tmp_path / "batching.config")}
    options = Options(models=str(saved), port=0, rest_api_port=0, file_system_poll_wait_seconds=0.0, **flags)
    with Server(options) as server, Client(server.target) as client, ThreadPoolExecutor(16) as pool:

        def correct(number: int) -> bool:
            x = np.full(1 + number % 4, number, np.float32)
            return client.predict_tensors("scaler", {"x": x}, "one")["y"].tolist() == [3.0 * number] * len(x)

        assert all(pool.map(correct, range(200)))
        with pytest.raises(InvalidRequest, match="Task size 17 is larger than maximum input batch size 16"):
            client.predict_tensors("scaler", {"x": np.zeros(17, np.float32)}, "one")
