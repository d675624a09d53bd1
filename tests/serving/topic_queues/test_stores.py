"""Both stores: thresholds and order by hand and by NumPy, equal to a model of a few lines, whole under concurrency."""

import json
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import redis
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from serving.topic_queues.queues import open_store
from serving.topic_queues.redis_store import RedisStore
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import Event, Row, Snapshot, Video, event_rows
from transform.contract import ContractError

ROOT = Path(__file__).parents[3]
WRITERS, ROUNDS = 8, 40


def ids(queue):
    return [video for video, _ in queue]


def test_the_password_of_redis_is_read_from_the_environment(redis_url, monkeypatch):
    server = redis.Redis.from_url(redis_url)
    server.config_set("requirepass", "secret")
    try:
        with pytest.raises(ContractError, match="expected a Redis server"):
            RedisStore(redis_url)
        monkeypatch.setenv("SHORTLIST_QUEUES_PASSWORD", "secret")
        RedisStore(redis_url).close()
    finally:
        server.config_set("requirepass", "")


def test_thresholds_leave_out_what_is_not_clicked_enough(make_store):
    store = make_store(min_exposures=10, min_click_rate=0.07, fresh_share=0.0)
    store.record([Event("fresh", ("t",), 9, 9), Event("just shown", ("t",), 10, 1), Event("just not", ("t",), 15, 1)])
    store.record([Event("exactly", ("t",), 100, 7)])  # 7 / 100 is 0.07, though 0.07 * 100 > 7 in floating point
    # (1 + 20 * .07) / (10 + 20) = .08 and (7 + 20 * .07) / (100 + 20) = .07
    assert ids(store.top("t", 9)) == ["just shown", "exactly"]
    assert [score for _, score in store.top("t", 9)] == pytest.approx([0.08, 0.07])


def test_a_video_enters_and_leaves_its_queues_as_events_arrive(make_store):
    store = make_store(min_exposures=2, min_click_rate=0.5, fresh_share=0.0)
    store.record([Event("v", ("a", "b"), shown=1)])
    assert store.tops(["a", "b"], 5) == [[], []]
    store.record([Event("v", shown=1, clicked=1)])
    assert [ids(queue) for queue in store.tops(["a", "b"], 5)] == [["v"], ["v"]]
    store.record([Event("v", shown=1)])
    assert store.tops(["a", "b"], 5) == [[], []]
    store.record([Event("v", clicked=1)])  # a click that comes after its exposure
    assert ids(store.top("a", 5)) == ["v"]
    assert store.videos(["v", "none"]) == {"v": Video("v", ("a", "b"), 3, 2)}


def test_the_prior_is_the_mean_of_the_topic_in_the_snapshot(make_store):
    store = make_store(min_exposures=1, min_click_rate=0.1, fresh_share=1.0, prior_strength=10)
    store.replace(Snapshot(100, [Video("x", ("t", "u"), 20, 8), Video("y", ("t",), 20, 8), Video("new", ("t",), 0, 0)]))
    # t: (16 + 10 * .1) / (40 + 10) = .34; x in t: (8 + 3.4) / 30 = .38; new: .34; of equals the later id is first
    assert store.top("t", 9) == [("y", pytest.approx(0.38)), ("x", pytest.approx(0.38)), ("new", pytest.approx(0.34))]
    # u: (8 + 1) / 30 = .3; x in u: (8 + 3) / 30
    assert store.top("u", 9) == [("x", pytest.approx(11 / 30))]
    assert ids(store.top("t", 2)) == ["y", "x"]
    assert store.top("t", 0) == store.top("none", 5) == []


def test_a_tenth_of_fresh_videos_is_in_the_queues_and_the_seed_says_which(make_store):
    videos = [Video(f"v{i}", ("t",), 0, 0) for i in range(2000)]

    def fresh(before, **settings):
        store = make_store(**settings)
        store.replace(Snapshot(before, videos))
        return set(ids(store.top("t", 2000)))

    first = fresh(100, seed=1)
    assert abs(len(first) - 200) < 3 * np.sqrt(2000 * 0.1 * 0.9)
    assert fresh(100, seed=1) == first
    assert fresh(100, seed=2) != first
    assert fresh(200, seed=1) != first  # the next snapshot gives others a chance
    assert fresh(100, seed=1, fresh_share=0.0) == set()
    assert len(fresh(100, seed=1, fresh_share=1.0)) == 2000


