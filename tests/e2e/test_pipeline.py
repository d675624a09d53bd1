"""One small world through the whole pipeline: pushed, cached, resumed, refused, and served as it was evaluated."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam.testing.util import assert_that
from ml_metadata.metadata_store import MetadataStore
from rich.console import Console
from tfx.orchestration import metadata
from tfx_bsl.tfxio import tf_example_record

from components.anomaly_gate.executor import AnomaliesFoundError
from components.importers.demo import import_demo
from components.world import tables
from pipeline import cli, local_runner, models
from pipeline.config import Gate, ModelConfig, RunConfig
from pipeline.errors import RunFailedError
from pipeline.evaluation import eval_config
from pipeline.report.gates import Gate as ReportedGate
from pipeline.report.gates import gates as reported_gates
from pipeline.report.measured import measured
from serving.client import Client
from serving.model_server import server
from transform.contract import Contract

pytestmark = pytest.mark.e2e

FLOORS = (Gate(metric="auc", at_least=0.5, change=0.01), Gate(metric="logloss", at_most=2.0))
SETTINGS = RunConfig(
    name="tiny",
    contract="microvideo",
    models={
        "ranker": ModelConfig(
            model={"architecture": "mhsa_crossing", "embedding_width": 8},
            training={"epochs": 3, "batch_size": 256},
            slices=("primary_category",),
            gates=FLOORS,
        )
    },
)
STEPS = [
    "ContractSchema",
    "ImpressionExampleGen",
    "StatisticsGen",
    "ExampleValidator",
    "AnomalyGate",
    "Transform",
    "Trainer",
    "ServingBaseline",
    "Evaluator",
    "Pusher",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("world")
    import_demo(None, str(out), users=120, videos=150, interactions=9000, seed=1)
    return str(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "tiny"


def run(settings: RunConfig, world: str, folder: Path) -> local_runner.Run:
    return local_runner.run(settings, world, folder, Console(quiet=True), folder / "test.log")


def with_model(settings: RunConfig, model: dict, gates: tuple[Gate, ...] | None = None) -> RunConfig:
    changed = settings.models["ranker"].model_copy(update={"model": model, **({"gates": gates} if gates else {})})
    return settings.model_copy(update={"models": {"ranker": changed}})


@pytest.fixture(scope="module")
def died(world, folder) -> RunFailedError:
    """A first run, which dies while it trains."""
    with pytest.MonkeyPatch.context() as patch:
        entry = replace(models.MODELS["ranker"], run_fn="tests.e2e.sabotage.failing_run_fn")
        patch.setitem(models.MODELS, "ranker", entry)
        with pytest.raises(RunFailedError) as caught:
            run(SETTINGS, world, folder)
    return caught.value


@pytest.fixture(scope="module")
def pushed(world, folder, died) -> local_runner.Run:
    """The run that follows, and ends."""
    return run(SETTINGS, world, folder)


@pytest.fixture(scope="module")
def good_model(pushed, folder) -> Path:
    return folder / "models" / "ranker" / pushed.served_version["ranker"]


def executions(folder: Path) -> dict[str, list[int]]:
    store = MetadataStore(metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite")))
    by_node = {
        context.name.partition(".")[2]: sorted(store.get_executions_by_context(context.id), key=lambda e: e.id)
        for context in store.get_contexts_by_type("node")
    }
    return {node: [execution.last_known_state for execution in found] for node, found in by_node.items()}


def test_a_failed_step_is_named_with_its_reason_and_the_log(died, folder):
    assert "step Trainer failed" in str(died)
    assert "the machine caught fire" in str(died)
    assert str(folder / "test.log") in str(died)


def test_every_step_runs_in_order_and_the_model_is_pushed(pushed, good_model):
    assert [step.name for step in pushed.steps] == STEPS
    assert pushed.outcome == "pushed"
    assert (good_model / "saved_model.pb").is_file()


def test_a_run_that_died_continues_where_it_died(pushed):
    assert [step.name for step in pushed.steps if step.cached] == STEPS[:6]


def test_rows_of_all_splits_are_the_rows_of_the_world(pushed):
    rows = {step.name: step.rows for step in pushed.steps}
    assert rows["ImpressionExampleGen"] == len(tables.read_table(pushed.world, "interactions"))


def test_an_unchanged_run_comes_from_the_cache(pushed, world, folder, good_model):
    before = executions(folder)
    again = run(SETTINGS, world, folder)
    after = executions(folder)
    assert all(step.cached for step in again.steps)
    assert (pushed.unchanged, again.unchanged) == ([], ["ranker"])
    # MLMD: each node has one execution more than before, and none of them did any work (state 5 is CACHED).
    assert {node: states[-1] for node, states in after.items()} == dict.fromkeys(STEPS, 5)
    assert {node: len(states) - len(before[node]) for node, states in after.items()} == dict.fromkeys(STEPS, 1)
    assert again.served_version == pushed.served_version
    assert [path.name for path in good_model.parent.iterdir()] == [good_model.name]


def test_an_anomaly_stops_the_run_before_anything_is_trained(world, tmp_path):
    """A duration below the contract's minimum of 0, of one video of a world that was not checked."""
    spoilt_world = Path(shutil.copytree(world, tmp_path / "world"))
    videos = tables.read_table(str(spoilt_world), "videos")
    seconds = pa.array([-5.0, *videos["duration_seconds"].to_pylist()[1:]], videos["duration_seconds"].type)
    place = videos.column_names.index("duration_seconds")
    tables.write_table(str(spoilt_world), "videos", videos.set_column(place, "duration_seconds", seconds))
    with pytest.raises(AnomaliesFoundError, match=r"train, feature 'duration_seconds': .* -5<0"):
        run(SETTINGS, str(spoilt_world), tmp_path / "runs")
    assert "Transform" not in executions(tmp_path / "runs")
    assert not (tmp_path / "runs" / "models" / "ranker").exists()


