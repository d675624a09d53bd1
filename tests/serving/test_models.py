"""Versions: found, loaded, replaced; broken ones kept away from traffic. And starting and stopping."""

import shutil
import socket
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.client import Client, Unavailable
from serving.model_server.errors import RequestError
from serving.model_server.models import Models, State
from serving.model_server.server import start
from transform.contract import ContractError

SCALER = model_pb2.ModelSpec(name="scaler")


def states(models) -> dict:
    return {status.version: State.Name(status.state) for status in models.status(SCALER)}


def loaded(models_dir, latest=1) -> Models:
    models = Models(str(models_dir), latest)
    models.refresh()
    return models


def test_the_newest_version_is_served_by_number_not_by_spelling(models_dir, saved):
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "9")
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "10")
    models = loaded(models_dir)
    assert models.find(SCALER).version == 10
    assert states(models) == {10: "AVAILABLE"}


def test_what_is_no_version_is_passed_over(models_dir):
    scaler = models_dir / "scaler"
    for name in ("v3", "3.tmp", "-4", "05", ".7", "empty"):
        shutil.copytree(scaler / "1", scaler / name)
    (scaler / "8").mkdir()  # no saved_model.pb yet
    (scaler / "9").write_text("a file")
    (models_dir / "README").write_text("a file")
    assert states(loaded(models_dir)) == {1: "AVAILABLE"}


def test_a_new_version_replaces_the_old_one(models_dir, saved):
    models = loaded(models_dir)
    assert models.find(SCALER).version == 1
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "2")
    models.refresh()
    assert models.find(SCALER).version == 2
    assert states(models) == {2: "AVAILABLE", 1: "END"}
    with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(scaler, 1\)"):
        models.find(model_pb2.ModelSpec(name="scaler", version={"value": 1}))


def test_an_unchanged_version_is_not_loaded_again(models_dir, caplog):
    caplog.set_level("INFO")
    models = loaded(models_dir)
    first = models.find(SCALER)
    models.refresh()
    assert models.find(SCALER) is first
    assert [record.message for record in caplog.records].count("scaler version 1: AVAILABLE") == 1


def truncated(version):
    graph = version / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])


def without_variables(version):
    shutil.rmtree(version / "variables")


def without_content(version):
    (version / "saved_model.pb").write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, without_variables, without_content])
def test_a_broken_version_is_reported_and_the_last_good_one_keeps_serving(models_dir, saved, damage):
    models = loaded(models_dir)
    broken = models_dir / "scaler" / "2"
    shutil.copytree(saved / "scaler" / "2", broken)
    damage(broken)
    for known in (models, loaded(models_dir)):  # it came while we served; it was there when we started
        known.refresh()
        assert known.find(SCALER).version == 1
        assert states(known) == {2: "END", 1: "AVAILABLE"}
        assert known.status(SCALER)[0].error
        assert known.ready


def test_a_broken_version_is_tried_again_only_when_its_files_change(models_dir, saved, caplog):
    broken = models_dir / "scaler" / "2"
    shutil.copytree(saved / "scaler" / "2", broken)
    truncated(broken)
    models = loaded(models_dir)
    models.refresh()
    assert sum("cannot load scaler version 2" in record.message for record in caplog.records) == 1
    shutil.copy(saved / "scaler" / "2" / "saved_model.pb", broken / "saved_model.pb")
    models.refresh()
    assert models.find(SCALER).version == 2


def test_a_model_with_only_broken_versions_is_not_ready(models_dir):
    truncated(models_dir / "scaler" / "1")
    models = loaded(models_dir)
    assert not models.ready
    with pytest.raises(RequestError, match="Servable not found"):
        models.find(SCALER)


def test_a_model_that_vanished_is_unloaded_and_storage_that_vanished_is_not(models_dir):
    models = loaded(models_dir)
    models_dir.rename(models_dir.parent / "gone")
    models.refresh()
    assert models.find(SCALER).version == 1
    models_dir.mkdir()
    models.refresh()
    assert states(models) == {1: "END"}


def test_health_follows_the_models(tmp_path, saved):
    with start(str(tmp_path), poll_seconds=0.05) as server, grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        check = lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status  # noqa: E731
        assert check() == health_pb2.HealthCheckResponse.NOT_SERVING
        (tmp_path / "scaler").mkdir()
        shutil.copytree(saved / "scaler" / "1", tmp_path / "scaler" / ".1")
        (tmp_path / "scaler" / ".1").rename(tmp_path / "scaler" / "1")
        with Client(server.target) as client:
            client.wait_until_ready("scaler", 20)
        deadline = time.monotonic() + 10
        while check() != health_pb2.HealthCheckResponse.SERVING and time.monotonic() < deadline:
            time.sleep(0.02)
        assert check() == health_pb2.HealthCheckResponse.SERVING


def test_versions_change_under_load_without_a_failed_or_wrong_answer(models_dir, saved):
    """Factor 2 is version 1, factor 3 version 2: whatever answers must say so."""
    answers, stop = [], threading.Event()
    with start(str(models_dir), poll_seconds=0.05) as server, Client(server.target, retries=0) as client:

        def ask():
            while not stop.is_set():
                answers.append(client.predict_tensors("scaler", {"x": np.ones(1, np.float32)}, "one")["y"].item())

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / ".2")
        (models_dir / "scaler" / ".2").rename(models_dir / "scaler" / "2")
        deadline = time.monotonic() + 20
        while 3.0 not in answers[-3:] and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {2.0, 3.0}
    assert answers[-1] == 3.0


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(
        ContractError, match=r"no folder of models at .*absent: expected <name>/<version>/saved_model.pb"
    ):
        start(str(tmp_path / "absent"))


@pytest.mark.parametrize("taken", ["port", "rest_port"])
def test_a_port_that_is_taken_is_one_clear_error(tmp_path, taken):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ContractError, match=rf"cannot listen on 127.0.0.1:{port}: .*choose another with --"):
            start(str(tmp_path), **{taken: port})


def test_stop_frees_the_ports_and_may_be_called_twice(tmp_path):
    server = start(str(tmp_path))
    server.stop()
    server.stop()
    server.wait()
    with pytest.raises(Unavailable), Client(server.target, timeout_seconds=1, retries=0) as client:
        client.status("scaler")
    with start(str(tmp_path), port=server.port, rest_port=server.rest_port) as again:
        assert (again.port, again.rest_port) == (server.port, server.rest_port)


@pytest.mark.parametrize("name", ["models", "batching", "monitoring"])
def test_the_shipped_configs_are_text_protos(name):
    """Serving's Python package has the message of models.config only; the fields of the others are spelled here."""
    text = (Path(__file__).parents[2] / "serving" / "configs" / f"{name}.config").read_text()
    if name == "models":
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        told = [(model.name, model.base_path, model.model_platform) for model in config]
        assert told == [(name, f"/models/{name}", "tensorflow") for name in ("feed", "ranker")]
        assert {model.model_version_policy.latest.num_versions for model in config} == {1}
    fields = {
        "models": ["model_config_list"],
        "batching": ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"],
        "monitoring": ["prometheus_config"],
    }
    top_level = [line.split()[0] for line in text.splitlines() if line and line[0] not in "# }"]
    assert top_level == fields[name]
