"""The executor: from files of videos and a served representation to topics, once and again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from components.topic_learner.artifact import Topics
from components.topic_learner.assignment import LearnedTopics
from components.topic_learner.executor import Executor, read_summary
from components.topic_learner.settings import TopicSettings
from transform.contract import ContractError

SETTINGS = {"topics": 3, "tag_width": 4, "walks": 20, "walk_length": 50}
THEMES = {"cats": ["cat", "kitten", "fur"], "cars": ["car", "engine", "race"], "food": ["soup", "rice", "pan"]}
SPEC = {"video_id": tf.io.FixedLenFeature([], tf.string, ""), "title": tf.io.FixedLenFeature([], tf.string, "")}


class ByTitle(tf.Module):
    """Stands for a representation: one axis a theme, found in the title; the sign is a second training's."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = tf.Variable(sign)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def embed(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, SPEC)
        axes = [tf.strings.regex_full_match(parsed["title"], f".*{theme}.*") for theme in THEMES]
        return {"video_id": parsed["video_id"], "z": self.sign * tf.cast(tf.stack(axes, axis=1), tf.float32)}


class World:
    """A folder in which the executor runs again and again, each time into an artifact of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def push(self, version: int, sign: float) -> None:
        model = ByTitle(sign)
        tf.saved_model.save(model, str(self.folder / "served" / str(version)), signatures={"embed": model.embed})

    def run(self, videos: dict[str, tuple[str, list[str]]], **settings: Any) -> Path:
        self.runs += 1
        examples, topics = standard_artifacts.Examples(), Topics()
        examples.uri, topics.uri = str(self.folder / f"videos{self.runs}"), str(self.folder / f"topics{self.runs}")
        for part in range(2):
            name = ("train", "test")[part]
            path = Path(examples.uri) / f"Split-{name}" / "data_tfrecord-0.gz"
            path.parent.mkdir(parents=True)
            with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
                for video in sorted(videos)[part::2]:
                    writer.write(example(video, *videos[video]))
        context = base_beam_executor.BaseBeamExecutor.Context(tmp_dir=str(self.folder))
        properties = {
            "push_destination": str(self.folder / "served"),
            "store": str(self.folder / "store"),
            "settings_json": json.dumps({**SETTINGS, **settings}),
        }
        Executor(context).Do({"examples": [examples]}, {"topics": [topics]}, properties)
        assert topics.get_int_custom_property("videos") == len(videos)
        return Path(topics.uri)


def example(video: str, title: str, tags: list[str]) -> bytes:
    values = {"video_id": [video], "title": [title], "tags": tags}
    feature = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode() for text in texts]))
        for name, texts in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def planted(each: int = 8) -> dict[str, tuple[str, list[str]]]:
    """Videos of three themes; a few have no title or no tags, and one has neither."""
    videos = {
        f"{theme}{i}": ("" if i == 1 else f"about {theme} {i}", [] if i == 2 else [tags[i % 3], tags[(i + 1) % 3]])
        for theme, tags in THEMES.items()
        for i in range(each)
    }
    return {**videos, "nothing": ("", [])}


def topics_of(folder: Path) -> dict[str, list[str]]:
    rows = pq.read_table(folder / "video_topics.parquet").to_pylist()
    assert all(len(row["topics"]) == len(row["similarities"]) for row in rows)
    assert all(row["similarities"] == sorted(row["similarities"], reverse=True) for row in rows)
    return {row["video_id"]: row["topics"] for row in rows}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_themes_become_topics_with_names_whatever_part_a_video_lacks(world: World):
    world.push(1, 1.0)
    folder = world.run(planted())
    found = topics_of(folder)
    best = {theme: {found[video][0] for video in found if video.startswith(theme)} for theme in THEMES}
    assert sorted(len(ids) for ids in best.values()) == [1, 1, 1]
    assert set.union(*best.values()) == {"t000", "t001", "t002"}
    assert found["nothing"] == []
    for topic in json.loads((folder / "topics.json").read_text(encoding="utf-8")):
        theme = next(theme for theme, ids in best.items() if ids == {topic["id"]})
        assert set(topic["name"].split(" · ")) == set(THEMES[theme])
        assert all(theme in title for title in topic["titles"])
        assert topic["size"] == sum(topic["id"] in of_one for of_one in found.values())
    centres = np.load(folder / "centres.npy")
    assert centres.shape == (3, 3 + 4)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    assert len((folder / "version").read_text()) == 16


def later(folder: Path, videos: dict[str, tuple[str, list[str]]]) -> dict[str, tuple[list[str], list[float]]]:
    """Topics and similarities of videos that `folder`'s topics were not learned from."""
    settings = TopicSettings(**SETTINGS)
    records = [example(video, *row) for video, row in videos.items()]
    rows = LearnedTopics.read(str(folder), settings).assign_later(records, settings).to_pylist()
    return {row["video_id"]: (row["topics"], row["similarities"]) for row in rows}


