"""What a run's screen says of each model at its end."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import _print_outcome
from pipeline.local_runner import Run
from pipeline.recommend import served
from pipeline.report.gates import Gate, summary_of
from transform.contract import ContractError


@pytest.mark.parametrize(
    ("unchanged", "said"),
    [
        ([], "Pushed ranker version 7 to runs/r/models/ranker"),
        (["ranker"], "Unchanged ranker version 7 in runs/r/models"),
    ],
    ids=["run", "from the cache"],
)
def test_a_model_pushed_by_an_earlier_run_is_not_called_pushed(unchanged, said):
    screen = io.StringIO()
    record = Run("r", {}, "", "", "", 0.0, "", {}, {}, unchanged=unchanged)
    record.artifacts, record.served_version = {"ranker": {}}, {"ranker": "7"}
    _print_outcome(Console(file=screen, width=200), record, Path("runs/r"))
    assert said in screen.getvalue()


def test_gates_that_hold_are_told_in_a_line():
    gates = [
        Gate("accuracy", "all examples", "floor", False, 0.7, 0.81234, None, True),
        Gate("accuracy", "all examples", "change", False, 0.75, 0.81234, 0.8, True),
        Gate("logloss", "all examples", "ceiling", True, 0.6, 0.5, None, True),
        Gate("accuracy", "has_audio = yes", "floor", False, 0.5, 0.9, None, True),
    ]
    assert summary_of(gates) == "accuracy 0.8123 (≥ 0.7000, ≥ 0.7500); logloss 0.5000 (≤ 0.6000); and 1 of slices"
    assert summary_of([]) == ""


def test_a_run_without_a_feed_is_told_how_to_get_one_before_a_server_starts():
    refused = pytest.raises(ContractError, match="run r assembles no feed: add `feed:")
    with refused, served({"id": "r", "config": {}}, None):
        pytest.fail("a server of no feed")
