"""The compiled Kubeflow spec: held by a golden file, portable, and loadable by the Kubeflow SDK."""

import json
import os
from pathlib import Path

import pytest
import yaml

from pipeline import config, kubeflow

GOLDEN = Path(__file__).parent.parent / "golden" / "movielens_pipeline.json"


@pytest.fixture(scope="module")
def job():
    return kubeflow.compile_spec(
        config.load("movielens"),
        world="s3://bucket/worlds/movielens",
        root="s3://bucket/runs",
        models="s3://bucket/models",
        image="example/shortlist:1",
    )


def test_golden_spec_is_unchanged(job, tmp_path):
    if os.environ.get("REGENERATE_GOLDEN"):
        kubeflow.write_spec(job, GOLDEN)
    kubeflow.write_spec(job, tmp_path / "spec.json")
    assert (tmp_path / "spec.json").read_text() == GOLDEN.read_text(), "run `make golden` if the change is meant"


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
        config.load("demo"), "s3://b/world", "s3://b/runs", "s3://b/models", "example/shortlist:1"
    )
    tasks = job["pipelineSpec"]["root"]["dag"]["tasks"]
    assert set(kubeflow.executors(job).values()) == {"container"}
    assert {"ClipExampleGen", "Pusher.video_classifier"} <= set(tasks["ContentEmbedder"]["dependentTasks"])
    assert "ContentEmbedder" in tasks["ImpressionExampleGen"]["dependentTasks"]
    assert "lifecycle" not in json.dumps(job)


def test_kubeflow_sdk_loads_the_spec(job, tmp_path):
    from kfp.components import load_component_from_text

    component = load_component_from_text(yaml.safe_dump(job["pipelineSpec"]))
    assert component.pipeline_spec.pipeline_info.name == "movielens"