@pytest.mark.parametrize("represented", [True, False])
def test_a_video_that_comes_later_has_the_topics_that_it_would_have_been_given(world: World, represented: bool):
    if represented:
        world.push(1, 1.0)
    folder = world.run(planted(each=100))  # more than are embedded at once
    rows = pq.read_table(folder / "video_topics.parquet").to_pylist()
    found = later(folder, {f"again {video}": row for video, row in planted(each=100).items()})
    assert len(found) == len(rows) == 301
    for row in rows:
        topics, similarities = found[f"again {row['video_id']}"]
        assert topics == row["topics"]
        np.testing.assert_allclose(similarities, row["similarities"], atol=1e-6)
    assert later(folder, {}) == {}


def test_tags_that_nobody_knew_tell_nothing_of_a_later_video(world: World):
    world.push(1, 1.0)
    folder = world.run(planted())
    cats = topics_of(folder)["cats0"]
    given = {
        "title": ("about cats", ["brand", "new"]),
        "tag": ("of nothing known", ["kitten", "new"]),
        "none": ("x", []),
    }
    found = {video: topics for video, (topics, _) in later(folder, given).items()}
    assert found["title"][0] == found["tag"][0] == cats[0]
    assert found["none"] == []


def test_a_later_video_is_refused_where_what_topics_were_learned_with_is_gone(world: World):
    world.push(1, 1.0)
    folder = world.run(planted())
    world.push(2, -1.0)  # another one is served by now: its axes are others
    assert later(folder, {"x": ("about cats", [])})["x"][0] == [topics_of(folder)["cats0"][0]]
    tf.io.gfile.rmtree(str(world.folder / "served" / "1"))
    with pytest.raises(ContractError, match=r"served/1: expected the topic representation .* gone: run again"):
        later(folder, {})
    (folder / "representation").unlink()
    with pytest.raises(ContractError, match="expected topics as TopicLearner writes them, got no representation"):
        later(folder, {})


def test_pairs_of_tags_are_counted_over_all_files(world: World):
    folder = world.run({"a": ("", ["x", "y"]), "b": ("", ["y", "x", "z"]), "c": ("", ["z", "z"])})
    rows = pq.read_table(folder / "tag_pairs.parquet").to_pylist()
    assert [(r["tag"], r["other"], r["videos"]) for r in rows] == [("x", "y", 2), ("x", "z", 1), ("y", "z", 1)]


def test_topics_keep_their_ids_when_the_model_is_trained_again_and_a_theme_comes_and_goes(world: World):
    world.push(1, 1.0)
    first = topics_of(world.run(planted()))
    world.push(2, -1.0)  # every axis the other way: the centres of before are as far off as can be
    added = {f"sport{i}": ("", [["ball", "goal"], ["goal", "team"], ["team", "ball"]][i % 3]) for i in range(8)}
    second = topics_of(world.run({**planted(), **added}, topics=4))
    assert {video: second[video][0] for video in first if first[video]} == {v: t[0] for v, t in first.items() if t}
    assert {second[video][0] for video in added} == {"t003"}
    cars = {v for v in planted() if v.startswith("cars")}
    folder = world.run({v: row for v, row in {**planted(), **added}.items() if v not in cars}, topics=3)
    third = topics_of(folder)
    assert {v: t[0] for v, t in third.items() if t} == {v: t[0] for v, t in second.items() if t and v not in cars}
    assert read_summary(str(folder))["ended"] == [first["cars0"][0]]
    assert read_summary(str(folder))["next_topic"] == 4


def test_an_id_is_never_given_again_even_where_the_last_topics_were_cleaned_away(world: World):
    tf.io.gfile.rmtree(str(world.run(planted())))
    assert {topic for row in topics_of(world.run(planted())).values() for topic in row} == {"t003", "t004", "t005"}


def test_topics_repeat_exactly(world: World):
    world.push(1, 1.0)
    first = world.run(planted())
    tf.io.gfile.rmtree(str(world.folder / "store"))
    second = world.run(planted())
    for name in ("topics.json", "version", "video_topics.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_report_counts_topics_a_video_and_those_that_have_none(world: World):
    folder = world.run(planted(), topics=3, threshold=0.9)
    got, found = read_summary(str(folder)), topics_of(folder)  # no representation: of tags alone
    assert got["videos"] == len(found) == 25
    assert got["mean_topics"] == pytest.approx(np.mean([len(topics) for topics in found.values()]))
    assert got["without_topic"] == pytest.approx(4 / 25)  # "nothing", and the three without tags
    assert got["tags"] == 9


def test_videos_that_have_nothing_are_one_clear_error(world: World):
    with pytest.raises(ContractError, match="expected videos with a cover, a title or tags, got 2 videos without"):
        world.run({"a": ("title", []), "b": ("", ["alone"])})
