"""Content vectors are those of the served model, made once a clip and model, and joined to impressions."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from components.content_embedder import executor, made_by
from components.content_embedder.artifact import ContentVectors
from transform.clip_settings import SHAPE_FILE, ClipSettings
from transform.contract import ContractError

FRAMES = 3
SETTINGS = ClipSettings(frames=FRAMES)
SPEC = {"video_id": tf.io.FixedLenFeature([], tf.string), "title": tf.io.FixedLenFeature([], tf.string)}


class Lengths(tf.Module):
    """Stands for a classifier: every vector holds the length of the title, times the factor; there is no sound."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def embed(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, SPEC)
        length = self.factor * tf.cast(tf.strings.length(parsed["title"]), tf.float32)[:, tf.newaxis]
        vectors = {"visual": tf.repeat(length, 2, axis=1), "audio": 0 * length, "text": length, "fused": length}
        frames = tf.ones([tf.shape(length)[0], FRAMES])
        return {
            "video_id": parsed["video_id"],
            **vectors,
            "frame_vectors": tf.repeat(frames[:, :, tf.newaxis], 2, axis=2) * length[:, :, tf.newaxis],
            "frame_attention": frames / FRAMES,
            "frame_times": tf.cumsum(frames, axis=1),
        }


def push(destination: Path, version: int, factor: float) -> None:
    model = Lengths(factor)
    tf.saved_model.save(model, f"{destination}/{version}", signatures={"embed": model.embed})
    path = destination / str(version) / SHAPE_FILE
    path.parent.mkdir()
    path.write_text(SETTINGS.shape)


def write_clips(folder: Path, titles: dict[str, str]) -> None:
    """Clips by id in two splits, several files."""
    for video, title in titles.items():
        values = {"video_id": video, "title": title}
        feature = {n: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode()])) for n, v in values.items()}
        path = folder / f"Split-{'train' if video < 'v3' else 'test'}" / f"data_tfrecord-{video}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


class World:
    """A folder in which the executor runs again and again, each time into an artifact of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def run(self, titles: dict[str, str], settings: ClipSettings = SETTINGS) -> Path:
        self.runs += 1
        examples, content = standard_artifacts.Examples(), ContentVectors()
        examples.uri, content.uri = str(self.folder / f"clips{self.runs}"), str(self.folder / f"content{self.runs}")
        write_clips(Path(examples.uri), titles)
        context = base_beam_executor.BaseBeamExecutor.Context(tmp_dir=str(self.folder))
        properties = {"push_destination": str(self.folder / "served"), "store": str(self.folder / "store")}
        properties["clip_shape"] = settings.shape
        executor.Executor(context).Do({"examples": [examples]}, {"content": [content]}, properties)
        return Path(content.uri)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rows(content: Path, table: str = "content") -> dict[str, dict[str, Any]]:
    parts = [pq.read_table(path) for path in (content / table).glob("*.parquet")]
    return {row["video_id"]: row for row in pa.concat_tables(parts).to_pylist()}


def test_every_clip_of_every_split_has_its_vectors_and_null_for_what_is_missing(world: World):
    push(world.folder / "served", 1, 2.0)
    content = world.run({"v1": "abc", "v2": "", "v4": "ab"})
    found = rows(content)
    assert {video: row["visual_vector"] for video, row in found.items()} == {"v1": [6, 6], "v2": None, "v4": [4, 4]}
    assert {video: row["text_vector"] for video, row in found.items()} == {"v1": [6], "v2": None, "v4": [4]}
    assert [row["audio_vector"] for row in found.values()] == [None] * 3
    frames = rows(content, "frames")["v4"]
    assert frames["frame_times"] == [1, 2, 3]
    assert frames["frame_vectors"] == [[4, 4]] * FRAMES
    np.testing.assert_allclose(frames["frame_attention"], [1 / 3] * 3, rtol=1e-6)


def test_only_clips_that_changed_are_embedded_again(world: World):
    push(world.folder / "served", 1, 2.0)
    first = world.run({"v1": "abc", "v2": "x", "v4": "ab"})
    assert executor.read_summary(str(first)) == {"embedded": 3, "reused": 0}
    second = world.run({"v1": "abc", "v2": "changed", "v5": "new"})  # v4 is gone
    assert executor.read_summary(str(second)) == {"embedded": 2, "reused": 1}
    assert {video: row["text_vector"] for video, row in rows(second).items()} == {"v1": [6], "v2": [14], "v5": [6]}
    assert rows(second, "frames").keys() == {"v1", "v2", "v5"}
    assert rows(second, "frames")["v1"] == rows(first, "frames")["v1"]


def test_another_model_embeds_everything_again_and_the_same_one_pushed_again_nothing(world: World):
    push(world.folder / "served", 1, 2.0)
    first = world.run({"v1": "abc"})
    push(world.folder / "served", 2, 3.0)
    content = world.run({"v1": "abc"})
    assert executor.read_summary(str(content)) == {"embedded": 1, "reused": 0}
    assert rows(content)["v1"]["text_vector"] == [9]
    shutil.copytree(world.folder / "served" / "2", world.folder / "served" / "3")
    again = world.run({"v1": "abc"})
    assert executor.read_summary(str(again)) == {"embedded": 0, "reused": 1}
    assert made_by.read(str(first)) != made_by.read(str(content)) == made_by.read(str(again)) != ""


def test_vectors_that_somebody_deleted_are_made_again(world: World):
    push(world.folder / "served", 1, 2.0)
    tf.io.gfile.rmtree(str(world.run({"v1": "abc"})))
    assert executor.read_summary(str(world.run({"v1": "abc"}))) == {"embedded": 1, "reused": 0}


def test_without_a_served_classifier_there_are_no_vectors(world: World):
    assert rows(world.run({"v1": "abc"})) == {}


def test_a_classifier_for_clips_of_another_shape_is_refused_with_both_shapes(world: World):
    push(world.folder / "served", 1, 2.0)
    with pytest.raises(ContractError, match=r'expected clips of the shape .*"frames":3.*, got .*"frames":9'):
        world.run({"v1": "abc"}, ClipSettings(frames=9))
    quality = ClipSettings(frames=FRAMES, jpeg_quality=50)  # says nothing about what a model can read
    assert executor.read_summary(str(world.run({"v1": "abc"}, quality)))["embedded"] == 1
