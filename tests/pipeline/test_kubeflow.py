"""The compiled Kubeflow spec: held by a golden file, portable, and loadable by the Kubeflow SDK."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp.pipeline_spec.pipeline_spec_pb2 import ArtifactTypeSchema
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_entrypoint_utils
from tfx.utils import import_utils

from pipeline import config, kubeflow
from pipeline import container as container_of_steps
from transform.contract import ContractError

GOLDEN = Path(__file__).parent.parent / "golden"
PLACES = {
    "world": "s3://bucket/worlds/movielens",
    "root": "s3://bucket/runs",
    "models": "s3://bucket/models",
    "image": "shortlist@sha256:0",
}


@pytest.fixture(scope="module")
def job():
    return kubeflow.compile_spec(config.load("movielens"), **PLACES)


@pytest.fixture(scope="module")
def streams():
    return {
        stream: kubeflow.compile_spec(config.load("demo"), **PLACES, stream=stream) for stream in ("content", "feed")
    }


@pytest.mark.parametrize("name", ["movielens_pipeline", "demo_content", "demo_feed"])
def test_golden_spec_is_unchanged(job, streams, name, tmp_path):
    spec, golden = streams.get(name.removeprefix("demo_"), job), GOLDEN / f"{name}.json"
    if os.environ.get("REGENERATE_GOLDEN"):
        kubeflow.write_spec(spec, golden)
    kubeflow.write_spec(spec, tmp_path / "spec.json")
    assert (tmp_path / "spec.json").read_text() == golden.read_text(), "run `make golden` if the change is meant"


def tasks_of(job):
    return job["pipelineSpec"]["root"]["dag"]["tasks"]


def test_the_two_streams_are_the_whole_run_joined_by_what_is_pushed(streams):
    whole = set(tasks_of(kubeflow.compile_spec(config.load("demo"), **PLACES)))
    content, feed = (set(tasks_of(streams[stream])) for stream in ("content", "feed"))
    assert content & feed == set()
    assert content | feed == whole | {"ContentPusher", "PushedContent"}
    assert {"Trainer.video_classifier", "TopicLearner", "FrameEmbedder"} <= content
    assert {"Trainer.ranker", "TopicQueues", "FeedAssembler"} <= feed
    handed = {"TopicLearner", "ContentEmbedder", "FrameEmbedder"}
    assert set(tasks_of(streams["content"])["ContentPusher"]["dependentTasks"]) == handed
    for reader in ("ImpressionExampleGen", "TopicQueues", "FeedAssembler", "Trainer.jifr"):
        assert "PushedContent" in tasks_of(streams["feed"])[reader]["dependentTasks"]
    places = [
        tasks_of(streams[stream])[task]["inputs"]["parameters"]["push_destination"]
        for stream, task in (("content", "ContentPusher"), ("feed", "PushedContent"))
    ]
    told = "{{$.inputs.parameters['pipelinechannel--models']}}/content"
    assert places == [{"runtimeValue": {"constant": told}}] * 2
    names = {stream: job["pipelineSpec"]["pipelineInfo"]["name"] for stream, job in streams.items()}
    assert names == {"content": "demo-content", "feed": "demo-feed"}


def test_a_container_finds_the_class_of_every_artifact_that_a_spec_names(streams):
    container_of_steps.name_artifacts()
    found = {}
    for component in (c for job in streams.values() for c in job["pipelineSpec"]["components"].values()):
        for side in ("inputDefinitions", "outputDefinitions"):
            for about in component.get(side, {}).get("artifacts", {}).values():
                schema = ArtifactTypeSchema(instance_schema=about["artifactType"]["instanceSchema"])
                title = yaml.safe_load(schema.instance_schema)["title"]
                path = kubeflow_v2_entrypoint_utils._retrieve_class_path(schema)
                found[title] = import_utils.import_class_by_path(path).TYPE_NAME
    ours = {title: name for title, name in found.items() if not title.startswith("tfx.")}
    assert set(ours) == {
        "shortlist.ContentVectors",
        "shortlist.FrameVectors",
        "shortlist.QueueSnapshot",
        "shortlist.Topics",
    }
    assert all(title == name for title, name in ours.items())


def test_a_stream_takes_the_settings_of_its_own_steps_and_refuses_names_of_no_stream(streams):
    def of(stream, named):
        settings = config.KubeflowSettings.model_validate({"resources": {named: {"cpus": 3}}})
        return kubeflow.compile_spec(
            config.load("demo").model_copy(update={"kubeflow": settings}), **PLACES, stream=stream
        )

    assert container(of("feed", "Trainer.ranker"), "Trainer.ranker")["resources"]["cpuLimit"] == 3.0
    assert tasks_of(of("content", "Trainer.ranker")).keys() == tasks_of(streams["content"]).keys()
    assert container(of("content", "ContentPusher"), "ContentPusher")["resources"]["cpuLimit"] == 3.0
    assert tasks_of(of("feed", "ContentPusher")).keys() == tasks_of(streams["feed"]).keys()
    with pytest.raises(ContractError, match=r"there is no step 'Trainer.rankr'.*Trainer.ranker"):
        of("content", "Trainer.rankr")


@pytest.mark.parametrize(
    ("name", "why"), [("movielens", "learns nothing of videos"), ("clips", "learns of videos alone")]
)
@pytest.mark.parametrize("stream", ["content", "feed"])
def test_a_configuration_without_one_of_the_streams_has_none(name, why, stream):
    with pytest.raises(ContractError, match=f"--stream: {name} {why} .*: leave --stream out"):
        kubeflow.compile_spec(config.load(name), **PLACES, stream=stream)


@pytest.mark.parametrize(
    ("stream", "step"),
    [
        ("feed", "PushedContent"),
        ("content", "ContentPusher"),
        (None, "ServingBaseline"),
        (None, "Pusher.feed"),
        (None, "TopicLearner"),
    ],
)
def test_what_was_pushed_is_never_taken_from_the_cache(stream, step):
    cached = config.KubeflowSettings(cached=(step,))
    with pytest.raises(ContractError, match=rf"kubeflow\.cached: {re.escape(step)} depends .*: take it out"):
        kubeflow.compile_spec(config.load("demo").model_copy(update={"kubeflow": cached}), **PLACES, stream=stream)


def test_a_slash_at_the_end_of_a_folder_is_no_part_of_it(job):
    slashes = {**PLACES, **{name: f"{PLACES[name]}/" for name in ("world", "root", "models")}}
    assert kubeflow.compile_spec(config.load("movielens"), **slashes) == job


def test_a_step_does_not_start_with_a_parameter_that_the_engine_left_out():
    container_of_steps.refuse_unfilled(["-m", '{"push_destination": "s3://bucket/models/ranker"}'])
    unfilled = '{"push_destination": "{{$.inputs.parameters[\'pipelinechannel--models\']}}/ranker"}'
    started = subprocess.run(
        [sys.executable, "-m", "pipeline.container", unfilled], capture_output=True, text=True, check=False
    )
    assert started.returncode == 1
    assert re.search(r"fill in \{\{.*--models'\]\}\}, got it as it was: .* since 2\.14", started.stderr)


def test_only_container_and_importer_executors_occur(job):
    kinds = set(kubeflow.executors(job).values())
    assert kinds
    assert kinds <= {"container", "importer"}  # a resolver or a lifecycle hook needs Google's managed backend


def test_no_executor_has_a_lifecycle_hook(job):
    assert "lifecycle" not in json.dumps(job)
    assert "resolver" not in json.dumps(job["pipelineSpec"]["deploymentSpec"]).lower()


def test_schema_is_2_1_and_nothing_is_cached(job):
    assert job["pipelineSpec"]["schemaVersion"] == "2.1.0"
    tasks = job["pipelineSpec"]["root"]["dag"]["tasks"]
    assert {name: task.get("cachingOptions", {}).get("enableCache", False) for name, task in tasks.items()} == (
        dict.fromkeys(tasks, False)
    )


def test_spec_names_no_place_but_those_given(job):
    text = json.dumps(job)
    assert "s3://bucket/worlds/movielens" in text
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text


def test_every_step_waits_for_what_it_needs(job):
    tasks = job["pipelineSpec"]["root"]["dag"]["tasks"]
    assert "Evaluator" in tasks["Pusher"]["dependentTasks"]
    assert "ServingBaseline" in tasks["Evaluator"]["dependentTasks"]
    assert "AnomalyGate" in tasks["Transform"]["dependentTasks"]
    assert "ExampleValidator" in tasks["AnomalyGate"]["dependentTasks"]


def test_a_run_with_clips_compiles_and_embeds_what_was_pushed_before_impressions():
    job = kubeflow.compile_spec(
        config.load("demo"), "s3://b/world", "s3://b/runs", "s3://b/models", "shortlist@sha256:0"
    )
    tasks = job["pipelineSpec"]["root"]["dag"]["tasks"]
    assert set(kubeflow.executors(job).values()) == {"container"}
    assert {"ClipExampleGen", "Pusher.video_classifier"} <= set(tasks["ContentEmbedder"]["dependentTasks"])
    assert "ContentEmbedder" in tasks["ImpressionExampleGen"]["dependentTasks"]
    assert "TopicQueues" in tasks["FeedAssembler"]["dependentTasks"]
    assert "lifecycle" not in json.dumps(job)


def test_kubeflow_sdk_loads_the_spec(job, tmp_path):
    from kfp.components import load_component_from_text

    component = load_component_from_text(yaml.safe_dump(job["pipelineSpec"]))
    assert component.pipeline_spec.pipeline_info.name == "movielens"


SETTINGS = {
    "retries": 2,
    "resources": {
        "default": {"cpus": 1, "memory_gigabytes": 4},
        "Trainer": {"cpus": 8, "memory_gigabytes": 32, "gpus": 1},
    },
    "cached": ["Transform", "Trainer"],
    "beam_args": {"StatisticsGen": ["--runner=FlinkRunner", "--flink_master=flink:8081"]},
}


@pytest.fixture(scope="module")
def settled():
    settings = config.load("movielens").model_copy(
        update={"kubeflow": config.KubeflowSettings.model_validate(SETTINGS)}
    )
    return kubeflow.compile_spec(settings, "s3://b/world", "s3://b/runs", "s3://b/models", "shortlist@sha256:0")


def container(job, step):
    return job["pipelineSpec"]["deploymentSpec"]["executors"][f"{step}_executor"]["container"]


def test_steps_ask_for_what_the_configuration_says(settled):
    asked = {"cpuLimit": 8.0, "cpuRequest": 8.0, "memoryLimit": 32.0, "memoryRequest": 32.0}
    gpu = {"type": "nvidia.com/gpu", "count": "1"}
    assert container(settled, "Trainer")["resources"] == {**asked, "accelerator": gpu}
    assert container(settled, "Evaluator")["resources"]["memoryLimit"] == 4.0
    assert "accelerator" not in container(settled, "Evaluator")["resources"]


def test_every_step_is_tried_again_and_only_named_ones_are_cached(settled):
    tasks = settled["pipelineSpec"]["root"]["dag"]["tasks"]
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks.values()} == {2}
    assert {name for name, task in tasks.items() if task["cachingOptions"]["enableCache"]} == {"Transform", "Trainer"}


def test_one_step_has_beam_arguments_of_its_own(settled, job):
    assert container(settled, "StatisticsGen")["args"][-2:] == SETTINGS["beam_args"]["StatisticsGen"]
    assert "--runner=DirectRunner" not in container(settled, "StatisticsGen")["args"]
    assert container(settled, "Transform")["args"] == container(job, "Transform")["args"]


def test_the_world_is_a_parameter_wherever_it_is_read(job):
    root = job["pipelineSpec"]["root"]
    assert root["inputDefinitions"]["parameters"]["world"]["defaultValue"] == "s3://bucket/worlds/movielens"
    readers = {
        name
        for name, task in root["dag"]["tasks"].items()
        if task.get("inputs", {}).get("parameters", {}).get("world") == {"componentInputParameter": "world"}
    }
    assert readers == {"ImpressionExampleGen", "FeedAssembler"}
    assert json.dumps(root["dag"]).count("s3://bucket/worlds/movielens") == 0


def test_what_reads_the_world_is_told_the_id_of_the_run():
    job = kubeflow.compile_spec(config.load("demo"), "s3://b/w", "s3://b/r", "s3://b/m", "shortlist@sha256:0")
    root = job["pipelineSpec"]["root"]
    assert root["inputDefinitions"]["parameters"]["run_id"]["defaultValue"] == "unnamed"
    told = {"componentInputParameter": "run_id"}
    given = {name: task.get("inputs", {}).get("parameters", {}) for name, task in root["dag"]["tasks"].items()}
    readers = {name for name, parameters in given.items() if "world" in parameters}
    assert {name for name, parameters in given.items() if parameters.get("world_fingerprint") == told} == readers
    assert {"ClipExampleGen", "VideoExampleGen", "ImpressionExampleGen", "FeedAssembler"} <= readers


def test_where_models_are_pushed_to_is_a_parameter_wherever_it_occurs(job):
    """Whole, or within a longer string, where it is a placeholder that KFP's driver fills."""
    spec = job["pipelineSpec"]
    default = spec["root"]["inputDefinitions"]["parameters"]["models"]["defaultValue"]
    tasks = spec["root"]["dag"]["tasks"]
    assert json.dumps(tasks).count(default) == 0
    assert tasks["FeedAssembler"]["inputs"]["parameters"]["models"] == {"componentInputParameter": "models"}
    pusher = tasks["Pusher"]["inputs"]["parameters"]
    assert pusher["pipelinechannel--models"] == {"componentInputParameter": "models"}
    filled = pusher["push_destination"]["runtimeValue"]["constant"].replace(
        "{{$.inputs.parameters['pipelinechannel--models']}}", "gs://elsewhere"
    )
    assert json.loads(filled) == {"filesystem": {"base_directory": "gs://elsewhere/ranker"}}
    declared = spec["components"]["Pusher"]["inputDefinitions"]["parameters"]
    assert declared["pipelinechannel--models"] == {"parameterType": "STRING"}


