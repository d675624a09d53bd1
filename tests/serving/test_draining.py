"""SIGTERM: requests in flight are answered, new ones refused, health says so, and the process exits with 0."""

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
    """Answers twice the input after some seconds."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x):
        start = tf.timestamp()
        passed = tf.while_loop(lambda _: tf.timestamp() < start + SECONDS, lambda n: (n + 1,), (0.0,))
        return {"y": 2.0 * x + 0.0 * passed[0]}


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    model = Slow()
    tf.saved_model.save(model, str(folder / "slow" / "1"), signatures={"serving_default": model.double})
    return folder


def _ask_until_refused(client):
    while True:  # health tells first, so that balancers turn away before anything is refused
        client.status("slow")


@pytest.mark.parametrize("flags", [[], ["--enable_batching"]], ids=["alone", "batched"])
def test_sigterm_answers_what_is_in_flight_refuses_the_rest_and_exits_with_0(slow, flags):
    command = [sys.executable, "-m", "serving.model_server", f"--models={slow}", "--port=0", "--rest_api_port=0"]
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "gRPC on" in line)
        target, rest = line.split("gRPC on ")[1].split(", REST on ")
        with (
            Client(target, timeout_seconds=20) as client,
            grpc.insecure_channel(target) as channel,
            ThreadPoolExecutor(4) as pool,
        ):
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            over_grpc = [pool.submit(client.predict_tensors, "slow", {"x": np.float32([n])}) for n in (1, 2)]
            over_rest = pool.submit(ask_rest, rest.strip(), 3.0)
            time.sleep(SECONDS / 2)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)  # again, as an impatient supervisor does
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with Client(target, timeout_seconds=5, retries=0) as late, pytest.raises(ServingError) as refused:
                _ask_until_refused(late)
            # What arrives between two states of gRPC's own shutdown is cancelled rather than refused.
            assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert [answer.result()["y"].tolist() for answer in over_grpc] == [[2.0], [4.0]]
            assert over_rest.result() == {"predictions": [6.0]}
            process.stderr.read()
            assert process.wait(10) == 0  # although somebody still watches health


def ask_rest(address: str, number: float):
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("POST", "/v1/models/slow:predict", json.dumps({"instances": [number]}))
    return json.load(connection.getresponse())
