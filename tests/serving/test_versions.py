"""Policies, labels, states, leases, warm-up and reloading: what serves while models come and go."""

import gc
import re
import shutil
import threading
import weakref
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
    session_service_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server import models as models_module
from serving.model_server.configuration import All, Latest, ModelSource, Specific
from serving.model_server.errors import RequestError
from serving.model_server.models import Models, State
from serving.model_server.server import start

FACTORS = {1: 2.0, 2: 3.0}  # of the saved versions


class Counter(tf.Module):
    """Counts how often each signature ran; what it counted in warm-up is there when the first request comes."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x):
        return {"count": tf.fill(tf.shape(x), self.count.assign_add(1))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        self.count.assign_add(10)
        return {"scores": tf.ones([tf.size(inputs), 1])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        self.count.assign_add(100)
        return {"outputs": tf.ones([tf.size(inputs), 1])}


@pytest.fixture(scope="session")
def counter(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("counter") / "saved"
    model = Counter()
    signatures = {"serving_default": model.predict, "classify": model.classify, "regress": model.regress}
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


def spec(name="scaler", version=None, label=None) -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(name=name, version_label=label, version=None if version is None else {"value": version})


def place(version: Path, base: Path, number: int) -> Path:
    """As a pusher does: under another name first."""
    base.mkdir(parents=True, exist_ok=True)
    shutil.copytree(version, base / f".{number}")
    return (base / f".{number}").rename(base / str(number))


def answer(models, wanted) -> tuple[int, float]:
    """Which version answered, and with what factor."""
    with models.serving(wanted) as servable:
        return servable.version, servable.signature("one").call(x=tf.ones([1]))["y"].item()


def states(models, wanted=None) -> dict:
    return {status.version: State.Name(status.state) for status in models.status(wanted or spec())}


def passed(caplog, version, name="scaler") -> list[str]:
    """The states of a version in the order they were passed."""
    found = [re.fullmatch(rf"{name} version {version}: ([A-Z]+)", record.message) for record in caplog.records]
    return [match[1] for match in found if match]


def served(base, policy=None, **labels) -> Models:
    models = Models([ModelSource("scaler", str(base), policy or Latest(1), labels)])
    models.refresh()
    return models


@pytest.fixture
def base(tmp_path, saved) -> Path:
    """Versions 1 to 4 of one model: odd ones multiply by 2, even ones by 3."""
    for number in range(1, 5):
        place(saved / "scaler" / str(2 - number % 2), tmp_path / "scaler", number)
    return tmp_path / "scaler"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Latest(1), {4}),
        (Latest(2), {4, 3}),
        (Latest(9), {1, 2, 3, 4}),
        (All(), {1, 2, 3, 4}),
        (Specific((1, 3)), {1, 3}),
    ],
)
def test_a_policy_chooses_the_versions_that_are_served(base, policy, expected):
    models = served(base, policy)
    assert states(models) == dict.fromkeys(expected, "AVAILABLE")
    assert answer(models, spec()) == (max(expected), 3.0 if max(expected) % 2 == 0 else 2.0)
    assert answer(models, spec(version=min(expected)))[0] == min(expected)


def test_what_a_policy_no_longer_asks_for_stays_until_something_can_replace_it(base):
    models = served(base, Specific((2,)))
    (base / "3" / "saved_model.pb").write_bytes(b"broken")
    models.reload(config(f'name: "scaler" base_path: "{base}" model_version_policy {{ specific {{ versions: 3 }} }}'))
    assert answer(models, spec())[0] == 2
    assert states(models) == {3: "END", 2: "AVAILABLE"}


def test_states_are_passed_in_order(base, saved, caplog):
    caplog.set_level("INFO")
    models = served(base)
    place(saved / "scaler" / "1", base, 5)
    models.refresh()
    assert passed(caplog, 4) == ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    assert passed(caplog, 5) == ["START", "LOADING", "AVAILABLE"]
    lines = [record.message for record in caplog.records]
    assert lines.index("scaler version 5: AVAILABLE") < lines.index("scaler version 4: UNLOADING")


def test_labels_choose_versions_and_move_without_one_unanswered_request(base):
    models = served(base, All(), stable=1, canary=2)
    assert answer(models, spec(label="stable")) == (1, 2.0)
    assert answer(models, spec(label="canary")) == (2, 3.0)
    assert states(models, spec(label="canary")) == {2: "AVAILABLE"}
    with pytest.raises(RequestError, match="Unrecognized servable version label: next") as caught:
        models.find(spec(label="next"))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_label_waits_until_its_version_is_loaded(base, saved, caplog):
    models = served(base, All(), next=5)
    assert "label next of scaler waits for version 5" in caplog.text
    with pytest.raises(RequestError, match="Unrecognized servable version label: next"):
        models.find(spec(label="next"))
    place(saved / "scaler" / "1", base, 5)
    models.refresh()
    assert answer(models, spec(label="next")) == (5, 2.0)


def test_a_lease_keeps_a_version_loaded_until_it_ends(base, saved):
    models = served(base)
    with models.serving(spec()) as held:
        place(saved / "scaler" / "1", base, 5)
        models.refresh()
        assert answer(models, spec())[0] == 5  # new requests do not wait for old ones
        assert states(models) == {5: "AVAILABLE", 4: "UNLOADING"}
        with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(scaler, 4\)"):
            models.find(spec(version=4))
        assert held.signature("one").call(x=tf.ones([1]))["y"] == 3.0
        session = weakref.ref(held.session)
        del held
    models.close()  # waits for the unloading
    assert states(models)[4] == "END"
    gc.collect()
    assert session() is None


def test_a_version_that_comes_back_while_its_old_copy_drains_is_available(base, saved):
    models = served(base)
    with models.serving(spec()):
        place(saved / "scaler" / "1", base, 5)
        models.refresh()
        shutil.rmtree(base / "5")
        models.refresh()
        assert states(models)[4] == "AVAILABLE"
    for thread in models._draining:
        thread.join()
    assert states(models) == {5: "END", 4: "AVAILABLE"}
    assert answer(models, spec()) == (4, 3.0)


def test_versions_come_and_go_under_load_without_a_failed_or_wrong_answer(tmp_path, saved):
    snapshots, wrong, count, stop = [], [], [0], threading.Event()

    class Watched(Models):
        def _publish(self, source, versions):
            snapshots.append(sorted(versions))
            super()._publish(source, versions)

    base = tmp_path / "scaler"
    place(saved / "scaler" / "1", base, 1)
    models = Watched([ModelSource("scaler", str(base))])
    models.refresh()

    def ask():
        while not stop.is_set():
            try:
                version, factor = answer(models, spec())
            except Exception as error:
                wrong.append(error)
                return
            count[0] += 1
            if factor != FACTORS[2 - version % 2]:
                wrong.append((version, factor))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(2, 12):
        place(saved / "scaler" / str(2 - number % 2), base, number)
        models.refresh()
        shutil.rmtree(base / str(number - 1))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert count[0] > 10
    assert [] not in snapshots  # no moment, however short, with no version
    models.close()
    assert set(states(models).values()) == {"END"}


def without_signatures(version):
    shutil.rmtree(version)
    tf.saved_model.save(tf.Module(), str(version))


def with_an_asset_elsewhere(version):
    graph = version / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    content.meta_graphs[0].asset_file_def.add(filename="../../secret")
    graph.write_bytes(content.SerializeToString())


def for_training_only(version):
    graph = version / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    content.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    graph.write_bytes(content.SerializeToString())


def with_half_its_variables(version):
    data = next((version / "variables").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:2])


def warmed_up_by(*records):
    def write(version):
        (version / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(version / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            for record in records:
                writer.write(record if isinstance(record, bytes) else record.SerializeToString())

    return write


def predict_log(signature="", **inputs) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(model_spec={"name": "any", "signature_name": signature})
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return prediction_log_pb2.PredictionLog(predict_log={"request": request})


def without_records(version):
    warmed_up_by()(version)
    (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"not a TFRecord file")


SESSION_LOG = prediction_log_pb2.PredictionLog(session_run_log={"request": session_service_pb2.SessionRunRequest()})


@pytest.mark.parametrize(
    ("damage", "code", "error"),
    [
        (without_signatures, 2, "has no signatures: export it with"),
        (with_an_asset_elsewhere, 2, "names an asset outside its own folder: ../../secret"),
        (for_training_only, 2, "holds no graph tagged 'serve'"),
        (with_half_its_variables, None, ""),
        (warmed_up_by(predict_log("absent", x=[1.0])), 9, 'Serving signature key "absent" not found.'),
        (warmed_up_by(predict_log("one", x=["text"])), 3, "Expects arg[0] to be float"),
        (warmed_up_by(b"no PredictionLog"), 3, "Failed to parse warmup record"),
        (warmed_up_by(SESSION_LOG), 12, "Unsupported log_type for warmup: session_run_log"),
        (warmed_up_by(predict_log("one", x=[1.0]), *[b""] * 1000), 12, "Unsupported log_type for warmup: None"),
        (without_records, 15, "Please verify your warmup data is in TFRecord format."),
    ],
)
def test_a_broken_version_is_reported_with_its_reason_and_never_takes_traffic(tmp_path, saved, damage, code, error):
    base = tmp_path / "scaler"
    place(saved / "scaler" / "1", base, 1)
    damage(place(saved / "scaler" / "2", base, 2))
    models = served(base)
    assert answer(models, spec()) == (1, 2.0)
    status = models.status(spec(version=2))[0]
    assert State.Name(status.state) == "END"
    assert error in status.error
    assert status.error
    assert status.code == code or code is None
    assert models.ready


def test_a_version_that_changes_while_it_is_loaded_is_loaded_again(base, saved, monkeypatch):
    load = models_module.load

    def overtaken(name, version, path, requests):
        loaded = load(name, version, path, requests)
        shutil.copy(saved / "scaler" / "1" / "saved_model.pb", path + "/another")
        monkeypatch.setattr(models_module, "load", load)
        return loaded

    monkeypatch.setattr(models_module, "load", overtaken)
    models = served(base)
    assert answer(models, spec())[0] == 3  # the one before, for the time being
    assert "changed while it was loaded; it is tried again" in models.status(spec(version=4))[0].error
    models.refresh()
    assert answer(models, spec())[0] == 4


def test_warm_up_requests_of_every_kind_are_answered_before_the_first_request(tmp_path, counter):
    """Predict adds 1, Classify 10, Regress 100; the multi-inference of both 110; then the first request 1."""
    examples = input_pb2.Input(example_list={"examples": [tf.train.Example()]})
    classify = {"name": "any", "signature_name": "classify"}
    regress = {"name": "any", "signature_name": "regress"}
    tasks = [
        {"model_spec": classify, "method_name": "tensorflow/serving/classify"},
        {"model_spec": regress, "method_name": "tensorflow/serving/regress"},
    ]
    log = prediction_log_pb2.PredictionLog
    records = [
        predict_log(x=[1.0]),
        log(classify_log={"request": classification_pb2.ClassificationRequest(model_spec=classify, input=examples)}),
        log(regress_log={"request": regression_pb2.RegressionRequest(model_spec=regress, input=examples)}),
        log(multi_inference_log={"request": inference_pb2.MultiInferenceRequest(tasks=tasks, input=examples)}),
    ]
    warmed_up_by(*records)(place(counter, tmp_path / "counter", 1))
    models = Models(str(tmp_path))
    models.refresh()
    with models.serving(spec("counter")) as servable:
        assert servable.signature("").call(x=tf.ones([1]))["count"].item() == 1 + 10 + 100 + 110 + 1


def test_more_than_a_thousand_warm_up_requests_are_refused(tmp_path, counter):
    warmed_up_by(*[predict_log(x=[1.0])] * 1001)(place(counter, tmp_path / "counter", 1))
    models = Models(str(tmp_path))
    models.refresh()
    assert "Number of warmup records exceeds the maximum (1000)" in models.status(spec("counter"))[0].error


def config(*entries: str) -> model_server_config_pb2.ModelServerConfig:
    text = " ".join(f'config {{ model_platform: "tensorflow" {entry} }}' for entry in entries)
    return text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())


def test_reloading_adds_and_removes_models_and_moves_labels(base, counter, tmp_path):
    place(counter, tmp_path / "counter", 7)
    scaler = f'name: "scaler" base_path: "{base}" model_version_policy {{ all {{}} }}'
    models = Models([])
    assert not models.ready
    models.reload(config(scaler))
    for stable in (1, 2):
        models.reload(config(f'{scaler} version_labels {{ key: "stable" value: {stable} }}'))
        assert answer(models, spec(label="stable")) == (stable, FACTORS[stable])
    models.reload(config(f'name: "counter" base_path: "{tmp_path}/counter"'))
    assert models.find(spec("counter")).version == 7
    assert states(models) == dict.fromkeys((4, 3, 2, 1), "END")
    with pytest.raises(RequestError, match=r"Servable not found for request: Latest\(scaler\)"):
        models.find(spec())


def test_another_base_path_is_another_model_even_where_the_version_is_the_same(base, saved, tmp_path):
    models = served(base)
    place(saved / "scaler" / "1", tmp_path / "elsewhere", 4)
    models.reload(config(f'name: "scaler" base_path: "{tmp_path}/elsewhere"'))
    assert answer(models, spec()) == (4, 2.0)
    assert states(models) == {4: "AVAILABLE"}


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ('name: "scaler" base_path: "relative"', "INVALID_ARGUMENT", "to have an absolute path or URI"),
        ('name: "scaler" base_path: "{base}/absent"', "INVALID_ARGUMENT", "Could not find base path"),
        (
            'name: "scaler" base_path: "{base}" version_labels {{ key: "stable" value: 1 }}',
            "FAILED_PRECONDITION",
            "Request to assign label to version 1 of model scaler, which is not currently available for inference",
        ),
    ],
)
def test_a_configuration_that_is_refused_changes_nothing(base, entry, code, message):
    models = served(base, latest=4)
    with pytest.raises(RequestError, match=message) as caught:
        models.reload(config(entry.format(base=base), 'name: "other" base_path: "/"'))
    assert caught.value.code.name == code
    assert answer(models, spec(label="latest"))[0] == 4
    models.refresh()
    assert states(models) == {4: "AVAILABLE"}


def test_a_configuration_of_another_kind_is_refused(base):
    with pytest.raises(RequestError, match="Only ModelConfigList is currently supported"):
        served(base).reload(model_server_config_pb2.ModelServerConfig())


def test_a_model_that_cannot_be_loaded_is_said_when_reloading(base, tmp_path):
    (tmp_path / "empty").mkdir()
    models = served(base)
    with pytest.raises(RequestError, match=r"1 model\(s\) did not become available: \{\{empty: no versions") as caught:
        models.reload(config(f'name: "scaler" base_path: "{base}"', f'name: "empty" base_path: "{tmp_path}/empty"'))
    assert caught.value.code is grpc.StatusCode.UNKNOWN
    assert not models.ready
    assert models.waiting == ["empty"]
    assert answer(models, spec())[0] == 4


def test_the_service_reloads_and_tells_states_over_grpc(base):
    with start(str(base.parent), poll_seconds=0) as server, grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        reload = model_management_pb2.ReloadConfigRequest(
            config=config(f'name: "scaler" base_path: "{base}" model_version_policy {{ latest {{ num_versions: 2 }} }}')
        )
        assert stub.HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
        answered = stub.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec=spec()), timeout=10)
        found = [(v.version, State.Name(v.state), v.status.error_code) for v in answered.model_version_status]
        assert found == [(4, "AVAILABLE", 0), (3, "AVAILABLE", 0)]
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_memory_does_not_grow_with_swaps(tmp_path):
    """A table that is only forgotten stays: here 7 MB at each swap; variables and functions are tiny."""

    class Table(tf.Module):
        def __init__(self):
            super().__init__()
            keys = tf.strings.as_string(tf.range(100_000, dtype=tf.int64))
            initial = tf.lookup.KeyValueTensorInitializer(keys, tf.range(100_000, dtype=tf.int64))
            self.table = tf.lookup.StaticHashTable(initial, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="key")])
        def look_up(self, key):
            return {"value": self.table.lookup(key)}

    model = Table()
    tf.saved_model.save(model, str(tmp_path / "saved"), signatures={"serving_default": model.look_up})
    base, used = tmp_path / "table", {}
    models = Models([ModelSource("table", str(base))])
    for number in range(1, 11):
        place(tmp_path / "saved", base, number)
        models.refresh()
        shutil.rmtree(base / str(number - 1), ignore_errors=True)
        used[number] = resident_mib()
    assert models.find(spec("table")).version == 10
    assert used[10] - used[3] < 20


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