@pytest.mark.parametrize(
    "given", [{"cached": ["Trainr"]}, {"resources": {"Trainr": {}}}, {"beam_args": {"Trainr": []}}]
)
def test_settings_of_a_step_that_there_is_not_are_refused(given):
    settings = config.load("movielens").model_copy(update={"kubeflow": config.KubeflowSettings.model_validate(given)})
    with pytest.raises(ContractError, match=r"there is no step 'Trainr' \(did you mean 'Trainer'\?\)"):
        kubeflow.compile_spec(settings, "w", "r", "m", "i")


TRAINING_JOB = str(Path(__file__).parents[2] / "kubeflow" / "manifests" / "training" / "tfjob.yaml")


def on_workers(path: str) -> dict:
    settings = config.load("movielens").model_dump(mode="json")
    settings["models"]["ranker"]["training"]["strategy"] = "multi_worker"
    settings["kubeflow"] = {"training_jobs": {"ranker": path}}
    return kubeflow.compile_spec(
        config.RunConfig.model_validate(settings),
        "s3://b/world",
        "s3://b/runs",
        "s3://b/models",
        "shortlist@sha256:0",
    )


def test_a_training_on_several_workers_is_handed_over_with_the_image_of_the_steps():
    given = on_workers(TRAINING_JOB)["pipelineSpec"]["root"]["dag"]["tasks"]["Trainer"]["inputs"]["parameters"]
    assert given["run_fn"]["runtimeValue"]["constant"] == "components.trainer.workers.run_fn"
    told = json.loads(given["custom_config"]["runtimeValue"]["constant"])
    assert told["run_fn"] == "trainer.ranker.run_fn"
    (container,) = told["training_job"]["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert (container["name"], container["image"]) == ("tensorflow", "shortlist@sha256:0")


def test_a_file_that_is_no_training_job_is_refused(tmp_path):
    (tmp_path / "job.yaml").write_text("kind: Job\n")
    for path in (tmp_path / "job.yaml", tmp_path / "none.yaml"):
        with pytest.raises(ContractError, match=r"expected a TFJob with name and namespace: start from kubeflow/"):
            on_workers(str(path))


def test_a_training_job_of_a_model_that_trains_alone_is_refused():
    settings = config.load("movielens").model_dump(mode="json") | {
        "kubeflow": {"training_jobs": {"ranker": TRAINING_JOB}}
    }
    with pytest.raises(ValueError, match=r"expected models of the run with `training: \{strategy: multi_worker\}`"):
        config.RunConfig.model_validate(settings)


def test_folders_that_are_one_are_refused():
    with pytest.raises(ContractError, match="expected a world, a pipeline root and a push destination of their own"):
        kubeflow.compile_spec(config.load("movielens"), "s3://b/w", "s3://b/models", "s3://b/models", "shortlist:1")
