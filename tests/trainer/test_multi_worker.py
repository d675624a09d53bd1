"""Two processes train one model: they reach what one process reaches, and go on after one of them was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml

from components.trainer import workers as training_workers
from tests.components.training_operator import TrainingOperator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
MODELS = {  # and how far the loss may be off: in-batch negatives are those of a worker's own half
    "ranker": (
        "trainer.ranker.run_fn",
        {"architecture": "mhsa_crossing", "embedding_width": 4, "deep": {"units": [8], "dropout": 0.0}},
        1e-3,
    ),
    "retrieval": (
        "trainer.topic_retrieval.run_fn",
        {"embedding_width": 4, "width": 4, "deep": {"units": [8], "dropout": 0.0}, "index": {"answers": 4}},
        0.05,
    ),
}


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def arguments(world: Any, folder: Path, model: dict, strategy: str, epochs: int = 3) -> dict:
    training = {"epochs": epochs, "batch_size": 48, "strategy": strategy, "patience": 9, "checkpoint_steps": 1}
    given = {
        "contract": world.contract.to_json(),
        "model": model,
        "training": training,
        "checkpoint_dir": str(folder / "checkpoint"),
    }
    places = {"model_run_dir": str(folder / "run"), "serving_model_dir": str(folder / "model")}
    return {**vars(world.fn_args), **places, "custom_config": given}


def start(run_fn: str, given: dict, workers: int, folder: Path) -> list[subprocess.Popen]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps({**given, "run_fn": run_fn}))
    return start_workers([sys.executable, "-m", "trainer.worker", str(folder / "arguments.json")], workers, folder)


def start_workers(command: list[str], workers: int, folder: Path) -> list[subprocess.Popen]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        place = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1"}
        environment |= {"TF_CONFIG": place} if workers > 1 else {}
        with open(folder / f"worker{index}.log", "ab") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return processes


def finished(processes: list[subprocess.Popen], folder: Path) -> list[dict[str, float]]:
    codes = [process.wait(timeout=600) for process in processes]
    logs = [path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("*.log"))]
    assert codes == [0] * len(processes), "\n".join(logs)
    return json.loads((folder / "run" / "history.json").read_text())


def recorded(folder: Path) -> list[dict[str, float]]:
    """The epochs that are done; a file that is being written has none."""
    file = folder / "run" / "history.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else []
    except json.JSONDecodeError:
        return []


@pytest.mark.parametrize("name", list(MODELS))
def test_two_workers_reach_what_one_reaches(world, tmp_path, name):
    run_fn, model, tolerance = MODELS[name]
    histories = []
    for workers, strategy in ((1, "none"), (2, "multi_worker")):
        folder = tmp_path / str(workers)
        histories.append(finished(start(run_fn, arguments(world, folder, model, strategy), workers, folder), folder))
    one, two = histories
    assert len(one) == len(two) == 3
    assert abs(one[0]["val_loss"] - one[-1]["val_loss"]) > 1e-3  # something was learned
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=tolerance)
        assert theirs["val_loss"] == pytest.approx(mine["val_loss"], rel=tolerance)
    assert tf.saved_model.contains_saved_model(str(tmp_path / "2" / "model"))
    assert not list((tmp_path / "2").rglob("not_chief"))


@pytest.mark.parametrize(
    ("killed", "epochs"), [(0, 1), (1, 1), (0, 6)], ids=["chief", "worker", "chief while it exports"]
)
def test_workers_of_which_one_was_killed_go_on_where_they_stopped(world, tmp_path, killed, epochs):
    """The other one notices and leaves with an error, so that whoever started it may start both again."""
    run_fn, model, _ = MODELS["ranker"]
    whole = finished(
        start(run_fn, arguments(world, tmp_path / "whole", model, "multi_worker", 6), 2, tmp_path / "whole"),
        tmp_path / "whole",
    )
    folder = tmp_path / "killed"
    given = arguments(world, folder, model, "multi_worker", 6)
    processes = start(run_fn, given, 2, folder)
    deadline = time.monotonic() + 300
    while len(recorded(folder)) < epochs and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[killed].kill()
    try:
        assert processes[1 - killed].wait(timeout=300) != 0
    finally:
        processes[1 - killed].kill()
    before = recorded(folder)
    assert epochs <= len(before) < (6 if epochs == 1 else 7)
    assert not tf.saved_model.contains_saved_model(str(folder / "model"))
    after = finished(start(run_fn, given, 2, folder), folder)
    assert after[: len(before)] == before
    np.testing.assert_allclose([e["val_loss"] for e in after], [e["val_loss"] for e in whole], rtol=1e-4)


def test_a_training_that_is_handed_over_is_that_of_the_workers_of_its_job(world, tmp_path, monkeypatch):
    """The operator's part is played by a server that starts a process for each replica, as the job says."""
    run_fn, model, _ = MODELS["ranker"]
    job = yaml.safe_load((ROOT / "kubeflow" / "manifests" / "training" / "tfjob.yaml").read_text())
    given = arguments(world, tmp_path, model, "multi_worker")
    given["custom_config"] |= {"training_job": job, "run_fn": run_fn}
    given["frames_files"] = []

    def play(body: dict) -> bool:
        worker = body["spec"]["tfReplicaSpecs"]["Worker"]
        (container,) = worker["template"]["spec"]["containers"]
        command = [sys.executable, *container["command"][1:], *container["args"]]
        finished(start_workers(command, worker["replicas"], tmp_path), tmp_path)
        return True

    with TrainingOperator(play) as operator:
        operator.redirect(monkeypatch)
        training_workers.run_fn(SimpleNamespace(**given))
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert len(history) == 3
    assert tf.saved_model.contains_saved_model(str(tmp_path / "model"))
    assert operator.jobs == {}  # deleted once it was done
