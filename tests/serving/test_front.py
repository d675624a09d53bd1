"""The front: a feed by HTTP and JSON, with the queues as they stand, and one clear error for whatever goes wrong."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from serving import front as fronts
from serving import http_server
from serving.client import Client
from serving.front import Front, start
from serving.model_server import server as model_server
from serving.topic_queues.queues import TopicQueues
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import Event
from transform import contract as contracts

CONTRACT = contracts.load("microvideo")
ALL = QueueSettings(fresh_share=1.0)  # every video is in the queues


class Echo(tf.Module):
    """Shows somebody the further candidates that came with the request, and a last place that is empty."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
    def recommend(self, examples):
        spec = {
            "user_id": tf.io.FixedLenFeature([], tf.string, ""),
            "feed/length": tf.io.FixedLenFeature([], tf.int64, 20),
            "feed/queue": tf.io.VarLenFeature(tf.string),
        }
        given = tf.io.parse_example(examples, spec)
        shown = tf.concat([given["user_id"][:, None], tf.sparse.to_dense(given["feed/queue"], "")], axis=1)
        shown = tf.concat([shown, tf.fill([tf.shape(shown)[0], 1], "")], axis=1)
        numbers = tf.broadcast_to(tf.cast(tf.range(tf.shape(shown)[1]), tf.float32), tf.shape(shown))
        texts = tf.fill(tf.shape(shown), "t")
        return {
            "video_ids": shown,
            "scores": 1 - numbers / 8,
            "sources": texts,
            "topics": tf.stack([texts, tf.fill(tf.shape(shown), "")], axis=2),
            "frames": tf.cast(numbers, tf.int32) - 1,  # the first has none
            "frame_paths": tf.strings.join([shown, "jpg"], "."),
            "frame_scores": numbers,
            "at_seconds": tf.where(numbers > 1, numbers, float("nan")),
            "modality_weights": tf.stack([numbers, 1 - numbers], axis=2),
            "candidates": tf.cast(given["feed/length"], tf.int32),
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[model_server.Server]:
    folder = tmp_path_factory.mktemp("models")
    echo = Echo()
    tf.saved_model.save(echo, str(folder / "feed" / "1"), signatures={"recommend": echo.recommend})
    with model_server.start(str(folder)) as server:
        yield server


@pytest.fixture
def queues(tmp_path: Path) -> TopicQueues:
    store = SqliteStore(str(tmp_path / "queues.db"), ALL)
    store.record([Event("a", ("x",), 10, 9), Event("b", ("x",), 10, 5), Event("c", ("y",), 10, 9)])
    return TopicQueues(store, ALL)


@pytest.fixture
def listening(served: model_server.Server) -> Iterator[Any]:
    """Starts fronts, and stops them afterwards."""
    running = []

    def listen(queues: TopicQueues | None = None, target: str = served.target, **given: Any) -> Any:
        client = Client(target, timeout_seconds=5, retries=0)
        front = Front(client, CONTRACT, queues)
        running.append((client, start(front, **given)))
        return SimpleNamespace(port=running[-1][1].port, front=front)

    yield listen
    for client, server in running:
        server.stop(1)
        client.close()


def ask(
    port: int, path: str = "/feed", body: Any = None, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        sent = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, sent, headers or {})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text[:1] == b"{" else text.decode()
    finally:
        connection.close()


def shown(answer: dict[str, Any]) -> list[str]:
    return [video["video_id"] for video in answer["videos"]]


def test_the_answer_is_the_feed_with_what_the_queues_hold_now(listening, queues):
    port = listening(queues).port
    request = {"features": {"user_id": "u", "watch_history": ["b"]}, "length": 7}
    status, answer = ask(port, body=request)
    # Of topic x, that of the click; b was clicked already.
    assert (status, shown(answer), answer["candidates"]) == (200, ["u", "a"], 7)
    assert answer["videos"][0] == {
        "video_id": "u",
        "score": 1.0,
        "source": "t",
        "topics": ["t"],
        "modality_weights": [0.0, 1.0],
        "cover": None,
    }
    assert answer["videos"][1]["cover"] == {"frame": 0, "path": "a.jpg", "score": 1.0, "at_seconds": None}
    queues._store.record([Event("d", ("x",), 10, 10)])
    assert shown(ask(port, body=request)[1]) == ["u", "d", "a"]
    assert shown(ask(port, body={**request, "exclude": ["d"]})[1]) == ["u", "a"]


def test_without_queues_the_feed_is_asked_alone(listening):
    assert shown(ask(listening().port, body={"features": {"user_id": "u", "watch_history": ["b"]}})[1]) == ["u"]


def test_queues_that_do_not_answer_cost_no_feed_and_are_counted(listening, queues, tmp_path):
    for file in tmp_path.glob("queues.db*"):
        file.write_bytes(b"no database" * 1000)
    started = listening(queues)
    status, answer = ask(started.port, body={"features": {"user_id": "u", "watch_history": ["b"]}})
    assert (status, shown(answer)) == (200, ["u"])
    page = ask(started.port, "/metrics", method="GET")[1]
    assert "shortlist_front_without_queues_total 1.0" in page
    assert 'shortlist_front_requests_total{status="200"} 1.0' in page
    assert "shortlist_front_request_seconds_count 1.0" in page


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body: Invalid JSON"),
        (b"[]", "the body: Input should be an object"),
        ({"feature": {}}, "feature: Extra inputs are not permitted"),
        ({"features": {"user": "u"}}, "contract 'microvideo' has no feature 'user'"),
        ({"features": {"watch_history": "b"}}, "feature 'watch_history': expected a list of ids"),
        ({"features": {"title": "b"}}, "is not known without knowing a video"),
        ({"length": 0}, "request, length: expected 1 or more"),
        ({"length": "x"}, "length: Input should be a valid integer"),
        ({"categories": {"x": [1]}}, "categories.x.1: Field required"),
    ],
)
def test_a_request_that_does_not_fit_is_told_so(listening, body, said):
    status, answer = ask(listening().port, body=body)
    assert status == 400
    assert said in answer["error"]


