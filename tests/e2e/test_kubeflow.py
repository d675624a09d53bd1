"""The compiled spec does what a local run does: each container's command is run, as Kubeflow Pipelines would."""

import copy
import glob
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the models' ops)
from rich.console import Console

from components.feed_assembler import golden
from components.importers.demo import import_demo
from components.world import tables
from pipeline import kubeflow, local_runner, training_pipeline
from pipeline.config import RunConfig
from tests.pipeline.kubeflow_engine import Engine, TaskFailedError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

STREAMS: tuple[training_pipeline.Stream, ...] = ("content", "feed")
CACHED = ["ContractSchema", "ImpressionExampleGen", "StatisticsGen", "ExampleValidator", "AnomalyGate", "Transform"]


def settings(at_least: float = 0.1) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "contract": "microvideo",
            "feed": {"length": 5},
            "kubeflow": {"cached": CACHED, "retries": 1},
            "models": {
                "ranker": {
                    "model": {"architecture": "lr"},
                    "training": {"epochs": 1, "batch_size": 256},
                    "gates": [{"metric": "auc", "at_least": at_least}],
                }
            },
        }
    )


def job(world: str, folder: Path, config: RunConfig) -> dict:
    """Compiled for another push destination, so that it is the parameter that decides."""
    return kubeflow.compile_spec(config, world, f"{folder}/root", f"{folder}/nowhere", "example/shortlist@sha256:0")


def scores(models: Path, examples: str) -> np.ndarray:
    (version,) = (models / "ranker").iterdir()
    records = list(tf.data.TFRecordDataset(glob.glob(f"{examples}/Split-test/*"), "GZIP").as_numpy_iterator())
    answer = tf.saved_model.load(str(version)).signatures["serving_default"]
    return answer(examples=tf.constant(sorted(records)))["score"].numpy()


def assert_feed_answers(models: Path, asked: list) -> None:
    """The feed pushed to `models` answers golden requests as it did that they are of."""
    (version,) = (models / "feed").iterdir()
    feed = tf.saved_model.load(str(version))
    signatures = set()
    for request, answer in ((log.request, log.response) for log in asked):
        name = request.model_spec.signature_name
        signatures.add(name)
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        got = feed.signatures[name](**inputs)
        assert got.keys() == answer.outputs.keys()
        for key, value in answer.outputs.items():
            wanted = tf.make_ndarray(value)
            if wanted.dtype == object:
                assert got[key].numpy().tolist() == wanted.tolist()
            else:
                np.testing.assert_allclose(got[key], wanted, atol=1e-5)
    assert signatures == {"recommend", "rank"}


def golden_of(root: Path) -> list:
    (uri,) = root.glob("artifacts/FeedAssembler/model/*")
    return list(golden.read(str(uri)))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("world")
    import_demo(None, str(out), users=60, videos=60, interactions=2500, seed=4)
    return str(out)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("kubeflow")
    return Engine(str(folder / "root"), str(folder / "launcher"))


@pytest.fixture(scope="module")
def first(engine, world):
    folder = Path(engine.root).parent
    done = engine.run(job(world, folder, settings()), "first", {"models": f"{folder}/models"})
    assert not (folder / "nowhere").exists()
    return done, list(engine.started)


def test_the_spec_pushes_what_a_local_run_pushes(first, engine, world, tmp_path):
    done, started = first
    assert started == list(done)
    assert done["Evaluator"]["blessing"][0]["metadata"]["blessed"] == 1
    assert done["ServingCheck"]["blessing"][0]["metadata"]["blessed"] == 1
    local = local_runner.run(settings(), world, tmp_path / "tiny", Console(quiet=True), tmp_path / "log")
    assert local.outcome == "pushed"
    examples = local.artifacts["ranker"]["examples"]
    mine, theirs = scores(Path(local.models), examples), scores(Path(engine.root).parent / "models", examples)
    assert mine.std() > 0.001
    np.testing.assert_allclose(theirs, mine, atol=1e-5)
    assert_feed_answers(Path(engine.root).parent / "models", golden_of(tmp_path / "tiny"))


