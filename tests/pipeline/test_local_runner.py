"""What a local run is known by, and what it writes down for those that come after it."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from components.impression_example_gen.executor import SUMMARY_FILE
from pipeline import config as configs
from pipeline import training_pipeline
from pipeline.local_runner import Run, _named_files, _StepWatcher
from transform import contract as contracts


def test_files_that_settings_name_are_known_by_what_is_in_them(tmp_path: Path):
    checkpoint, weights = tmp_path / "model.ckpt", tmp_path / "vgg16.h5"
    settings = {"visual": "i3d", "rgb_checkpoint": str(checkpoint), "scene": {"vgg16_weights": str(weights)}}
    known = [_named_files(settings)]
    for path in (weights, Path(f"{checkpoint}.index"), Path(f"{checkpoint}.data-00000-of-00001")):
        path.write_bytes(b"first")
        known.append(_named_files(settings))
        path.write_bytes(b"other")
        known.append(_named_files(settings))
    assert known[0] == ""
    assert len(set(known)) == len(known)
    assert _named_files(settings) == known[-1]
    assert _named_files({"visual": "conv3d", "width": 16, "scene": None}) == ""


def test_other_weights_are_another_input_of_the_trainer():
    settings = configs.load("movielens")

    def trainer(weights: str):
        at = training_pipeline.Locations("w", "f", "/root", "/models", weights={"ranker": weights})
        nodes = training_pipeline.components(settings, contracts.load("movielens"), at, {})
        return next(node for node in nodes if node.id == "Trainer").exec_properties["custom_config"]

    assert trainer("a") == trainer("a") != trainer("b")


@pytest.mark.parametrize(
    ("model", "version", "noted"), [("ranker", "7", True), ("ranker", "", False), ("video_classifier", "7", False)]
)
def test_a_span_counts_as_learned_once_a_model_of_its_impressions_is_pushed(tmp_path, model, version, noted):
    """Whatever becomes of the steps behind it: the next span must not judge that model by what it has learned."""
    (tmp_path / SUMMARY_FILE).write_text('{"splits": {"valid_from": 80}}')
    made = {"examples": str(tmp_path), "statistics": "days/statistics"}
    history = SimpleNamespace(
        last_execution=lambda node: (False, None),
        pushed_by=lambda node: model,
        judged_by=lambda node: None,
        pushed_version=lambda name: version,
        artifacts=lambda name, nodes: made if nodes == {"Pusher"} else {},
    )
    record = Run("r", {}, "", "world", str(tmp_path / "models"), 0.0, "log", {}, {}, pushed_spans={"1": {}})
    span = training_pipeline.Span(2, (60, 100))
    console = Console(quiet=True)
    with console.status("") as status:
        watcher = _StepWatcher(console, status, record, history, span)
        for message in ("Component Pusher is running.", "Component Pusher is finished."):
            watcher.emit(logging.LogRecord("absl", logging.INFO, "", 0, message, None, None))
    written = json.loads((tmp_path / "run.json").read_text())["pushed_spans"]
    assert written == {"1": {}, **({"2": {"statistics": "days/statistics", "valid_from": 80}} if noted else {})}
