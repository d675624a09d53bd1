"""Compiles the pipeline into a Kubeflow Pipelines spec (version 2.1): JSON that names no machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

from pipeline import training_pipeline
from pipeline.config import RunConfig
from transform import contract as contracts


def compile_spec(config: RunConfig, world: str, root: str, models: str, image: str) -> dict[str, Any]:
    """The PipelineJob of a run as a dictionary.

    Nothing is cached between runs of one spec: it cannot know whether the world changed.

    Args:
        config: What to run.
        world: Folder of canonical tables that the cluster can read.
        root: Folder of artifacts that the cluster can write.
        models: Push destination that the cluster can write.
        image: Container image with Shortlist installed.
    """
    contract = contracts.load(config.contract)
    at = training_pipeline.Locations(world=world, fingerprint="", root=root, models=models)
    pipeline = training_pipeline.build(config, contract, at, judgements={}, cache=False)
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True)
    )
    job: dict[str, Any] = runner.run(pipeline, write_out=False)
    return job


def executors(job: dict[str, Any]) -> dict[str, str]:
    """The kind of every executor in a spec, by its label: `container`, `importer`, or whatever else occurs."""
    specs = job["pipelineSpec"]["deploymentSpec"]["executors"]
    return {label: next(iter(spec)) for label, spec in specs.items()}


def write_spec(job: dict[str, Any], path: Path) -> None:
    """Write a spec, with sorted keys, so that two compilations of one configuration are the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job, indent=1, sort_keys=True) + "\n", encoding="utf-8")
