"""The queues of a run follow what is recorded, wherever the configuration keeps them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from typer.testing import CliRunner

from components.world.tables import write_table
from pipeline import queue_store
from pipeline.cli import app
from pipeline.config import RunConfig
from transform.contract import ContractError, load

VIDEOS = pa.table(
    {
        "video_id": ["a", "b", "c"],
        "topics": [["t0"], ["t0"], ["t1"]],
        "shown": [100, 100, 100],
        "clicked": [40, 30, 50],
    }
)


@pytest.fixture(params=["beside the run", "file", "redis"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The record of a run with a snapshot that counts up to the instant 1000."""
    store = {"file": str(tmp_path / "elsewhere.db")}.get(request.param)
    if request.param == "redis":
        store = request.getfixturevalue("redis_url").replace("/0", "/7")
        redis.Redis.from_url(store).flushdb()
    write_table(str(tmp_path / "queues" / "videos"), "part", VIDEOS)
    (tmp_path / "queues" / "snapshot.json").write_text(json.dumps({"before": 1000}))
    record = {
        "id": "r",
        "world": "w",
        "outcome": "pushed",
        "started": 0.0,
        "finished": 1.0,
        "models": str(tmp_path / "run" / "models"),
        "contract": load("microvideo").to_json(),
        "config": {"queues": {"store": store}},
        "artifacts": {"feed": {"queues": str(tmp_path / "queues")}},
    }
    (tmp_path / "run" / "models").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    queue_store.load_queues(record)
    return record


def events(folder: Path, videos: list[str], clicked: list[float | None], at: list[int] | None = None) -> str:
    rows = {"user_id": ["u"] * len(videos), "video_id": videos, "at": at or [2000] * len(videos), "clicked": clicked}
    write_table(str(folder), "interactions", pa.table(rows))
    return str(folder)


def test_clicks_that_are_recorded_change_the_order_and_are_counted_once(run: dict[str, Any], tmp_path: Path):
    assert queue_store.candidates(run, ["a"], []) == ["a", "b"]  # 40 % before 30 %
    source = events(tmp_path / "new", ["b"] * 50 + ["z", "a", "a"], [1.0] * 51 + [None, 1.0], at=[2000] * 52 + [999])
    told = queue_store.record(run, source)
    left_out = {"missing label": 1, "earlier than the run's snapshot, which counts it": 1}
    assert told == queue_store.Recorded(events=51, clicked=51, unknown=1, left_out=left_out)
    assert queue_store.candidates(run, ["a"], []) == ["b", "a"]  # 80 of 150 before 40 of 100
    assert queue_store.candidates(run, ["a"], ["b"]) == ["a"]
    assert queue_store.by_topic(run) == {"t0": ["b", "a"], "t1": ["c"]}
    queue_store.load_queues(run)  # the same snapshot again: what came after its instant stays, and counts once
    assert queue_store.candidates(run, ["a"], []) == ["b", "a"]


def test_the_command_says_what_it_recorded(run: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    source = events(tmp_path / "new", ["b", "c", "z"], [1.0, 0.0, None])
    done = CliRunner().invoke(app, ["record", source, "--run", str(tmp_path / "run")])
    assert done.exit_code == 0
    said = capfd.readouterr().out  # the screen is quiet's, not click's
    assert "Recorded 2 exposures, 1 clicks among them" in said
    assert "1 left out: missing label" in said


def test_events_count_as_a_snapshot_of_them_would(run: dict[str, Any], tmp_path: Path):
    """A neutral rating is an exposure without a click, there and here."""
    run["contract"] = load("movielens").to_json()
    rows = {"user_id": ["u"] * 3, "video_id": ["a"] * 3, "at": [2000] * 3, "rating": [5.0, 3.0, 1.0]}
    write_table(str(tmp_path / "new"), "interactions", pa.table(rows))
    told = queue_store.record(run, str(tmp_path / "new"))
    assert (told.events, told.clicked, told.left_out) == (3, 1, {})


def test_a_table_that_does_not_fit_is_one_clear_error(run: dict[str, Any], tmp_path: Path):
    rows = {"user_id": ["u"], "video_id": ["a"], "at": [2000], "click": [1.0]}
    write_table(str(tmp_path / "new"), "interactions", pa.table(rows))
    with pytest.raises(ContractError, match=r"the column 'clicked' is missing \(did you mean 'click'\?\)"):
        queue_store.record(run, str(tmp_path / "new"))


def test_a_run_without_queues_is_told_how_to_get_some(tmp_path: Path):
    with pytest.raises(ContractError, match="run r has no topic queues: add `topics:`"):
        queue_store.record({"id": "r", "artifacts": {}}, str(tmp_path))
    assert queue_store.candidates({"artifacts": {}}, ["a"], []) == []
    assert queue_store.by_topic({"artifacts": {}}) == {}


def test_a_password_is_no_part_of_a_configuration():
    given = {"name": "x", "contract": "microvideo", "models": {"ranker": {"gates": [{"metric": "auc", "at_least": 0}]}}}
    for store in ("redis://:secret@queues:6379", "redis://queues:6379?password=secret"):
        with pytest.raises(ValueError, match="expected an address without a password"):
            RunConfig.model_validate({**given, "queues": {"store": store}})
    RunConfig.model_validate({**given, "queues": {"store": "redis://shortlist@queues:6379/0"}})
