"""Versions: found, loaded, replaced; broken ones kept away from traffic. And starting and stopping."""

import shutil
import socket
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.client import Client, Unavailable
from serving.model_server import models as models_module
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
    for name in ("v3", "3.tmp", "-4", ".7", "empty", str(2**63), "٣"):
        shutil.copytree(scaler / "1", scaler / name)
    (scaler / "8").mkdir()  # no saved_model.pb yet
    (scaler / "9").write_text("a file")
    (models_dir / "README").write_text("a file")
    assert states(loaded(models_dir)) == {1: "AVAILABLE"}


def test_a_version_may_be_spelt_with_zeros_before_it(models_dir, saved):
    scaler = models_dir / "scaler"
    shutil.copytree(saved / "scaler" / "2", scaler / "00000123")  # the newest, as in TensorFlow Serving's own examples
    models = loaded(models_dir)
    assert (models.find(SCALER).version, states(models)) == (123, {123: "AVAILABLE"})
    shutil.copytree(saved / "scaler" / "1", scaler / "00000007")
    shutil.copytree(saved / "scaler" / "2", scaler / "7")
    shutil.rmtree(scaler / "00000123")
    models.refresh()
    with models.serving(SCALER) as servable:  # of two spellings the shorter: factor 3
        assert servable.signature("one").call(x=np.float32([1.0]))["y"].tolist() == [3.0]


def test_a_link_to_nothing_beside_a_version_harms_nobody(models_dir, saved):
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "2")
    (models_dir / "scaler" / "2" / "notes.txt").symlink_to("nowhere")
    assert states(loaded(models_dir)) == {2: "AVAILABLE"}


@pytest.mark.parametrize(
    ("error", "again"),
    [(tf.errors.ResourceExhaustedError, True), (tf.errors.UnavailableError, True), (tf.errors.DataLossError, False)],
)
def test_what_may_pass_is_tried_again_though_no_file_changed(models_dir, monkeypatch, error, again):
    def fails(*_):
        raise error(None, None, "not now")

    monkeypatch.setattr(models_module, "load", fails)
    models = loaded(models_dir)
    assert not models.ready
    monkeypatch.undo()
    models.refresh()
    assert models.ready is again


@pytest.fixture
def held_up(monkeypatch):
    """Loading waits: what tells that it does, and what lets it go on."""
    loading, done, load = threading.Event(), threading.Event(), models_module.load

    def slow(*arguments):
        loading.set()
        assert done.wait(30)
        return load(*arguments)

    monkeypatch.setattr(models_module, "load", slow)
    return loading, done


def test_closing_does_not_wait_for_a_version_that_is_still_being_loaded(models_dir, held_up, monkeypatch):
    loading, done = held_up
    monkeypatch.setattr(models_module, "_DRAIN_SECONDS", 0.2)
    models = Models(str(models_dir))
    refreshing = threading.Thread(target=models.refresh)
    refreshing.start()
    assert loading.wait(30)
    started = time.monotonic()
    models.close()
    assert time.monotonic() - started < 5
    done.set()
    refreshing.join(30)


def test_while_one_configuration_is_taken_over_another_is_not_kept_waiting(models_dir, held_up):
    loading, done = held_up
    config = text_format.Parse(
        f'model_config_list {{ config {{ name: "scaler" base_path: "{models_dir / "scaler"}" '
        'model_platform: "tensorflow" } }',
        model_server_config_pb2.ModelServerConfig(),
    )
    models = Models(())
    reloading = threading.Thread(target=models.reload, args=(config,))
    reloading.start()
    assert loading.wait(30)
    with pytest.raises(RequestError, match="try again") as refused:
        models.reload(config)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    done.set()
    reloading.join(30)
    assert models.ready
    models.reload(config)  # and now it may


def with_another_dtype(version):
    rewrite(version, lambda one: setattr(one.outputs["y"], "dtype", types_pb2.DT_INT64))


def with_an_input_that_is_not_there(version):
    rewrite(version, lambda one: setattr(one.inputs["x"], "name", "nothing:0"))


def rewrite(version, change):
    """Changes the signature `one` of a saved model."""
    path = version / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(model.meta_graphs[0].signature_def["one"])
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "why"),
    [(with_another_dtype, "says that y is int64, and the graph float32"), (with_an_input_that_is_not_there, "nothing")],
)
def test_a_signature_that_does_not_fit_its_graph_never_takes_traffic(models_dir, saved, damage, why):
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "2")
    damage(models_dir / "scaler" / "2")
    models = loaded(models_dir)
    assert states(models) == {2: "END", 1: "AVAILABLE"}
    assert why in models.status(SCALER)[0].error


def test_a_signature_that_cannot_be_run_is_refused_and_the_others_answer(models_dir, saved):
    shutil.copytree(saved / "scaler" / "2", models_dir / "scaler" / "2")
    rewrite(models_dir / "scaler" / "2", lambda one: one.inputs["twice"].CopyFrom(one.inputs["x"]))
    models = loaded(models_dir)
    one = np.float32([1.0])
    with models.serving(SCALER) as servable:
        for _ in range(2):
            with pytest.raises(RequestError, match="fed more than once") as refused:
                servable.signature("one").call(x=one, twice=one)
            assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert servable.signature("pick").call(indices=np.int32([1]))["picked"].tolist() == [20]


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
