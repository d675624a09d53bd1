"""A judgement comes from the cache only while nothing changed, whatever was pushed, removed or rolled back since."""

import io
import json
import logging
from types import SimpleNamespace

from ml_metadata.proto import metadata_store_pb2
from rich.console import Console

from pipeline.judgement import judgement_key
from pipeline.local_runner import History, Run, _StepWatcher

LAST = {
    "outcome": "pushed",
    "inputs_of": {"ranker": "A"},
    "judgements": {"ranker": "first"},
    "served_after": {"ranker": "2"},
}


def key(last: dict = LAST, inputs: str = "A", served: str = "2") -> str:
    return judgement_key(last, "ranker", inputs, served, now=7.0)


def test_an_unchanged_run_repeats_its_judgement():
    assert key() == "first"


def test_a_refused_run_repeats_its_judgement_too():
    assert key({**LAST, "outcome": "refused"}) == "first"


def test_the_first_run_has_a_key_of_its_own():
    assert key({}, served="") == "nothing served at 7.000000"


def test_going_back_to_an_earlier_configuration_is_judged_again():
    # A pushed version 1, then B pushed 2: the last run is B's, and A is about to run.
    assert key({**LAST, "inputs_of": {"ranker": "B"}}) == "2 served at 7.000000"


def test_an_emptied_push_destination_is_judged_again():
    assert key(served="") == "nothing served at 7.000000"


def test_a_rollback_and_somebody_elses_push_are_judged_again():
    assert key(served="1") == "1 served at 7.000000"
    assert key(served="3") == "3 served at 7.000000"


def test_a_run_that_died_before_the_model_was_pushed_leaves_no_judgement():
    assert key({**LAST, "outcome": "failed", "served_after": {}}) == "2 served at 7.000000"


def test_a_run_that_died_at_a_later_model_repeats_the_judgement_of_this_one():
    assert key({**LAST, "outcome": "failed"}) == "first"


def test_a_model_is_on_record_as_soon_as_its_pusher_is_finished(tmp_path):
    settings = SimpleNamespace(
        name="two", models={"ranker": None, "jifr": None}, feed=None, serving_check=SimpleNamespace(by="model_server")
    )
    history = History(metadata_store_pb2.ConnectionConfig(fake_database={}), settings)
    record = Run("r", {}, "", "", f"{tmp_path}/models", 0.0, "", {}, {})
    for name, version in (("ranker", "3"), ("jifr", "5")):
        for file in ("saved_model.pb", "variables/variables.index"):
            path = tmp_path / "models" / name / version / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    console = Console(file=io.StringIO())
    watcher = _StepWatcher(console, console.status(""), record, history, None)
    for message in ("Component Pusher.ranker is running.", "Component Pusher.ranker is finished."):
        watcher.emit(logging.makeLogRecord({"msg": message}))
    watcher.emit(logging.makeLogRecord({"msg": "Component Trainer.jifr is running."}))
    assert json.loads((tmp_path / "run.json").read_text())["served_after"] == {"ranker": "3"}