def test_report_is_one_page_about_this_run(pushed, folder):
    cli._report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "ranker" in page
    assert "user_novelty" in page


@pytest.fixture
def spoilt(monkeypatch):
    sabotage = {"run_fn": "tests.e2e.sabotage.run_fn", "settings": "tests.e2e.sabotage.Settings"}
    entry = replace(models.MODELS["ranker"], **sabotage)
    monkeypatch.setitem(models.MODELS, "ranker", entry)


def failed_gates(record: local_runner.Run) -> list[ReportedGate]:
    return [gate for gate in reported_gates(record.artifacts["ranker"]["evaluation"]) if not gate.passed]


def test_a_worse_model_is_refused_by_the_change_gate_alone(pushed, good_model, world, folder, spoilt):
    record = run(with_model(SETTINGS, {"good": str(good_model), "noise": 0.5}), world, folder)
    assert record.outcome == "refused"
    assert {(gate.metric, gate.kind, gate.slice) for gate in failed_gates(record)} == {
        ("auc", "change", "all examples")
    }
    assert [path.name for path in good_model.parent.iterdir()] == [good_model.name]  # nothing was pushed


def test_a_model_worse_on_one_slice_only_is_refused(pushed, good_model, world, folder, spoilt):
    gates = (
        Gate(metric="auc", at_least=0.5, change=0.4),
        Gate(metric="auc", at_least=0.4, change=0.4, slices=("user_novelty=known",)),
        Gate(
            metric="auc",
            at_least=0.05,
            change=0.05,
            slices=(f"primary_category={(category := some_category(pushed))}",),
        ),
    )
    flipped = {"good": str(good_model), "flip": ["primary_category", category]}
    record = run(with_model(SETTINGS, flipped, gates), world, folder)
    assert record.outcome == "refused"
    assert {(gate.kind, gate.slice) for gate in failed_gates(record)} == {("change", f"primary_category = {category}")}
    assert [path.name for path in good_model.parent.iterdir()] == [good_model.name]


def some_category(record: local_runner.Run) -> str:
    """The category on which the good model is best, by its own evaluation."""
    slices = measured(record.artifacts["ranker"]["evaluation"])
    named = [each for each in slices if each.features == ("primary_category",) and each.slice[0][1]]
    found = {each.value: each.candidate["auc"] for each in named}
    return max(found, key=found.__getitem__)


def test_a_refusal_shows_a_table_and_leaves_with_code_3(pushed, good_model, world, folder, spoilt, refused):
    screen = refused(with_model(SETTINGS, {"good": str(good_model), "noise": 0.5}), world, folder)
    assert "ranker was refused" in screen
    assert "auc" in screen


@pytest.fixture(scope="module")
def served(good_model):
    with server.start(str(good_model.parent.parent)) as running, Client(f"127.0.0.1:{running.port}") as client:
        client.wait_until_ready("ranker", timeout_seconds=30)
        yield client


def test_evaluated_scores_are_served_scores(pushed, good_model, served):
    """The same raw rows through TFMA's own extractors, as Evaluator uses them, and through gRPC."""
    contract = Contract.from_json(pushed.contract)
    files = tf.io.gfile.glob(f"{pushed.artifacts['ranker']['examples']}/Split-test/*")
    raw = [record.numpy() for record in tf.data.TFRecordDataset(files, "GZIP").take(200)]
    evaluation = tfma.utils.update_eval_config_with_defaults(
        eval_config(contract, ModelConfig(gates=[Gate(metric="auc", at_least=0.5)])), has_baseline=False
    )
    shared_model = tfma.default_eval_shared_model(str(good_model), eval_config=evaluation)
    extractors = tfma.default_extractors(eval_shared_model=shared_model, eval_config=evaluation)
    source = tf_example_record.TFExampleBeamRecord("memory", raw_record_column_name=tfma.ARROW_INPUT_COLUMN)
    answered = served.predict_examples("ranker", raw)["score"]
    assert np.std(answered) > 0.01
    expected = dict(zip(raw, answered, strict=True))

    def same_scores(extracts):
        inputs = [bytes(example) for extract in extracts for example in np.asarray(extract[tfma.INPUT_KEY]).ravel()]
        scores = np.concatenate([np.asarray(e[tfma.PREDICTIONS_KEY]["score"]).ravel() for e in extracts])
        assert sorted(inputs) == sorted(expected)
        np.testing.assert_allclose(scores, [expected[example] for example in inputs], atol=1e-6)

    with beam.Pipeline(argv=list(SETTINGS.beam_args)) as p:
        extracts = p | beam.Create(raw) | source.BeamSource() | tfma.BatchedInputsToExtracts()
        for extractor in extractors:
            extracts = extracts | extractor.stage_name >> extractor.ptransform
        assert_that(extracts, same_scores)