def test_order_is_that_of_the_smoothed_rate_by_numpy(make_store):
    random = np.random.default_rng(0)
    shown = random.integers(10, 300, 500)
    clicked = random.binomial(shown, random.beta(2, 10, 500))
    names = np.array([f"v{i:03d}" for i in range(500)])
    store = make_store(fresh_share=0.0)
    parts = (shown // 3, clicked // 2)  # a part from the snapshot, the rest event by event
    before = [Video(*row) for row in zip(names, [("t",)] * 500, *(part.tolist() for part in parts), strict=True)]
    store.replace(Snapshot(50, before))
    rest = zip(names, (shown - parts[0]).tolist(), (clicked - parts[1]).tolist(), strict=True)
    store.record([Event(name, (), s, c, at=60) for name, s, c in rest])
    prior = (parts[1].sum() + 20 * 0.07) / (parts[0].sum() + 20)
    score = (clicked + 20 * prior) / (shown + 20)
    order = np.lexsort((names, score))[::-1]
    order = order[(clicked / shown >= 0.07)[order]]
    queue = store.top("t", 500)
    assert ids(queue) == names[order].tolist()
    np.testing.assert_allclose([value for _, value in queue], score[order], rtol=1e-15)


def test_a_snapshot_keeps_what_was_recorded_at_its_instant_or_later(make_store):
    store = make_store(min_exposures=1, min_click_rate=0.0, fresh_share=1.0)
    store.record([Event("v", ("t",), 1, 1, at=99), Event("gone", ("t",), 1, 0, at=99)])
    store.record([Event("v", (), 1, 0, at=100), Event("newest", ("t",), 5, 5, at=101)])
    store.replace(Snapshot(100, [Video("v", ("u",), 10, 2)]))
    assert store.videos(["v", "gone", "newest"]) == {
        "v": Video("v", ("u",), 11, 2),
        "newest": Video("newest", ("t",), 5, 5),
    }
    assert [ids(queue) for queue in store.tops(["t", "u"], 5)] == [["newest"], ["v"]]
    store.replace(Snapshot(101, [Video("v", ("u",), 11, 2)]))  # what was kept once is still known by its own time
    assert store.videos(["v", "newest"])["newest"] == Video("newest", ("t",), 5, 5)
    assert store.videos(["v"])["v"].shown == 11
    store.replace(Snapshot(102, []))
    assert store.videos(["v", "newest"]) == {}
    assert store.tops(["t", "u"], 5) == [[], []]


def test_more_events_than_one_batch_survive_a_snapshot(make_store):
    store = make_store(min_exposures=1)
    store.record([Event(f"v{i % 7}", ("t",), 1, i % 2, at=10 + i) for i in range(3500)])
    store.replace(Snapshot(1010, []))
    assert sum(video.shown for video in store.videos([f"v{i}" for i in range(7)]).values()) == 2500


def test_an_impossible_event_is_refused_and_nothing_of_its_batch_is_recorded(make_store):
    store = make_store()
    for bad in (Event("v", shown=-1), Event("v", clicked=-1), Event("", shown=1)):
        with pytest.raises(ContractError, match="counts of 0 or more"):
            store.record([Event("v", ("t",), 1), bad])
    assert store.videos(["v"]) == {}


WRITER = """
import sys
from serving.topic_queues.{0} import {1}
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Event
store = {1}(*{2})
print("ready", flush=True)
for round in range({3}):
    # every writer touches every video, so that all contend for all
    store.record([Event(f"v{{i}}", ("t", f"u{{i}}"), i, 1, at=100 + round) for i in range(1, 8)])
store.close()
"""


def test_eight_writers_lose_nothing_while_snapshots_are_loaded(opening):
    module, name, arguments = opening
    script = WRITER.format(module, name, arguments, ROUNDS)
    run = [sys.executable, "-c", script]
    writers = [subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    for writer in writers:  # they open the new store all at once
        assert writer.stdout.readline() == "ready\n"
    store = {"SqliteStore": SqliteStore, "RedisStore": RedisStore}[name](*eval(arguments))
    for before in range(90, 95):
        store.replace(Snapshot(before, [Video(f"v{i}", ("t",), 1000, 500) for i in range(1, 8)]))
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    clicks = WRITERS * ROUNDS
    expected = {f"v{i}": (1000 + i * clicks, 500 + clicks) for i in range(1, 8)}
    assert {video.video_id: video[2:] for video in store.videos(expected).values()} == expected
    assert len(store.top("t", 99)) == 7
    store.close()


OPENER = """
import sys
from serving.topic_queues.sqlite_store import SqliteStore
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    SqliteStore(f"{sys.argv[1]}/{number}").close()
"""


def test_many_may_open_a_new_file_at_once(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, str(tmp_path)], cwd=ROOT, **pipes) for _ in range(8)]
    for opener in openers:
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        opener.stdin.write("\n")
        opener.stdin.flush()
    assert [opener.communicate(timeout=120) and opener.returncode for opener in openers] == [0] * 8