def test_both_streams_push_what_one_local_run_pushes(world, tmp_path):
    learned = {"topics": {"topics": 4}, "frames": {"encoder": "colours"}}
    config = RunConfig.model_validate({**settings().model_dump(exclude_unset=True), **learned})
    engine, places = Engine(f"{tmp_path}/root", f"{tmp_path}/launcher"), (f"{tmp_path}/root", f"{tmp_path}/nowhere")
    specs = {each: kubeflow.compile_spec(config, world, *places, "shortlist@sha256:0", stream=each) for each in STREAMS}
    given = {"models": f"{tmp_path}/models"}
    with pytest.raises(TaskFailedError, match="run the content stream of the same configuration first"):
        engine.run(only("PushedContent", specs["feed"]), "early", given)
    engine.run(specs["content"], "daily", given)
    assert {"TopicLearner", "FrameEmbedder", "ContentPusher"} <= {*engine.started}
    engine.run(specs["feed"], "hourly", given)
    assert not {"TopicLearner", "FrameEmbedder"} & {*engine.started}
    local = local_runner.run(config, world, tmp_path / "tiny", Console(quiet=True), tmp_path / "log")
    assert local.outcome == "pushed"
    examples = local.artifacts["ranker"]["examples"]
    mine, theirs = scores(Path(local.models), examples), scores(tmp_path / "models", examples)
    np.testing.assert_allclose(theirs, mine, atol=1e-5)
    assert_feed_answers(tmp_path / "models", golden_of(tmp_path / "tiny"))


def test_what_did_not_change_is_not_run_again_and_a_refused_model_is_not_pushed(first, engine, world):
    models = Path(engine.root).parent / "models"
    before = sorted(path.name for path in (models / "ranker").iterdir())
    done = engine.run(job(world, models.parent, settings(at_least=0.999)), "second", {"models": str(models)})
    assert sorted(engine.skipped) == sorted(CACHED)
    assert done["Evaluator"]["blessing"][0]["metadata"]["blessed"] == 0
    assert sorted(path.name for path in (models / "ranker").iterdir()) == before
    served = done["ServingBaseline"]["baseline"][0]["metadata"]["served_version"]
    assert [served] == before


def only(task: str, spec: dict) -> dict:
    """The same job with one task, which needs no other."""
    spec = copy.deepcopy(spec)
    tasks = spec["pipelineSpec"]["root"]["dag"]["tasks"]
    spec["pipelineSpec"]["root"]["dag"]["tasks"] = {task: tasks[task]}
    return spec


def test_another_world_is_a_parameter_of_the_same_spec(engine, world, first, tmp_path):
    import_demo(None, str(tmp_path), users=20, videos=20, interactions=300, seed=5)
    spec = only("ImpressionExampleGen", job(world, Path(engine.root).parent, settings()))
    engine.run(spec, "same")
    assert engine.skipped == ["ImpressionExampleGen"]
    engine.run(spec, "anew", {"run_id": "anew"})  # the tables changed where they are
    assert engine.started == ["ImpressionExampleGen"]
    done = engine.run(spec, "other", {"world": str(tmp_path)})
    assert engine.started == ["ImpressionExampleGen"]
    events = tables.read_table(str(tmp_path), "interactions", ["at"])
    assert done["ImpressionExampleGen"]["examples"][0]["metadata"]["rows"] == len(events)


def test_a_step_that_failed_is_tried_again(engine, world, tmp_path):
    spec = only("ContractSchema", job(world, Path(engine.root).parent, settings()))
    container = spec["pipelineSpec"]["deploymentSpec"]["executors"]["ContractSchema_executor"]["container"]
    container["args"][1] = "sabotage.FailsOnce"
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parent)))
    marker = {"name": "FAILED_BEFORE", "value": str(tmp_path / "marker")}
    container["env"] = [marker, {"name": "PYTHONPATH", "value": paths}]
    assert json.dumps(engine.run(spec, "retried")["ContractSchema"]).count("retried/ContractSchema/schema")
    assert engine.started == ["ContractSchema", "ContractSchema"]
    (tmp_path / "marker").unlink()
    spec["pipelineSpec"]["root"]["dag"]["tasks"]["ContractSchema"].pop("retryPolicy")
    engine.cache.clear()
    with pytest.raises(TaskFailedError, match="fails the first time"):
        engine.run(spec, "failed")


def test_world_root_and_models_in_a_bucket_push_what_folders_do(first, engine, world, bucket, tmp_path):
    for path in filter(Path.is_file, Path(world).rglob("*")):
        bucket.upload_file(str(path), f"world/{path.relative_to(world)}")
    remote = Engine("s3://shortlist/root", str(tmp_path / "launcher"))
    spec = kubeflow.compile_spec(
        settings(), "s3://shortlist/world", remote.root, "s3://shortlist/no", "shortlist@sha256:0"
    )
    done = remote.run(spec, "first", {"models": "s3://shortlist/models"})
    assert done["Evaluator"]["blessing"][0]["metadata"]["blessed"] == 1
    pushed = [entry.key for entry in bucket.objects.filter(Prefix="models/")]
    assert {key.split("/")[1] for key in pushed} == {"ranker", "feed"}
    for key in pushed:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        if not key.endswith("/"):
            bucket.download_file(key, str(tmp_path / key))
    examples = first[0]["ImpressionExampleGen"]["examples"][0]["uri"]
    mine, theirs = scores(Path(engine.root).parent / "models", examples), scores(tmp_path / "models", examples)
    np.testing.assert_allclose(theirs, mine, atol=1e-5)
