"""Candidates come from the topics that a user clicked most, each video once, the queues in turn."""

import pytest

from serving.topic_queues.queues import Candidate, TopicQueues, by_topic, of_snapshot
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import Event, Snapshot, Video


@pytest.fixture
def store(tmp_path):
    """Topics t: p > q > r, u: q > s, w: z; queues hold everything."""
    everything = QueueSettings(min_exposures=1, min_click_rate=0.0)
    store = SqliteStore(str(tmp_path / "queues.db"), everything)
    clicks = {"p": (("t",), 90), "q": (("t", "u"), 80), "r": (("t",), 70), "s": (("u",), 60), "z": (("w",), 99)}
    store.replace(Snapshot(1, [Video(video, topics, 100, n) for video, (topics, n) in clicks.items()]))
    yield store
    store.close()


def found(store, clicks, exclude=(), **settings):
    return [c[:2] for c in TopicQueues(store, QueueSettings(**settings)).candidates(clicks, exclude)]


def test_topics_are_those_clicked_most_and_of_equals_the_latest(store):
    queues = TopicQueues(store, QueueSettings(topics=2))
    assert queues.topics(["z", "z", "z", "s", "p", "p"]) == ["w", "t"]
    assert queues.topics(["z", "p"]) == ["t", "w"]
    assert queues.topics(["p", "z"]) == ["w", "t"]
    assert queues.topics(["q", "unknown"]) == ["t", "u"]
    assert queues.topics([]) == []


def test_only_the_last_clicks_count(store):
    clicks = ["z"] * 5 + ["s", "p"]
    assert TopicQueues(store, QueueSettings(recent_clicks=7)).topics(clicks)[0] == "w"
    assert TopicQueues(store, QueueSettings(recent_clicks=2)).topics(clicks) == ["t", "u"]


def test_queues_are_read_in_turn_and_no_video_twice(store):
    # t: p q r and u: q s, in turn: p q | q s | r
    assert found(store, ["p", "q"]) == [("p", "t"), ("q", "u"), ("s", "u"), ("r", "t")]


def test_no_more_candidates_than_asked_for_and_none_excluded(store):
    assert found(store, ["p", "q"], candidates=3) == [("p", "t"), ("q", "u"), ("s", "u")]
    assert found(store, ["p", "q"], exclude=["p", "q"], candidates=2) == [("s", "u"), ("r", "t")]
    assert found(store, []) == found(store, ["unknown"]) == []


def test_scores_are_refreshed_by_what_is_recorded(store):
    store.record([Event("r", shown=900, clicked=900)])
    (best, *_) = TopicQueues(store).candidates(["p"])
    # the topic's mean: 240 of 300, after 20 exposures' worth of 0: 240 / 320 = .75; (970 + 20 * .75) / 1020
    assert best == Candidate("r", "t", pytest.approx(985 / 1020))


def test_queues_of_a_snapshot_are_those_of_a_store_that_loads_it(store):
    videos = [Video("p", ("t",), 100, 90), Video("q", ("t", "u"), 100, 80), Video("rare", ("t",), 100, 5)]
    snapshot = Snapshot(2, [*videos, Video("bare", (), 100, 99)])
    chosen = QueueSettings(min_click_rate=0.07, candidates=1)  # 5 of 100 are too few
    assert of_snapshot(snapshot, chosen) == {"t": ["p"], "u": ["q"]}
    assert of_snapshot(snapshot, QueueSettings()) == {"t": ["p", "q"], "u": ["q"]}
    assert by_topic(store, ["w", "t"], 2) == {"w": ["z"], "t": ["p", "q"]}
