"""The snapshot counts what happened, and a store loads it as it was written."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tfx.dsl.components.base import base_beam_executor

from components.topic_learner.artifact import Topics
from components.topic_queues import executor
from components.topic_queues.artifact import QueueSnapshot
from components.world import tables
from serving.topic_queues.queues import open_store
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Event, Snapshot, Video
from transform.contract import ContractError, parse

CONTRACT = """
name: small
vocabularies: {user: {}, video: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: liked, kind: number, role: label, source: interactions.rating, minimum: 1, maximum: 5,
     positive_above: 3, negative_below: 3}
"""
VIDEOS = pa.table(
    {
        "video_id": ["a", "b", "c", "never"],
        "primary_category": ["pets", "games", None, "pets"],
    }
)
EVENTS = [  # user, video, at, rating: above 3 is a click, 3 is neither liked nor disliked but was shown
    ("u", "a", 10, 5.0),
    ("v", "a", 20, 4.0),
    ("v", "a", 21, 3.0),
    ("w", "a", 22, 1.0),
    ("u", "b", 30, 1.0),
    ("u", "c", 49, 5.0),
    ("u", "unknown", 10, 5.0),
    ("u", "b", 11, None),
    ("u", "b", 12, 9.0),
]
# By hand.
COUNTED = {"a": (4, 2), "b": (1, 0), "c": (1, 1), "never": (0, 0)}


class Counting:
    """Runs the executor on a small world, whose tables come in several row groups."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        columns = zip(*EVENTS, strict=True)
        kinds = (pa.string(), pa.string(), pa.int64(), pa.float64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        self.write("interactions", pa.table(arrays, names=["user_id", "video_id", "at", "rating"]))
        self.write("videos", VIDEOS)

    def write(self, table: str, data: pa.Table) -> None:
        pq.write_table(data, self.folder / f"{table}.parquet", row_group_size=2)

    def run(self, topics: Topics | None = None, queues: QueueSettings = QueueSettings()) -> QueueSnapshot:  # noqa: B008
        self.runs += 1
        snapshot = QueueSnapshot()
        snapshot.uri = str(self.folder / f"snapshot{self.runs}")
        context = base_beam_executor.BaseBeamExecutor.Context(tmp_dir=str(self.folder))
        inputs = {"topics": [topics]} if topics else {}
        properties = {"world": str(self.folder), "contract_json": parse(CONTRACT).to_json()}
        properties["queues_json"] = queues.model_dump_json()
        executor.Executor(context).Do(inputs, {"snapshot": [snapshot]}, properties)
        return snapshot


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> QueueSnapshot:
    return Counting(tmp_path_factory.mktemp("snapshot")).run()


def test_exposures_and_clicks_are_counted_up_to_the_last_event(snapshot):
    read = Snapshot.read(snapshot.uri)
    assert read.before == 50
    assert {video.video_id: (video.shown, video.clicked) for video in read.videos} == COUNTED
    properties = {name: snapshot.get_int_custom_property(name) for name in ("videos", "shown", "clicked", "rejected")}
    assert properties == {"videos": 4, "shown": 6, "clicked": 3, "rejected": 3}


def test_every_row_is_counted_somewhere(snapshot):
    counts = executor.read_summary(snapshot.uri)["counts"]
    assert {name: number for name, number in counts.items() if number} == {
        "videos": 4,
        "without a topic": 1,
        "shown": 6,
        "clicked": 3,
        "unknown video": 1,
        "missing label": 1,
        "label out of range": 1,
    }


def test_topics_are_the_learned_ones_or_else_the_category(snapshot, counting):
    by_category = {video.video_id: video.topics for video in Snapshot.read(snapshot.uri).videos}
    assert by_category == {"a": ("pets",), "b": ("games",), "c": (), "never": ("pets",)}
    topics = Topics()
    topics.uri = str(counting.folder / "topics")
    learned = pa.table({"video_id": ["a", "c", "x"], "topics": pa.array([["t1", "t0"], ["t1"], ["t2"]])})
    tables.write_table(topics.uri, "video_topics", learned)
    other = counting.run(topics=topics)
    found = {video.video_id: video.topics for video in Snapshot.read(other.uri).videos}
    assert found == {"a": ("t1", "t0"), "b": (), "c": ("t1",), "never": ()}
    assert executor.read_summary(other.uri)["counts"]["without a topic"] == 2


def test_a_snapshot_loads_into_a_store_as_it_was_written(snapshot, tmp_path):
    read = Snapshot.read(snapshot.uri)
    store = open_store(str(tmp_path / "queues.db"), QueueSettings(min_exposures=1, fresh_share=1.0))
    store.replace(read)
    assert store.videos(list(COUNTED)) == {video.video_id: video for video in read.videos}
    # pets: 2 of 4, and 20 exposures' worth of .07: 3.4 / 24; a: (2 + 20 * that) / 24; never: that itself
    prior = 3.4 / 24
    assert store.top("pets", 5) == [
        ("a", pytest.approx((2 + 20 * prior) / 24)),
        ("never", pytest.approx(prior)),
    ]
    assert store.videos(["a"])["a"] == Video("a", ("pets",), 4, 2)
    store.close()


def test_a_store_that_is_named_starts_from_the_snapshot_and_keeps_what_came_later(counting, redis_url):
    settings = QueueSettings(store=redis_url.replace("/0", "/6"), fresh_share=1.0)
    store = open_store(settings.store, settings)
    store.record([Event("b", (), 1, 1, at=60)])
    snapshot = counting.run(queues=settings)
    expected = {video.video_id: video for video in Snapshot.read(snapshot.uri).videos}
    expected["b"] = Video("b", ("games",), 2, 1)
    assert store.videos(list(COUNTED)) == expected
    store.close()


def test_a_store_that_does_not_answer_fails_the_step(counting):
    with pytest.raises(ContractError, match="expected a Redis server"):
        counting.run(queues=QueueSettings(store="redis://127.0.0.1:1/0"))


def test_a_folder_that_is_no_whole_snapshot_is_one_clear_error(snapshot, tmp_path):
    with pytest.raises(ContractError, match="expected a queue snapshot"):
        Snapshot.read(str(tmp_path))
    shutil.copytree(f"{snapshot.uri}/videos", tmp_path / "videos")  # what an execution leaves that was killed
    with pytest.raises(ContractError, match="run the component again"):
        Snapshot.read(str(tmp_path))


def test_a_video_that_is_there_twice_is_refused(counting):
    counting.write("videos", pa.concat_tables([VIDEOS, VIDEOS.slice(0, 1)]))
    with pytest.raises(ContractError, match="expected one row for each video_id, got several for 'a'"):
        counting.run()
