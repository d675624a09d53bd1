"""The demo world: the same every time, consistent, and with something to learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.importers.demo import DAYS, START, auc, import_demo
from components.world.check import check_world
from components.world.tables import read_table
from transform import contract

END = START + DAYS * 86_400


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("demo"))
    import_demo(None, folder, now=END)
    return folder


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        import_demo(None, str(tmp_path / name), users=20, videos=30, interactions=200, seed=seed, now=END)
    a, b, c = ({p.name: p.read_bytes() for p in sorted((tmp_path / n).iterdir())} for n in "abc")
    assert sorted(a) == ["demo.json", "interactions.parquet", "rejected.parquet", "users.parquet", "videos.parquet"]
    assert a == b
    assert a["interactions.parquet"] != c["interactions.parquet"]


def test_it_fits_the_contract_whole(world):
    checked = check_world(world, contract.load("microvideo"), END)
    assert (checked.counts, checked.notes) == ({}, [])
    assert (len(checked.users), len(checked.videos), len(checked.interactions)) == (400, 600, 40_000)


def test_the_best_possible_auc_leaves_room_and_is_known(world):
    facts = json.loads(Path(world, "demo.json").read_text())
    assert 0.80 < facts["bayes_auc"] < 0.85
    assert 0.79 < facts["bayes_auc_last_tenth"] < 0.86
    assert facts["click_rate"] == read_table(world, "interactions", ["clicked"])["clicked"].to_numpy().mean()


def test_rows_make_sense(world):
    events, videos = read_table(world, "interactions"), read_table(world, "videos")
    published = dict(zip(videos["video_id"].to_pylist(), videos["published_at"].to_pylist(), strict=True))
    at, clicked, liked = (events[name].to_numpy() for name in ("at", "clicked", "liked"))
    shown = events["video_id"].to_pylist()
    assert all(published[video] <= time for video, time in zip(shown, at, strict=True))
    assert np.all(np.diff(at) >= 0)
    assert at[0] >= START
    assert at[-1] < END
    assert np.all(liked <= clicked)
    assert len(set(zip(events["user_id"].to_pylist(), shown, strict=True))) == len(events)  # nobody sees a video twice
    assert videos["title"].to_pylist()[0]


def test_some_users_and_videos_come_late(world):
    events = read_table(world, "interactions")
    first, last = slice(0, 32_000), slice(36_000, None)
    for key in ("user_id", "video_id"):
        ids = np.array(events[key].to_pylist())
        new = ~np.isin(ids[last], ids[first])
        assert 0.05 < new.mean() < 0.5


def test_taste_matters_more_than_popularity(world):
    # The click rate of (user, topic) on other events of the first 80 % says more of the rest than that of the video.
    events, videos = read_table(world, "interactions"), read_table(world, "videos")
    topic = dict(zip(videos["video_id"].to_pylist(), videos["primary_category"].to_pylist(), strict=True))
    video = np.array(events["video_id"].to_pylist())
    pair = np.char.add(np.array(events["user_id"].to_pylist()), [topic[v] for v in video])
    clicked = events["clicked"].to_numpy()

    def rate_auc(key: np.ndarray) -> float:
        codes = np.unique(key, return_inverse=True)[1]
        past = codes[:32_000]
        clicks = np.bincount(past, clicked[:32_000], minlength=codes.max() + 1)
        rate = (clicks + 0.4) / (np.bincount(past, minlength=codes.max() + 1) + 1)
        return auc(rate[codes[32_000:]], clicked[32_000:])

    assert rate_auc(pair) > 0.65 > rate_auc(video)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12))
def test_auc_counts_ordered_pairs(rows):
    positive, negative = [s for s, y in rows if y], [s for s, y in rows if not y]
    if not positive or not negative:
        return
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc([s for s, _ in rows], [y for _, y in rows]) == pytest.approx(np.mean(pairs))
