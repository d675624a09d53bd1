"""The client: against our server, and against servers that misbehave."""

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import client as clients
from serving.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from transform.contract import ContractError, parse

CONTRACT = parse(
    """
name: scaled
vocabularies: {user: {}, video: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: x, kind: number, role: video, source: videos.x}
  - {name: clicked, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}
"""
)


ONES = np.ones(2, np.float32)


@contextmanager
def misbehaving(behave):
    """A server whose Predict does `behave(context)` before it answers score = [1]; yields its address and its calls."""
    calls = []

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            calls.append(request)
            behave(len(calls), context)
            response = predict_pb2.PredictResponse()
            response.outputs["score"].CopyFrom(tf.make_tensor_proto(np.ones(1, np.float32)))
            return response

    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", calls
    finally:
        server.stop(0)


def test_predict_scores_rows_in_their_order(client):
    rows = [{"user_id": "u", "x": x} for x in (1.0, 5.0, 2.0)]
    outputs = client.predict("scaler", [*rows, {"user_id": 4}], CONTRACT)
    assert sorted(outputs) == ["score", "x"]
    # factor 3; a missing x is answered as 1
    assert outputs["score"].tolist() == [3.0, 15.0, 6.0, 3.0]
    assert outputs["score"].dtype == np.float32


def test_version_and_output_filter_are_passed_on(client):
    outputs = client.predict("scaler", [{"x": 1.0}], CONTRACT, version=1, output_filter=["score"])
    assert {name: values.tolist() for name, values in outputs.items()} == {"score": [2.0]}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 100])
def test_batches_give_what_one_call_gives(client, batch_size):
    rows = [{"x": float(x)} for x in range(10)]
    whole = client.predict("scaler", rows, CONTRACT)
    split = client.predict("scaler", rows, CONTRACT, batch_size=batch_size)
    assert whole["score"].tolist() == [3.0 * x for x in range(10)]
    for name in whole:
        np.testing.assert_array_equal(split[name], whole[name])


def test_batches_hold_at_most_batch_size_rows():
    with misbehaving(lambda *_: None) as (target, calls), Client(target) as client:
        client.predict("m", [{"x": 1.0}] * 7, CONTRACT, batch_size=3)
    assert [len(call.inputs["examples"].string_val) for call in calls] == [3, 3, 1]


def test_no_rows_give_empty_outputs(client):
    assert {name: values.shape for name, values in client.predict("scaler", [], CONTRACT).items()} == {
        "score": (0,),
        "x": (0,),
    }


def test_a_batch_size_below_one_is_refused(client):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        client.predict("scaler", [], CONTRACT, batch_size=0)


def test_named_tensors_are_sent_as_they_are(client):
    inputs = {"a": np.array([[1, 2]], np.float32), "n": np.array([7])}
    outputs = client.predict_tensors("scaler", inputs, "two")
    assert (outputs["sum"].tolist(), outputs["n"].tolist()) == ([9.0], [7])


def test_more_than_grpcs_four_megabytes_go_through(client):
    values = np.arange(1_200_000, dtype=np.float32)[None]  # 4.8 MB
    np.testing.assert_array_equal(client.predict_tensors("scaler", {"x": values}, "anything")["y"], values)


def test_a_bad_row_is_refused_before_anything_is_sent():
    with misbehaving(lambda *_: None) as (target, calls), Client(target) as client:
        with pytest.raises(ContractError, match="row 1, feature 'x'"):
            client.predict("m", [{}, {"x": "1"}], CONTRACT, batch_size=1)
        assert calls == []


def test_status_lists_versions_newest_first(client):
    assert [(s.version, s.state, s.error) for s in client.status("scaler")] == [
        (2, "AVAILABLE", ""),
        (1, "AVAILABLE", ""),
    ]