def test_a_reader_never_sees_a_part_of_a_snapshot(make_store):
    store = make_store(fresh_share=1.0)
    worlds = [[Video(f"{world}{i}", ("t", "u"), 0, 0) for i in range(1500)] for world in "ab"]
    store.replace(Snapshot(1, worlds[0]))
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            queues = [ids(queue) for queue in store.tops(["t", "u"], 2000)]
            seen.add(tuple((len(queue), "".join(sorted({video[0] for video in queue}))) for queue in queues))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(1, 7):
        store.replace(Snapshot(turn, worlds[turn % 2]))
    done.set()
    for reader in readers:
        reader.join()
    assert seen <= {((1500, "a"), (1500, "a")), ((1500, "b"), (1500, "b"))}
    assert len(seen) == 2


class Breaking(list):
    """Can be read once; the second time it breaks before its end."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        yield from super().__iter__()
        if self.reads > 1:
            raise RuntimeError("the disk is gone")


def test_a_snapshot_that_fails_to_load_leaves_the_old_queues_and_nothing_else(make_store):
    store = make_store(fresh_share=1.0)
    store.replace(Snapshot(1, [Video("old", ("t",), 0, 0)]))
    with pytest.raises(RuntimeError):
        store.replace(Snapshot(2, Breaking(Video(f"half{i}", ("t", "u"), 0, 0) for i in range(1500))))
    assert [ids(queue) for queue in store.tops(["t", "u"], 5)] == [["old"], []]
    store.replace(Snapshot(3, [Video("new", ("u",), 0, 0)]))
    assert [ids(queue) for queue in store.tops(["t", "u"], 5)] == [[], ["new"]]
    assert store.videos(["old", "half1", "new"]).keys() == {"new"}


def test_what_is_recorded_is_there_when_the_store_is_opened_again(tmp_path):
    path = str(tmp_path / "queues.db")
    store = open_store(path)
    store.record([Event("v", ("t",), 10, 5)])
    store.close()
    assert ids(open_store(path).top("t", 5)) == ["v"]


def test_a_store_that_cannot_be_opened_says_what_to_do(tmp_path):
    (tmp_path / "text").write_text("this is not a database, and long enough to show it" * 30)
    for path in (tmp_path / "text", tmp_path / "none" / "queues.db"):
        with pytest.raises(ContractError, match="expected a file for topic queues"):
            open_store(str(path))
    with pytest.raises(ContractError, match=r"^127\.0\.0\.1:1/0: expected a Redis server") as error:
        open_store("redis://user:secret@127.0.0.1:1/0")
    assert "secret" not in str(error.value)


def test_a_store_that_stops_answering_says_so(tmp_path, redis_url, monkeypatch):
    monkeypatch.setattr("serving.topic_queues.sqlite_store.WAIT_SECONDS", 0.1)
    path = str(tmp_path / "queues.db")
    holder, waiting = open_store(path), open_store(path)
    with (
        holder._transaction("IMMEDIATE"),
        pytest.raises(ContractError, match=r"queues\.db: .*locked: see to the store"),
    ):
        waiting.record([Event("v", ("t",), 1, 1)])
    admin = redis.Redis.from_url(redis_url)
    store = RedisStore(redis_url, name="full")
    before = admin.config_get("maxmemory")["maxmemory"]
    admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(ContractError, match=r"expected topic queues that answer: .*maxmemory"):
            store.record([Event("v", ("t",), 1, 1)])
    finally:
        admin.config_set("maxmemory", before)
    store.record([Event("v", ("t",), 1, 1)])


class Model:
    """What a store is meant to be, in plain Python."""

    def __init__(self, settings):
        self.settings, self.priors, self.known, self.journal = settings, {}, {}, []

    def add(self, rows, journal=True):
        for row in rows:
            topics, drawn, shown, clicked = self.known.get(row.video_id, ("[]", row.drawn, 0, 0))
            topics = row.topics if topics == "[]" else topics
            self.known[row.video_id] = (topics, drawn, shown + row.shown, clicked + row.clicked)
            if journal:
                self.journal.append(row)

    def replace(self, snapshot):
        later = [Row(r[0], *self.known[r[0]][:2], *r[3:]) for r in self.journal if r.at >= snapshot.before]
        self.priors, self.known, self.journal = snapshot.priors(self.settings), {}, []
        self.add(snapshot.rows(self.settings), journal=False)
        self.add(later)

    def top(self, topic, n):
        found = []
        for video, (topics, drawn, shown, clicked) in self.known.items():
            enough = shown >= self.settings.min_exposures
            stays = clicked / shown >= self.settings.min_click_rate if enough else drawn
            if topic in json.loads(topics) and stays:
                prior = self.priors.get(topic, self.settings.min_click_rate)
                weight = self.settings.prior_strength
                found.append(((clicked + weight * prior) / (shown + weight), video))
        return [(video, score) for score, video in sorted(found, reverse=True)[:n]]


IDS = st.sampled_from(["a", "b", "ß", "猫", "🐈", 'q"\\', "x:1"])
TOPICS = st.lists(st.sampled_from(["t", "u", "话题", "w:x"]), max_size=3).map(tuple)
COUNTS = st.integers(0, 12)
TIMES = st.integers(1, 20)


class Stores(RuleBasedStateMachine):
    """Every store at hand does what the model does, and so do all the same."""

    opened: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.settings = QueueSettings(min_exposures=5, min_click_rate=0.3, fresh_share=0.5, prior_strength=3.3)
        self.model = Model(self.settings)
        self.stores = [make(self.settings) for make in self.opened]

    @rule(events=st.lists(st.builds(Event, IDS, TOPICS, COUNTS, COUNTS, TIMES), max_size=5))
    def record(self, events):
        self.model.add(event_rows(events, self.settings))
        for store in self.stores:
            store.record(events)

    @rule(before=TIMES, videos=st.lists(st.builds(Video, IDS, TOPICS, COUNTS, COUNTS), unique_by=lambda v: v[0]))
    def replace(self, before, videos):
        snapshot = Snapshot(before, videos)
        self.model.replace(snapshot)
        for store in self.stores:
            store.replace(snapshot)

    @invariant()
    def queues_are_equal(self):
        for store in self.stores:
            assert store.tops(["t", "u", "话题", "w:x"], 4) == [
                self.model.top(topic, 4) for topic in ("t", "u", "话题", "w:x")
            ]

    @invariant()
    def counts_are_equal(self):
        for store in self.stores:
            found = {v.video_id: (list(v.topics), v.shown, v.clicked) for v in store.videos(self.model.known).values()}
            assert found == {v: (json.loads(t), s, c) for v, (t, _, s, c) in self.model.known.items()}

    def teardown(self):
        for store in self.stores:
            store.close()


def run_machine(*opened):
    machine = type("Opened", (Stores,), {"opened": list(opened)})
    run_state_machine_as_test(machine, settings=hypothesis_settings(max_examples=20, stateful_step_count=15))


def test_the_store_in_a_file_does_what_the_model_does(tmp_path):
    run_machine(lambda settings: SqliteStore(str(tmp_path / uuid.uuid4().hex), settings))


def test_both_stores_do_what_the_model_does(tmp_path, redis_url):
    run_machine(
        lambda settings: SqliteStore(str(tmp_path / uuid.uuid4().hex), settings),
        lambda settings: RedisStore(redis_url, settings, uuid.uuid4().hex),
    )
