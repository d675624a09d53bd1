"""What a run's screen says of each model at its end."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import _print_outcome
from pipeline.local_runner import Run
from pipeline.recommend import served
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


def test_a_run_without_a_feed_is_told_how_to_get_one_before_a_server_starts():
    refused = pytest.raises(ContractError, match="run r assembles no feed: add `feed:")
    with refused, served({"id": "r", "config": {}}, None):
        pytest.fail("a server of no feed")
