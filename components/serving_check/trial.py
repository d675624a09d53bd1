"""The trial of a model: a server of its own, golden requests, then timed ones."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psutil
import tensorflow as tf
from tfx.utils import io_utils

from components.serving_check.bounds import Bound
from components.serving_check.settings import ServingCheckSettings
from serving.client import Client, ServingError
from serving.model_server.options import TOKEN_VARIABLE

NAME, VERSION = "candidate", "1"
_DRAINED_SECONDS = 30
_PATIENCE_SECONDS = 2.0  # of one look


def bounds(settings: ServingCheckSettings, measured: dict[str, float]) -> list[Bound]:
    """Each bound with what was measured."""
    most = {
        "seconds until it answers": settings.startup_seconds,
        "golden requests answered wrongly": 0.0,
        "p99 in milliseconds": settings.p99_milliseconds,
        "megabytes of the server": settings.memory_megabytes,
    }
    return [Bound(metric, at_most, measured.get(metric)) for metric, at_most in most.items()]


def try_out(model: str, golden: Sequence[Any], settings: ServingCheckSettings, log: str) -> list[Bound]:
    """Serve a model and measure it.

    Args:
        model: Folder of the SavedModel.
        golden: PredictLogs: requests with their answers.
        settings: Bounds, and how many requests are timed.
        log: File for what the server prints.

    Returns:
        The bounds; what was not reached because something before it failed has no measure.
    """
    with _serving(model, log) as (process, client):
        measured = _measured(process, client, golden, settings)
    return bounds(settings, measured)


def _measured(
    process: subprocess.Popen[bytes], client: Client, golden: Sequence[Any], settings: ServingCheckSettings
) -> dict[str, float]:
    began = time.monotonic()
    while not (ready := _ready(client)) and process.poll() is None and not _given_up(client):
        if time.monotonic() - began > settings.startup_seconds:
            break
    if not ready:
        return {}
    seconds = time.monotonic() - began
    wrong = sum(not _right(client, entry, settings.tolerance) for entry in golden)
    measured = {"seconds until it answers": seconds, "golden requests answered wrongly": float(wrong)}
    if wrong == 0:
        with suppress(ServingError, psutil.Error):  # a server that dies of its requests has no measure
            measured["p99 in milliseconds"] = _p99(client, golden, settings.requests)
            measured["megabytes of the server"] = psutil.Process(process.pid).memory_info().rss / 1e6
    return measured


def _ready(client: Client) -> bool:
    try:
        client.wait_until_ready(NAME, timeout_seconds=_PATIENCE_SECONDS)
    except ServingError:
        return False
    return True


def _given_up(client: Client) -> bool:
    """Whether the server says that it could not load the model."""
    try:
        return any(version.error for version in client.status(NAME))
    except ServingError:
        return False


@contextmanager
def _serving(model: str, log: str) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """A server of the model alone, and a client; it is terminated at the end."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as base, open(log, "wb") as output:
        io_utils.copy_dir(model, f"{base}/{NAME}/{VERSION}")
        command = [sys.executable, "-m", "serving.model_server", f"--model_base_path={base}/{NAME}"]
        command += [f"--model_name={NAME}", f"--port={port}", "--rest_api_port=0"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), TOKEN_VARIABLE: ""}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            with Client(f"127.0.0.1:{port}", timeout_seconds=60.0) as client:
                yield process, client
        finally:
            process.terminate()
            try:
                process.wait(_DRAINED_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _right(client: Client, entry: Any, tolerance: float) -> bool:
    """Whether a request is answered as it should be."""
    try:
        answer = _ask(client, entry)
    except ServingError:
        return False
    expected = {name: tf.make_ndarray(value) for name, value in entry.response.outputs.items()}
    return expected.keys() == answer.keys() and all(_equal(v, answer[n], tolerance) for n, v in expected.items())


def _equal(expected: np.ndarray, got: np.ndarray, tolerance: float) -> bool:
    if expected.shape != got.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((expected == got).all())
    return bool(np.allclose(expected, got, rtol=0, atol=tolerance, equal_nan=True))


def _ask(client: Client, entry: Any) -> dict[str, np.ndarray]:
    inputs = {name: tf.make_ndarray(value) for name, value in entry.request.inputs.items()}
    return client.predict_tensors(NAME, inputs, entry.request.model_spec.signature_name)


def _p99(client: Client, golden: Sequence[Any], number: int) -> float:
    """Milliseconds, of requests one after the other."""
    taken = []
    for entry in itertools.islice(itertools.cycle(golden), number):
        began = time.perf_counter()
        _ask(client, entry)
        taken.append(time.perf_counter() - began)
    return float(np.percentile(taken, 99)) * 1000
