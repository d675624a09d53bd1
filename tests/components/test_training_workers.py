"""A training is handed over to a TFJob, whose end the step waits for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from components.trainer import workers
from tests.components.training_operator import TrainingOperator

TEMPLATE = Path(__file__).parents[2] / "kubeflow" / "manifests" / "training" / "tfjob.yaml"
JOB = yaml.safe_load(TEMPLATE.read_text())


def fn_args(folder: Path) -> Any:
    names = ("train_files", "eval_files", "raw_files", "catalogue_files", "frames_files")
    given = {"contract": "{}", "training_job": JOB, "run_fn": "trainer.ranker.run_fn"}
    places = {"model_run_dir": str(folder / "run"), "serving_model_dir": "model", "transform_graph_path": "graph"}
    more = {"data_accessor": object()}  # which FnArgs has, and JSON cannot
    return SimpleNamespace(**{name: [name] for name in names}, **places, custom_config=given, **more)


def with_arguments(path: str) -> dict[str, Any]:
    body = copy.deepcopy(JOB)
    body["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["args"] = [path]
    return body


def test_workers_are_told_where_their_arguments_are_and_the_job_is_deleted_once_done(tmp_path, monkeypatch):
    with TrainingOperator(lambda body: True) as operator:
        operator.redirect(monkeypatch)
        workers.run_fn(fn_args(tmp_path))
    path = f"{tmp_path}/run/arguments.json"
    assert operator.created == [with_arguments(path)]
    assert operator.jobs == {}
    written = json.loads(Path(path).read_text())
    assert (written["run_fn"], written["custom_config"]) == ("trainer.ranker.run_fn", {"contract": "{}"})
    assert (written["train_files"], written["serving_model_dir"]) == (["train_files"], "model")


def test_a_job_that_fails_fails_the_step_with_what_the_operator_said(tmp_path, monkeypatch):
    with TrainingOperator(lambda body: False) as operator:
        operator.redirect(monkeypatch)
        with pytest.raises(workers.TrainingJobError, match="shortlist-training of kubeflow failed: worker 1 ran out"):
            workers.run_fn(fn_args(tmp_path))
    assert operator.jobs == {}


def test_a_step_that_is_tried_again_waits_for_the_job_that_there_is(tmp_path, monkeypatch):
    with TrainingOperator(lambda body: True) as operator:
        operator.redirect(monkeypatch)
        operator.start(with_arguments(f"{tmp_path}/run/arguments.json"))
        workers.run_fn(fn_args(tmp_path))
    assert len(operator.created) == 1


def test_the_job_of_another_run_is_not_taken_for_this_ones(tmp_path, monkeypatch):
    with TrainingOperator(lambda body: True) as operator:
        operator.redirect(monkeypatch)
        operator.start(with_arguments("elsewhere/arguments.json"))
        with pytest.raises(workers.TrainingJobError, match="is there already, of another run"):
            workers.run_fn(fn_args(tmp_path))
    assert list(operator.jobs) == ["shortlist-training"]
