"""SIGTERM: requests in flight are answered, new ones refused, health says so, and the process exits with 0."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import Client, ServingError

SECONDS = 2.0


class Slow(tf.Module):
    """Answers twice the input after some seconds; batched, or alone where there is no batch dimension."""

    def _double(self, x, seconds):
        start = tf.timestamp()
        passed = tf.while_loop(lambda _: tf.timestamp() < start + seconds, lambda n: (n + 1,), (0.0,))
        return {"y": 2.0 * x + 0.0 * passed[0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x):
        return self._double(x, SECONDS)

    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
    def alone(self, x):
        return self._double(x, SECONDS)

    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
    def endless(self, x):
        return self._double(x, 1000.0)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    model = Slow()
    signatures = {"serving_default": model.double, "alone": model.alone, "endless": model.endless}
    tf.saved_model.save(model, str(folder / "slow" / "1"), signatures=signatures)
    return folder


@contextlib.contextmanager
def process(folder, before="pass"):
    """The command, its gRPC and its REST address; `before` is Python that runs first."""
    flags = [f"--models={folder}", "--port=0", "--rest_api_port=0", "--enable_batching"]
    code = f"from serving.model_server import __main__, server; {before}; __main__.main({flags})"
    command = (
        [sys.executable, "-c", code] if before != "pass" else [sys.executable, "-m", "serving.model_server", *flags]
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            line = next(line for line in running.stderr if "gRPC on" in line)
            target, rest = line.split("gRPC on ")[1].split(", REST on ")
            yield running, target, rest.strip()
        finally:
            running.kill()


def _ask_until_refused(client):
    while True:  # health tells first, so that balancers turn away before anything is refused
        client.status("slow")


def test_sigterm_answers_what_is_in_flight_refuses_the_rest_and_exits_with_0(slow):
    with (
        process(slow) as (running, target, rest),
        Client(target, timeout_seconds=20) as client,
        grpc.insecure_channel(target) as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        over_grpc = [
            pool.submit(client.predict_tensors, "slow", {"x": np.float32([n])}, signature)
            for n, signature in ((1, "serving_default"), (2, "alone"))
        ]
        over_rest = [pool.submit(ask_rest, rest, 3.0, signature) for signature in ("serving_default", "alone")]
        time.sleep(SECONDS / 2)
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGTERM)  # again, as an impatient supervisor does
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with Client(target, timeout_seconds=5, retries=0) as late, pytest.raises(ServingError) as refused:
            _ask_until_refused(late)
        # What arrives between two states of gRPC's own shutdown is cancelled rather than refused.
        assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert [answer.result()["y"].tolist() for answer in over_grpc] == [[2.0], [4.0]]
        assert [answer.result() for answer in over_rest] == [{"predictions": [6.0]}] * 2
        running.stderr.read()
        assert running.wait(10) == 0  # although somebody still watches health


def test_what_outlasts_the_draining_does_not_hold_the_process_up(slow):
    with (
        process(slow, "server._DRAIN_SECONDS = 1.0") as (running, target, rest),
        Client(target, timeout_seconds=60, retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        over_grpc = pool.submit(client.predict_tensors, "slow", {"x": np.float32([1])}, "endless")
        over_rest = pool.submit(ask_rest, rest, 1.0, "endless")
        time.sleep(SECONDS / 2)
        running.send_signal(signal.SIGTERM)
        running.stderr.read()
        # 1 s for both ports, and 5 for the unloading that waits for its last request
        assert running.wait(20) == 0
        assert isinstance(over_grpc.exception(), ServingError)
        assert over_rest.exception() or "error" in over_rest.result()


def ask_rest(address: str, number: float, signature: str):
    connection = http.client.HTTPConnection(address, timeout=60)
    body = json.dumps({"signature_name": signature, "instances": [number]})
    connection.request("POST", "/v1/models/slow:predict", body)
    return json.load(connection.getresponse())
