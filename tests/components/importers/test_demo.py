"""The demo world: the same every time, consistent, and with something to learn."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from components.importers import demo, demo_media
from components.importers.demo import DAYS, START, import_demo
from components.importers.demo_words import TOPICS
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
    a, b, c = ({p.name: p.read_bytes() for p in sorted((tmp_path / n).rglob("*.*"))} for n in "abc")
    names = ("frame_feedback", "interactions", "rejected", "users", "videos")
    tables = {"demo.json", *(f"{name}.parquet" for name in names)}
    media = set(a) - tables
    assert tables <= set(a)
    assert 20 < len(media) <= 30
    assert all(name.endswith(".mp4") for name in media)
    assert a == b
    assert a["interactions.parquet"] != c["interactions.parquet"]
    assert all(a[name] != c.get(name) for name in media)


def test_media_are_there_but_for_a_tenth_of_the_videos_and_some_are_silent(world):
    videos = read_table(world, "videos")
    paths = [path for path in videos["media_path"].to_pylist() if path]
    assert 0.85 < len(paths) / len(videos) < 0.95
    streams = []
    for path in paths[:60]:
        with av.open(str(Path(world, path))) as file:
            streams.append([stream.type for stream in file.streams])
            assert sum(1 for _ in file.decode(video=0)) == 16
    silent = sum(types == ["video"] for types in streams)
    assert all(types in (["video"], ["video", "audio"]) for types in streams)
    assert 3 < silent < 25  # a fifth of 60


def test_media_tell_what_an_uploader_leaves_unsaid():
    """The colour of the middle frame alone says more of the topic than chance: nearest mean of 20 clips a topic."""
    pictures = np.array([[_middle(topic, copy) for copy in range(30)] for topic in range(12)])
    means, held = pictures[:, :20].mean(axis=1), pictures[:, 20:]
    distance = np.linalg.norm(held[:, :, np.newaxis] - means, axis=-1)
    right = (distance.argmin(axis=2) == np.arange(12)[:, np.newaxis]).mean()
    assert right > 3 / 12


def _middle(topic: int, copy: int) -> np.ndarray:
    random = np.random.default_rng([topic, copy])
    scenes = demo_media.Scenes(random.random((8, 3)), random.random(8), random.random(8) < 0.5)
    picture = demo_media._pictures(topic, copy % 3, scenes, random)[8]
    picture = picture[demo_media.BAND :]  # what the band shows has nothing to do with the topic
    return np.concatenate([picture.mean(axis=(0, 1)), picture.std(axis=(0, 1))])


def bands(light: np.ndarray, lines: np.ndarray, moving: np.ndarray) -> np.ndarray:
    scenes = demo_media.Scenes(light, lines, moving)
    return demo_media._pictures(0, 0, scenes, np.random.default_rng(0))[:, : demo_media.BAND] / 255


def test_the_band_has_the_light_of_its_scene():
    light = np.linspace(0.4, 0.9, 8)[:, np.newaxis] * [1, 0.5, 0]
    seen = bands(light, np.zeros(8), np.zeros(8, bool)).mean(axis=(1, 2))
    np.testing.assert_allclose(seen / seen[:, :1], np.tile([1, 0.5, 0], (16, 1)), atol=0.03)
    np.testing.assert_allclose(seen[:, 0] / seen[0, 0], (light[:, 0] / light[0, 0]).repeat(2), rtol=0.05)


def test_the_band_has_lines_of_its_scene_which_movement_smears_and_displaces():
    turns, moving = np.tile([0, 0.25, 0.5, 0.75], 2), np.arange(8) >= 4
    brightness = bands(np.ones((8, 3)), turns, moving).mean(axis=3)
    down, across = (np.abs(np.diff(brightness, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    # Half a turn of 0 changes from left to right, of 0.5 from top to bottom, between them both ways.
    for turn, least, most in ((0, down, across), (0.5, across, down)):
        assert (3 * least[turns.repeat(2) == turn] < most[turns.repeat(2) == turn])[:2].all()
    np.testing.assert_allclose(across[2:4], down[2:4], rtol=0.2)
    assert (across + down)[:8].min() > 1.5 * (across + down)[8:].max()
    stays = np.abs(brightness[::2] - brightness[1::2]).mean(axis=(1, 2))
    assert stays[:4].max() < 0.04 < stays[4:].min()  # of the two pictures of a scene


def test_liked_frames_are_lit_and_look_as_their_user_likes_it():
    random = np.random.default_rng(0)
    videos = demo._draw_videos(random, 100)
    users = demo._draw_users(random, 60, videos)
    events = demo._draw_events(random, users, videos, 3000)
    feedback, _ = demo._draw_feedback(random, users, videos, events)
    rows = [(int(r["user_id"][1:]), int(r["video_id"][1:]), r["frame_index"]) for r in feedback.to_pylist()]
    user, video, frame = np.array(rows).T
    assert videos.lit[video, frame].all()
    assert videos.lit.mean() < 0.6
    for looks, favourite in ((videos.hue, users.hue), (videos.lines, users.lines)):
        near = np.cos(2 * np.pi * (looks[video] - favourite[user][:, np.newaxis]))
        assert near[np.arange(len(rows)), frame].mean() > near.mean() + 0.2
    alike = videos.moving[video] == users.moving[user][:, np.newaxis]
    assert alike[np.arange(len(rows)), frame].mean() > alike.mean() + 0.1
    clicks = {(events.user[i], events.video[i]) for i in np.flatnonzero(events.clicked)}
    assert set(zip(user, video, strict=True)) <= clicks  # only what was opened, and seen
    assert videos.media[video].all()


def test_taste_for_looks_tells_nothing_of_taste_for_topics():
    """Neither whose topics are alike, nor whose looks are: correlations over pairs of users, and of videos."""
    random = np.random.default_rng(0)
    videos = demo._draw_videos(random, 400)
    users = demo._draw_users(random, 400, videos)
    apart = np.triu_indices(400, 1)
    topics = np.corrcoef(users.affinity)[apart]
    for angle in (users.hue, users.lines, users.moving / 2):
        taste = np.cos(2 * np.pi * (angle[:, None] - angle))
        assert abs(np.corrcoef(topics, taste[apart])[0, 1]) < 0.02
    same = (videos.subtopic[:, None] == videos.subtopic)[apart]
    for looks in (np.exp(2j * np.pi * videos.hue).mean(axis=1), np.exp(2j * np.pi * videos.lines).mean(axis=1)):
        alike = (looks[:, None] * looks.conj()).real[apart]
        assert abs(np.corrcoef(same, alike)[0, 1]) < 0.02


def test_a_quarter_of_the_uploaders_say_nothing_about_their_videos(world):
    rows = read_table(world, "videos").to_pylist()
    silent = [row for row in rows if row["primary_category"] is None]
    assert 0.2 < len(silent) / len(rows) < 0.3
    words = {word for subs in TOPICS.values() for text in subs.values() for word in text.split()}
    assert all(row["secondary_category"] is None for row in silent)
    assert not any(words & {*row["tags"], *row["title"].lower().split()} for row in silent)


def test_it_fits_the_contract_whole(world):
    checked = check_world(world, contract.load("microvideo"), END)
    assert (checked.counts, checked.notes) == ({}, [])
    assert (len(checked.users), len(checked.videos), len(checked.interactions)) == (400, 600, 40_000)


def test_the_best_possible_auc_leaves_room_and_is_known(world):
    facts = json.loads(Path(world, "demo.json").read_text())
    assert 0.84 < facts["bayes_auc"] < 0.88
    assert 0.84 < facts["bayes_auc_last_tenth"] < 0.89
    assert 0.6 < facts["bayes_frame_hits"] < 0.85  # of 8 frames
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
    pair = np.char.add(np.array(events["user_id"].to_pylist()), [topic[v] or "" for v in video])
    clicked = events["clicked"].to_numpy()

    def rate_auc(key: np.ndarray) -> float:
        codes = np.unique(key, return_inverse=True)[1]
        past = codes[:32_000]
        clicks = np.bincount(past, clicked[:32_000], minlength=codes.max() + 1)
        rate = (clicks + 0.4) / (np.bincount(past, minlength=codes.max() + 1) + 1)
        return roc_auc_score(clicked[32_000:], rate[codes[32_000:]])

    assert rate_auc(pair) > 0.65 > rate_auc(video)