@pytest.mark.parametrize(
    ("ask", "error", "code", "details"),
    [
        (
            lambda c: c.predict("nobody", [], CONTRACT),
            ModelNotFound,
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(nobody)",
        ),
        (
            lambda c: c.status("nobody"),
            ModelNotFound,
            grpc.StatusCode.NOT_FOUND,
            "Could not find any versions of model nobody",
        ),
        (
            lambda c: c.predict("scaler", [], CONTRACT, "nothing"),
            InvalidRequest,
            grpc.StatusCode.FAILED_PRECONDITION,
            'Serving signature key "nothing" not found.',
        ),
        (
            lambda c: c.predict("scaler", [], CONTRACT, "one"),
            InvalidRequest,
            grpc.StatusCode.INVALID_ARGUMENT,
            "input tensor alias not found in signature: examples. Inputs expected to be in the set {x}.",
        ),
    ],
)
def test_errors_are_typed_and_say_who_and_what(client, ask, error, code, details):
    with pytest.raises(error) as raised:
        ask(client)
    assert isinstance(raised.value, ServingError)
    assert (raised.value.code, raised.value.details) == (code, details)
    assert client.target in str(raised.value)
    assert repr(raised.value.model) in str(raised.value)


def test_the_deadline_holds():
    slow_after_the_first = lambda call, _: time.sleep(2 if call > 1 else 0)  # noqa: E731
    with misbehaving(slow_after_the_first) as (target, calls), Client(target, timeout_seconds=10) as client:
        client.predict_examples("m", [b""])  # connects
        client.timeout_seconds = 0.5
        before = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="allow more time, or send fewer rows"):
            client.predict_examples("m", [b""])
        assert time.monotonic() - before < 1.8
        assert len(calls) == 2


def test_the_deadline_is_for_all_batches_together():
    with misbehaving(lambda *_: time.sleep(0.15)) as (target, calls), Client(target, timeout_seconds=0.4) as client:
        with pytest.raises(DeadlineExceeded):
            client.predict_examples("m", [b""] * 10, batch_size=1)
        assert len(calls) <= 4


def test_unavailable_is_retried_until_it_answers():
    def behave(call, context):
        if call < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")

    with misbehaving(behave) as (target, calls), Client(target, retries=2) as client:
        assert client.predict_examples("m", [b""])["score"].tolist() == [1.0]
        assert len(calls) == 3


def test_retries_are_bounded():
    busy = lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "busy")  # noqa: E731
    with misbehaving(busy) as (target, calls), Client(target, retries=2) as client:
        with pytest.raises(Unavailable, match="busy"):
            client.predict_examples("m", [b""])
        assert len(calls) == 3


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"])
def test_nothing_else_is_retried(code):
    refuse = lambda _, context: context.abort(grpc.StatusCode[code], "no")  # noqa: E731
    with misbehaving(refuse) as (target, calls), Client(target) as client:
        with pytest.raises(ServingError) as raised:
            client.predict_examples("m", [b""])
        assert (raised.value.code.name, len(calls)) == (code, 1)


def test_too_large_a_message_is_answered_with_the_remedy_of_smaller_batches():
    refuse = lambda _, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")  # noqa: E731
    expected = pytest.raises(ResourceExhausted, match=r"too large .*fewer rows per request.*batch_size")
    with misbehaving(refuse) as (target, _), Client(target) as client, expected:
        client.predict_examples("m", [b""])


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no-such-host.invalid:8500"])
def test_a_wrong_address_is_unavailable_with_the_remedy(target):
    with Client(target, timeout_seconds=3, retries=0) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)) as raised:
            client.status("scaler")
        assert target in str(raised.value)


def test_wait_until_ready_returns_when_it_is_and_says_why_when_it_is_not(client):
    client.wait_until_ready("scaler", 5)
    with pytest.raises(ModelNotFound, match=r"not ready after 1 s: Could not find any versions of model nobody"):
        client.wait_until_ready("nobody", 1)
    with Client("127.0.0.1:1") as nobody, pytest.raises(Unavailable, match=r"not ready after 1 s"):
        nobody.wait_until_ready("scaler", 1)


def test_threads_share_a_client(client):
    wrong = []

    def work(thread: int) -> None:
        for index in range(50):
            value = float(thread * 100 + index)
            if client.predict("scaler", [{"x": value}] * 3, CONTRACT)["score"].tolist() != [3 * value] * 3:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def ask_async(target, ask, **options):
    """What `ask(client)`, a coroutine, gives."""

    async def run():
        async with AsyncClient(target, **options) as connected:
            return await ask(connected)

    return asyncio.run(run())


