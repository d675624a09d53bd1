"""Day after day: trained on from what is served, held against it and against the day before, and old days removed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from rich.console import Console
from tfx.orchestration import metadata

from components.anomaly_gate.executor import AnomaliesFoundError
from components.importers.demo import import_demo
from components.world import tables
from pipeline import local_runner
from pipeline.config import Gate, ModelConfig, RunConfig, SpanSettings
from pipeline.report.page import render
from pipeline.report.records import load
from transform.contract import ContractError
from transform.impressions import read_vocabularies
from transform.warm_start import FOLDER

pytestmark = pytest.mark.e2e

SETTINGS = RunConfig(
    name="daily",
    contract="microvideo",
    models={
        "ranker": ModelConfig(
            model={"architecture": "embedding_mlp", "embedding_width": 8, "id_dropout": 0.0},
            training={"epochs": 2, "batch_size": 128},
            gates=(Gate(metric="auc", at_least=0.5, change=0.1),),
        )
    },
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three spans; the user `newcomer` comes on the second, `visitor` is there on the first alone."""
    out = str(tmp_path_factory.mktemp("world"))
    import_demo(None, out, users=60, videos=80, interactions=4500, seed=1)
    events = tables.read_table(out, "interactions")
    first, length = span_of(events)
    number = (events["at"].to_numpy() - first) // length
    names = np.array(events["user_id"].to_pylist(), dtype=object)
    some = np.arange(len(names)) % 50 == 0
    names[some & (number == 0)], names[some & (number == 1)] = "visitor", "newcomer"
    place = events.column_names.index("user_id")
    tables.write_table(out, "interactions", events.set_column(place, "user_id", pa.array(names, pa.string())))
    users = tables.read_table(out, "users")
    more = [users.slice(0, 1).to_pylist()[0] | {"user_id": name} for name in ("visitor", "newcomer")]
    tables.write_table(out, "users", pa.concat_tables([users, pa.Table.from_pylist(more, users.schema)]))
    return out


def span_of(events: pa.Table) -> tuple[int, int]:
    """Where the first of three spans starts, and how long each is, in seconds."""
    bounds = pc.min_max(events["at"]).as_py()
    return bounds["min"], (bounds["max"] - bounds["min"]) // 3 + 1


