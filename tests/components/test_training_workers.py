"""A training is handed over to a TFJob, whose end the step waits for."""

from __future__ import annotations

import copy
import hashlib
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
    body["metadata"]["name"] += "-" + hashlib.sha256(path.encode()).hexdigest()[:8]
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


def test_a_job_that_fails_fails_the_step_stays_to_be_read_and_is_started_anew(tmp_path, monkeypatch):
    ends = iter([False, True])
    with TrainingOperator(lambda body: next(ends)) as operator:
        operator.redirect(monkeypatch)
        with pytest.raises(workers.TrainingJobError, match=r"shortlist-training-\w{8} .* failed: worker 1 ran"):
            workers.run_fn(fn_args(tmp_path))
        assert len(operator.jobs) == 1
        workers.run_fn(fn_args(tmp_path))
    assert (len(operator.created), operator.jobs) == (2, {})


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
        workers.run_fn(fn_args(tmp_path))
    assert list(operator.jobs) == [with_arguments("elsewhere/arguments.json")["metadata"]["name"]]


def test_an_api_server_that_is_busy_for_a_while_does_not_end_a_training(tmp_path, monkeypatch):
    with TrainingOperator(lambda body: True) as operator:
        operator.redirect(monkeypatch)
        operator.busy = 3
        workers.run_fn(fn_args(tmp_path))
    assert (operator.busy, operator.jobs) == (0, {})