def test_a_body_that_is_too_large_is_refused(listening):
    status, answer = ask(listening().port, body=b'{"exclude": ["' + b"x" * 2**20 + b'"]}')
    assert (status, answer["error"]) == (413, "the body may have at most 1048576 bytes")


def test_a_body_that_takes_too_long_is_refused(listening, monkeypatch):
    port = listening().port
    monkeypatch.setattr(http_server, "SLOWEST_SECONDS", 0.3)
    before = time.monotonic()
    status, answer = ask(port, body=b"{", headers={"Content-Length": "10"})
    assert (status, answer["error"]) == (408, "the body took longer than 0.3 s")
    assert time.monotonic() - before < 5


def test_a_server_that_is_gone_is_unavailable_and_the_front_not_ready(listening):
    port = listening(target="127.0.0.1:1").port
    status, answer = ask(port, body={})
    assert status == 503
    assert "127.0.0.1:1, model 'feed'" in answer["error"]
    assert ask(port, "/readyz", method="GET")[0] == 503
    assert ask(port, "/healthz", method="GET") == (200, {"alive": True})


def test_it_is_ready_when_the_feed_is_served(listening):
    assert ask(listening().port, "/readyz", method="GET") == (200, {"ready": True})


def test_who_has_no_token_is_refused(listening):
    port = listening(token="secret").port
    assert ask(port, body={})[0] == 401
    assert ask(port, body={}, headers={"Authorization": "Bearer secret"})[0] == 200
    assert ask(port, "/healthz", method="GET")[0] == 200


def test_other_methods_and_paths_are_told_so_in_json(listening):
    port = listening().port
    assert ask(port, method="GET")[0] == 405
    status, answer = ask(port, "/nothing", body={})
    assert (status, answer) == (404, {"error": "Not Found"})


def test_every_error_of_the_client_has_a_status():
    known = set(fronts.clients.ServingError.__subclasses__())
    assert known - set(fronts._STATUS) == {fronts.clients.Unauthenticated}  # ours to mend: 502


def test_the_command_serves_until_it_is_terminated(served, tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "front", "--config", "demo", "--target", served.target, "--port=0"]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stderr=log) as running:
        try:
            while not (found := re.search(r"http://127.0.0.1:(\d+)/feed", (tmp_path / "log").read_text())):
                assert running.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            status, answer = ask(int(found[1]), body={"features": {"user_id": "u"}})
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) == 0
        finally:
            running.kill()
    assert (status, shown(answer)) == (200, ["u"])
