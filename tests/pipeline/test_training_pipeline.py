"""What stands between the feed and its Pusher, as the configuration says; in the graph and in Kubeflow's spec."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf import json_format
from tfx.components.infra_validator import serving_bins
from tfx.dsl.components.base import base_node
from tfx.proto import infra_validator_pb2

from components.serving_check.settings import ServingCheckSettings
from pipeline import config, container, kubeflow, training_pipeline
from pipeline.report.gates import gates_of
from transform import contract as contracts
from transform.contract import ContractError

PLATFORMS = {"docker": "local_docker", "kubernetes": "kubernetes"}
IMAGE = "registry:5000/tensorflow/serving:2.16.1"  # the port is no tag


def by(how: str) -> config.RunConfig:
    settings = ServingCheckSettings(by=how, image=IMAGE, startup_seconds=90)
    return config.load("movielens").model_copy(update={"serving_check": settings})


def graph(how: str) -> dict[str, base_node.BaseNode]:
    settings = by(how)
    at = training_pipeline.Locations(world="world", fingerprint="", root="root", models="models")
    nodes = training_pipeline.components(settings, contracts.load(settings.contract), at, {})
    return {node.id: node for node in nodes}


def producer(node: base_node.BaseNode, channel: str) -> str:
    return str(node.inputs[channel].producer_component_id)


@pytest.mark.parametrize(
    ("how", "check", "other"),
    [
        ("model_server", "ServingCheck", "InfraValidator"),
        ("docker", "InfraValidator", "ServingCheck"),
        ("kubernetes", "InfraValidator", "ServingCheck"),
    ],
)
def test_the_check_of_the_configuration_and_no_other_stands_between_the_feed_and_its_pusher(how, check, other):
    nodes = graph(how)
    assert other not in nodes
    assert producer(nodes[check], "model") == "FeedAssembler"
    assert producer(nodes["Pusher.feed"], "model") == "FeedAssembler"
    assert producer(nodes["Pusher.feed"], "infra_blessing") == check


@pytest.mark.parametrize("how", PLATFORMS)
def test_the_image_is_loaded_where_the_configuration_says_and_as_long_as_it_says(how):
    told = graph(how)["InfraValidator"].exec_properties
    spec = json_format.Parse(told["serving_spec"], infra_validator_pb2.ServingSpec())
    (binary,) = serving_bins.parse_serving_binaries(spec)  # as its executor reads it
    assert binary.image == IMAGE
    assert (spec.WhichOneof("serving_platform"), spec.model_name) == (PLATFORMS[how], "feed")
    assert json.loads(told["validation_spec"]) == {"max_loading_time_seconds": 90}


def test_kubeflow_refuses_a_check_by_docker_which_its_steps_have_not():
    with pytest.raises(ContractError, match="no Docker engine: set `by: kubernetes`"):
        kubeflow.compile_spec(by("docker"), "s3://b/world", "s3://b/runs", "s3://b/models", "shortlist@sha256:0")


def test_kubeflow_runs_the_check_in_the_image_of_the_steps_before_the_push():
    """TFX's compiler refuses TFX's own component of that name."""
    job = kubeflow.compile_spec(by("kubernetes"), "s3://b/world", "s3://b/runs", "s3://b/models", "shortlist@sha256:0")
    spec = job["pipelineSpec"]
    tasks = spec["root"]["dag"]["tasks"]
    told = tasks["Pusher.feed"]["inputs"]["artifacts"]["infra_blessing"]["taskOutputArtifact"]
    assert told == {"producerTask": "InfraValidator", "outputArtifactKey": "blessing"}
    assert "InfraValidator" in tasks["Pusher.feed"]["dependentTasks"]
    step = spec["deploymentSpec"]["executors"]["InfraValidator_executor"]["container"]
    assert (step["image"], step["command"]) == ("shortlist@sha256:0", kubeflow.COMMAND)
    assert "tfx.components.infra_validator.executor.Executor" in step["args"]
    given = tasks["InfraValidator"]["inputs"]["parameters"]["serving_spec"]["runtimeValue"]["constant"]
    assert "kubernetes" in json.loads(given)
    assert set(kubeflow.executors(job).values()) == {"container"}


def test_a_step_knows_the_namespace_of_its_pod_unless_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KFP_NAMESPACE", "")
    del os.environ["KFP_NAMESPACE"]
    container.name_namespace(tmp_path)  # on no cluster
    assert "KFP_NAMESPACE" not in os.environ
    (tmp_path / "namespace").write_text("videos\n")
    container.name_namespace(tmp_path)
    assert os.environ["KFP_NAMESPACE"] == "videos"
    (tmp_path / "namespace").write_text("others")
    container.name_namespace(tmp_path)
    assert os.environ["KFP_NAMESPACE"] == "videos"


@pytest.mark.parametrize(("mark", "passed"), [("INFRA_BLESSED", True), ("INFRA_NOT_BLESSED", False)])
def test_what_infra_validator_found_is_the_gate_of_the_feed(tmp_path: Path, mark: str, passed: bool):
    (tmp_path / mark).touch()
    (gate,) = gates_of("feed", {"infra_validation": str(tmp_path)})
    assert (gate.metric, gate.passed) == ("loads in TensorFlow Serving", passed)
