"""One example a video, with its cover in one size wherever it has one."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.clip_example_gen.media import PICTURES, fingerprint
from components.video_example_gen.executor import Executor, examples, read_summary
from components.world import tables
from transform import contract, videos

SPLITS = '{"by": "hash", "train": 0.6, "valid": 0.2, "test": 0.2}'
SIZE = 16


@pytest.fixture
def world(tmp_path) -> str:
    """Thirty videos: one with a cover, one with a key frame, one with both, and a broken, a lost, an empty one."""
    tall = np.zeros((60, 20, 3), np.uint8)  # blue, green, blue from the top: the middle square is green
    tall[..., 0], tall[20:40] = 255, (0, 255, 0)
    cv2.imwrite(str(tmp_path / "tall.png"), tall)
    cv2.imwrite(str(tmp_path / "red.jpg"), np.full((40, 40, 3), (0, 0, 255), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").touch()
    rows = [{"video_id": f"v{i}", "title": f"Title {i}", "tags": ["a", f"t{i}"]} for i in range(30)]
    for row, path in zip(rows, ("tall.png", None, "tall.png", "broken.jpg", "lost.jpg", "empty.jpg"), strict=False):
        row["cover_path"] = path
    rows[0] |= {"primary_category": "pets", "secondary_category": "cats"}
    rows[5] |= {"title": None, "tags": None}
    tables.write_table(str(tmp_path), "videos", pa.Table.from_pylist(rows))
    frames = [("v1", 0, "red.jpg"), ("v1", 1, "tall.png"), ("v2", 0, "red.jpg"), ("v6", 1, "red.jpg")]
    names = ("video_id", "frame_index", "path")
    key_frames = pa.Table.from_pylist([dict(zip(names, frame, strict=True)) for frame in frames])
    tables.write_table(str(tmp_path), "key_frames", key_frames)
    return str(tmp_path)


def run(world: str, uri: str, with_clips: bool) -> standard_artifacts.Examples:
    examples = standard_artifacts.Examples()
    examples.uri = uri
    properties = {"world": world, "contract_json": contract.load("microvideo").to_json(), "splits_json": SPLITS}
    clips = standard_artifacts.Examples()
    clips.set_int_custom_property("key_frames", 4 if with_clips else 0)
    given = {"clips": [clips]}
    context = BaseBeamExecutor.Context(tmp_dir=uri, unique_id="1")
    Executor(context).Do(given, {"examples": [examples]}, {**properties, "cover_size": SIZE})
    return examples


def video_of(example: tf.train.Example) -> bytes:
    return example.features.feature["video_id"].bytes_list.value[0]


def read(uri: str) -> dict[str, dict]:
    data = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{uri}/Split-*/*.gz"), "GZIP")
    parsed = [tf.io.parse_single_example(record, videos.parse_spec()) for record in data]
    return {example["video_id"].numpy().decode(): example for example in parsed}


def colour(example: dict) -> list[float] | None:
    """Mean RGB of the cover as models decode it; None without one."""
    pixels, present = videos.decode_covers(example["cover"][tf.newaxis], SIZE)
    return (pixels.numpy().mean(axis=(0, 1, 2)) > 127).tolist() if present.numpy()[0] else None


def test_examples_hold_what_is_known_and_the_middle_of_the_cover(world, tmp_path):
    artifact = run(world, str(tmp_path / "out"), with_clips=True)
    found = read(artifact.uri)
    assert len(found) == 30
    green, red = [False, True, False], [True, False, False]
    covers = {video: colour(example) for video, example in found.items()}
    assert {video: cover for video, cover in covers.items() if cover} == {"v0": green, "v1": red, "v2": green}
    texts = {name: found["v0"][name].numpy().decode() for name in videos.DESCRIBED}
    assert texts == {
        "video_id": "v0",
        "title": "Title 0",
        "primary_category": "pets",
        "secondary_category": "cats",
    }
    assert found["v0"]["tags"].numpy().tolist() == [b"a", b"t0"]
    assert (found["v5"]["title"].numpy(), found["v5"]["tags"].numpy().tolist()) == (b"", [])
    summary = read_summary(artifact.uri)
    assert (summary["with_cover"], summary["bad_covers"]) == (3, 3)
    assert sum(summary["rows"].values()) == artifact.get_int_custom_property("rows") == 30


def test_key_frames_are_no_covers_where_the_run_decodes_no_clips(world, tmp_path):
    found = read(run(world, str(tmp_path / "out"), with_clips=False).uri)
    assert {video for video, example in found.items() if colour(example)} == {"v0", "v2"}


def test_examples_of_videos_that_came_later_are_those_of_a_run_without_clips(world, tmp_path):
    made = run(world, str(tmp_path / "out"), with_clips=False).uri
    written = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{made}/Split-*/*.gz"), "GZIP").as_numpy_iterator()
    given = examples(tables.read_table(world, "videos"), world, "title", SIZE)
    parsed = [[tf.train.Example.FromString(record) for record in records] for records in (given, written)]
    for one, other in zip(*(sorted(found, key=video_of) for found in parsed), strict=True):
        assert one == other


def test_a_changed_cover_changes_the_fingerprint(world, tmp_path):
    before = fingerprint(world, PICTURES)
    (tmp_path / "red.jpg").write_bytes(b"other")  # a key frame
    assert fingerprint(world, PICTURES) == before
    (tmp_path / "tall.png").write_bytes(b"other")
    assert fingerprint(world, PICTURES) != before