def test_the_async_client_answers_what_the_blocking_one_does(server, client):
    rows = [{"x": float(x)} for x in range(10)]
    asked = {"version": 1, "output_filter": ["score"], "batch_size": 3}

    async def ask(connected):
        await connected.wait_until_ready("scaler", 10)
        scored = await asyncio.gather(*[connected.predict("scaler", rows[n:], CONTRACT, **asked) for n in range(8)])
        return scored, await connected.status("scaler"), await connected.predict_tensors("scaler", {"x": ONES}, "one")

    scored, statuses, tensors = ask_async(server.target, ask)
    for n in range(8):
        assert scored[n]["score"].tolist() == client.predict("scaler", rows[n:], CONTRACT, **asked)["score"].tolist()
    assert statuses == client.status("scaler")
    assert tensors["y"].tolist() == [3.0, 3.0]


def test_the_async_client_fails_with_the_same_errors(server):
    with pytest.raises(ModelNotFound, match=r"Could not find any versions of model nobody .*check the model's name"):
        ask_async(server.target, lambda connected: connected.status("nobody"))
    with pytest.raises(ContractError, match="row 0, feature 'x'"):
        ask_async(server.target, lambda connected: connected.predict("scaler", [{"x": "1"}], CONTRACT))
    with pytest.raises(Unavailable, match="not ready after 1 s"):
        ask_async("127.0.0.1:1", lambda connected: connected.wait_until_ready("scaler", 1))


def test_the_async_client_retries_unavailable_only():
    def behave(call, context):
        if call < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        if call > 3:
            context.abort(grpc.StatusCode.INTERNAL, "broken")

    with misbehaving(behave) as (target, calls):
        assert ask_async(target, lambda connected: connected.predict_examples("m", [b""]))["score"].tolist() == [1.0]
        with pytest.raises(ServingError, match="broken"):
            ask_async(target, lambda connected: connected.predict_examples("m", [b""]))
        assert len(calls) == 4


def test_a_waiting_async_client_leaves_the_event_loop_free():
    async def ask(connected):
        slow = asyncio.create_task(connected.predict_examples("m", [b""]))
        ticks = 0
        while not slow.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    with misbehaving(lambda *_: time.sleep(0.5)) as (target, _):
        assert ask_async(target, ask) > 10


def test_waits_double_and_differ_between_clients(monkeypatch):
    slept = []
    monkeypatch.setattr(clients.time, "sleep", slept.append)
    busy = lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "busy")  # noqa: E731
    with misbehaving(busy) as (target, _), Client(target, retries=4) as client:
        for _ in range(3):
            with pytest.raises(Unavailable):
                client.predict_examples("m", [b""])
    # 50 ms, 100 ms, ... of which up to half is left out
    bounds = [(0.025, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4)] * 3
    assert all(least <= wait <= most for wait, (least, most) in zip(slept, bounds, strict=True))
    assert len(set(slept)) == 12


def test_label_token_and_metadata_are_passed_on():
    headers = []
    seen = lambda _, context: headers.append(dict(context.invocation_metadata()))  # noqa: E731
    with misbehaving(seen) as (target, calls), Client(target, token="secret") as client:
        client.predict_examples("m", [b""], version_label="canary", metadata=[("x-request-id", "7")])
        client.predict_examples("m", [b""], version=3)
    assert [call.model_spec.version_label for call in calls] == ["canary", ""]
    assert calls[1].model_spec.version.value == 3
    assert [header["authorization"] for header in headers] == ["Bearer secret"] * 2
    assert [header.get("x-request-id") for header in headers] == ["7", None]


def test_both_clients_have_the_same_calls():
    public = [name for name in dir(Client) if not name.startswith("_") and name != "close"]
    assert public == ["predict", "predict_examples", "predict_tensors", "status", "wait_until_ready"]
    for name in public:
        blocking, coroutine = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(blocking) == inspect.signature(coroutine)
        assert inspect.iscoroutinefunction(coroutine)
        assert not inspect.iscoroutinefunction(blocking)