def changed(world: str, to: Path, change: Callable[[pa.Table, np.ndarray], pa.Table]) -> str:
    """The world with other events on the third span."""
    shutil.copytree(world, to)
    events = tables.read_table(world, "interactions")
    first, length = span_of(events)
    tables.write_table(str(to), "interactions", change(events, (events["at"].to_numpy() - first) // length == 2))
    return str(to)


@pytest.fixture(scope="module")
def settings(world: str) -> RunConfig:
    first, length = span_of(tables.read_table(world, "interactions"))
    spans = SpanSettings(
        first=first, hours=length / 3600, drift={"primary_category": 0.3, "duration_seconds": 0.3}, keep=2
    )
    return SETTINGS.model_copy(update={"spans": spans})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "daily"


def run(settings: RunConfig, world: str, folder: Path, span: int) -> local_runner.Run:
    return local_runner.run(settings, world, folder, Console(quiet=True), folder / "test.log", span)


@pytest.fixture(scope="module")
def first(settings, world, folder) -> local_runner.Run:
    return run(settings, world, folder, 0)


@pytest.fixture(scope="module")
def visitor(first) -> np.ndarray:
    """What the first day's model knew of the visitor: that model is removed in the end."""
    return row_of(pushed(first), "visitor")


@pytest.fixture(scope="module")
def second(settings, world, folder, visitor) -> local_runner.Run:
    return run(settings, world, folder, 1)


@pytest.fixture(scope="module")
def drifted(settings, world, folder, second, tmp_path_factory) -> str:
    """The third day at first: only the videos of one category were shown, five times as long. What the run said."""
    videos = tables.read_table(world, "videos")
    category = videos["primary_category"].to_pylist()[0]
    shown = np.array(
        videos.filter(pc.equal(videos["primary_category"], category))["video_id"].to_pylist(), dtype=object
    )

    def change(events: pa.Table, third: np.ndarray) -> pa.Table:
        names = np.array(events["video_id"].to_pylist(), dtype=object)
        names[third] = shown[np.arange(third.sum()) % len(shown)]
        place = events.column_names.index("video_id")
        return events.set_column(place, "video_id", pa.array(names, pa.string()))

    drifting = changed(world, tmp_path_factory.mktemp("drift") / "world", change)
    place = videos.column_names.index("duration_seconds")
    longer = pc.multiply(videos["duration_seconds"], 5.0)
    tables.write_table(drifting, "videos", videos.set_column(place, "duration_seconds", longer))
    with pytest.raises(AnomaliesFoundError) as caught:
        run(settings, drifting, folder, 2)
    return str(caught.value)


@pytest.fixture(scope="module")
def bad(settings, world, folder, drifted, tmp_path_factory) -> local_runner.Run:
    """The third day with clicks and misses exchanged, which no distribution of a feature shows."""

    def change(events: pa.Table, third: np.ndarray) -> pa.Table:
        clicked = events["clicked"].to_numpy()
        place = events.column_names.index("clicked")
        return events.set_column(place, "clicked", pa.array(np.where(third, 1 - clicked, clicked)))

    return run(settings, changed(world, tmp_path_factory.mktemp("bad") / "world", change), folder, 2)


@pytest.fixture(scope="module")
def third(settings, world, folder, bad) -> local_runner.Run:
    """The third day as it should be, after steps that were killed had left something."""
    for killed in ("artifacts/Trainer/model/9999", "checkpoints/ranker/0123456789abcdef"):
        (folder / killed).mkdir(parents=True)
        (folder / killed / "half").write_text("half")
    return run(settings, world, folder, 2)


def row_of(model: Path, user: str) -> np.ndarray:
    """What a pushed model learned of a user."""
    number = read_vocabularies(str(model / FOLDER))["user_id"].index(user.encode()) + 1
    about = json.loads((model / FOLDER / "weights.json").read_text())
    place = next(i for i, (name, shape) in enumerate(about["tables"]) if name == "user_id" and shape == [8])
    with np.load(io.BytesIO((model / FOLDER / "weights.npz").read_bytes())) as arrays:
        return np.asarray(arrays[f"w{place}"][number])


def pushed(record: local_runner.Run) -> Path:
    assert record.outcome == "pushed"
    return Path(record.models) / "ranker" / record.served_version["ranker"]


def test_a_span_has_the_rows_of_its_day_and_those_that_the_day_before_was_judged_on(first, second, world):
    at = tables.read_table(world, "interactions")["at"].to_numpy()
    since, length = span_of(tables.read_table(world, "interactions"))
    tail = first.pushed_spans["0"]["valid_from"]
    assert since + 0.7 * length < tail < since + 0.9 * length
    for record, start in ((first, since), (second, tail)):
        rows = next(step.rows for step in record.steps if step.name == "ImpressionExampleGen")
        assert rows == int(((at >= start) & (at < since + (record.span + 1) * length)).sum())


def test_every_day_goes_on_from_the_model_of_the_day_before(first, second, third, visitor):
    assert first.warm_start == {}
    assert second.warm_start == {"ranker": str(pushed(first))}
    assert third.warm_start == {"ranker": str(pushed(second))}
    # The second day learned of the visitor from the end of the first, and the third from nothing.
    learned = row_of(pushed(second), "visitor")
    assert np.abs(learned - visitor).max() > 1e-4
    np.testing.assert_array_equal(row_of(pushed(third), "visitor"), learned)


def test_new_ids_have_rows_behind_those_that_keep_theirs(second, third):
    before, after = (read_vocabularies(str(pushed(record) / FOLDER)) for record in (second, third))
    assert b"newcomer" in before["user_id"]
    for vocabulary, entries in before.items():
        assert after[vocabulary][: len(set(entries))] == list(dict.fromkeys(entries))
    assert len(after["video_id"]) > len(before["video_id"])


def test_drift_stops_the_run_before_anything_is_trained(drifted, bad, third, folder):
    assert "the examples are unlike those of the span before" in drifted
    assert "train, feature 'primary_category'" in drifted  # by the share of a value
    assert "train, feature 'duration_seconds'" in drifted  # by the divergence of numbers
    store = MetadataStore(metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite")))
    nodes = store.get_contexts_by_type("node")
    runs = {node.name: len(store.get_executions_by_context(node.id)) for node in nodes}
    assert runs["daily.AnomalyGate.drift"] == 4  # the second day, and the third in three forms
    assert runs["daily.Trainer"] == 4  # all but the drifted one


def test_a_bad_day_is_refused_and_the_day_before_stays_served(bad, second, third):
    assert bad.outcome == "refused"
    assert bad.warm_start == third.warm_start
    assert bad.served_version == {"ranker": ""}


def test_the_report_shows_the_drift(third):
    page = render(load(Path(third.models).parent))
    assert "Drift from the span before" in page
    assert "primary_category" in page


def test_what_old_runs_left_is_removed(first, second, third, folder):
    assert sorted(path.name for path in pushed(third).parent.iterdir()) == sorted(
        pushed(record).name for record in (second, third)
    )
    store = MetadataStore(metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite")))
    artifacts = store.get_artifacts()
    gone = {a.uri for a in artifacts if a.state == proto.Artifact.DELETED}
    assert any("/Trainer/" in uri for uri in gone)
    assert not any(Path(uri).exists() for uri in gone)
    assert all(Path(uri).exists() for uri in third.artifacts["ranker"].values())
    left = {str(path) for path in folder.glob("artifacts/*/[!.]*/*")}
    assert left == {a.uri for a in artifacts if a.state == proto.Artifact.LIVE}
    assert not list(folder.glob("checkpoints/*/*"))


def test_a_span_that_is_run_again_comes_from_the_cache(third, settings, world, folder):
    again = run(settings, world, folder, 2)
    assert all(step.cached for step in again.steps)
    assert again.served_version == third.served_version


def test_a_span_before_one_that_was_pushed_is_refused(third, settings, world, folder):
    with pytest.raises(ContractError, match=r"--span 1: span 2 was pushed from .*: run it in a folder of its own"):
        run(settings, world, folder, 1)


def test_drift_of_what_cannot_be_compared_is_refused(settings, world, tmp_path):
    spans = settings.spans.model_copy(update={"drift": {"look_vector": 0.1, "duration": 0.1}})
    with pytest.raises(
        ContractError, match=r"spans\.drift: expected features .*, got duration, look_vector: take them out"
    ):
        run(settings.model_copy(update={"spans": spans}), world, tmp_path / "runs", 0)


def test_a_configuration_without_spans_is_told_so(world, tmp_path):
    with pytest.raises(ContractError, match=r"--span 3: expected spans in the configuration, .*add `spans:"):
        run(SETTINGS, world, tmp_path / "runs", 3)
