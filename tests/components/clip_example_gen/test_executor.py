"""The component over a world made in the test: examples that decode, quarantine, groups, key frames."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.clip_example_gen import splits
from components.clip_example_gen.executor import Executor, read_summary
from components.clip_example_gen.media import fingerprint
from components.impression_example_gen.impressions import SPLITS, Splits
from components.world import files, tables
from transform import clips, contract
from transform.clip_settings import ClipSettings
from transform.contract import ContractError

SETTINGS = ClipSettings(frames=3, size=16, sound_steps=2, mels=8, key_frames=2, flow=True)
BY_GROUP = '{"by": "hash", "train": 0.5, "valid": 0.25, "test": 0.25}'
WORKERS = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading"]


def run(world: str, uri: str, settings: ClipSettings = SETTINGS, splits_json: str = BY_GROUP):
    examples = standard_artifacts.Examples()
    examples.uri = uri
    context = BaseBeamExecutor.Context(beam_pipeline_args=WORKERS, tmp_dir=uri, unique_id="1")
    properties = {"contract_json": contract.load("microvideo").to_json(), "settings_json": settings.to_json()}
    Executor(context).Do({}, {"examples": [examples]}, {"world": world, "splits_json": splits_json, **properties})
    return examples


def read(uri: str) -> dict[str, dict]:
    """Every example by its video, with its split."""
    found = {}
    for split in SPLITS:
        data = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{uri}/Split-{split}/*.gz"), "GZIP")
        for record in data:
            example = tf.io.parse_single_example(record, clips.parse_spec(SETTINGS))
            found[example[clips.VIDEO_ID].numpy().decode()] = {**example, "split": split}
    return found


@pytest.fixture(scope="module")
def world(shared_media) -> str:
    """Twelve good videos in six groups, one with frames of its own, four broken ones, and one without media."""
    for index in range(12):
        tone = shared_media.sine(440, 1.0) if index % 2 else None
        shared_media.write(f"v{index:02d}.mp4", shared_media.plain(range(index, 200 + index, 20)), tone=tone)
    shared_media.raw("empty.mp4", b"")
    shared_media.raw("text.mp4", b"words " * 99)
    rows = [
        {"video_id": f"v{i:02d}", "media_path": f"v{i:02d}.mp4", "group_id": f"g{i // 2}", "title": f"Clip {i}"}
        for i in range(12)
    ]
    rows[0]["frame_paths"] = ["a.jpg", "b.jpg"]
    rows[1]["media_path"] = f"file://{shared_media.folder}/v01.mp4"
    rows[2]["primary_category"] = "sport"
    rows += [{"video_id": name, "media_path": f"{name}.mp4"} for name in ("empty", "text", "nowhere", "nowhere2")]
    rows.append({"video_id": "unseen"})
    columns = ("video_id", "media_path", "group_id", "title", "primary_category")
    data = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in columns}
    data["frame_paths"] = pa.array([row.get("frame_paths") for row in rows], tables.STRINGS)
    tables.write_table(str(shared_media.folder), "videos", pa.table(data))
    return str(shared_media.folder)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    return run(world, str(tmp_path_factory.mktemp("examples")))


def test_every_good_video_is_one_example_that_decodes(done):
    examples = read(done.uri)
    assert sorted(examples) == [f"v{i:02d}" for i in range(12)]
    for index in range(12):
        example = examples[f"v{index:02d}"]
        frames = clips.decode_frames(example[clips.FRAMES], SETTINGS)
        # Pictures 0.1 s long, parts of 1/3 s: middles 0.167, 0.5, 0.833, pictures 1, 5, 8.
        np.testing.assert_allclose(
            tf.reduce_mean(tf.cast(frames, tf.float32), (1, 2, 3)) - index, [20, 100, 160], atol=3
        )
        np.testing.assert_allclose(example[clips.FRAME_TIMES], [0.1, 0.5, 0.8], atol=1e-6)
        flow = clips.decode_flow(example[clips.FLOW], SETTINGS)
        assert flow.shape == (3, 16, 16, 2)
        sound, present = clips.decode_sound(example[clips.SOUND], SETTINGS)
        assert bool(present) == bool(index % 2)
        assert example[clips.HAS_AUDIO] == (b"yes" if index % 2 else b"no")
        assert (float(tf.reduce_max(sound)) > 0.3) == bool(index % 2)
        assert example[clips.TITLE] == f"Clip {index}".encode()
        assert example[clips.PRIMARY_CATEGORY] == (b"sport" if index == 2 else b"")
        assert example[clips.DURATION_BUCKET] == b"0-5s"


def test_broken_files_are_rejected_rows_with_reasons_and_counts(done, world):
    rejected = tables.read_table(done.uri, "rejected").to_pylist()
    assert sorted((row["video_id"], row["reason"]) for row in rejected) == [
        ("empty", "empty file"),
        ("nowhere", "unreadable path"),
        ("nowhere2", "unreadable path"),
        ("text", "not a video"),
    ]
    summary = read_summary(done.uri)
    assert summary["rejected"] == {"unreadable path": 2, "empty file": 1, "not a video": 1}
    assert summary["without_media"] == 1
    properties = {
        name: done.get_int_custom_property(name) for name in ("rows", "rejected", "without_media", "with_audio")
    }
    assert properties == {"rows": 12, "rejected": 4, "without_media": 1, "with_audio": 6}
    assert sum(summary["rows"].values()) == 12
    assert done.get_int_custom_property("bytes_per_clip") == summary["bytes"] // 12


def test_a_group_is_never_separated(done):
    by_group: dict[int, set[str]] = {}
    for name, example in read(done.uri).items():
        by_group.setdefault(int(name[1:]) // 2, set()).add(example["split"])
    assert all(len(found) == 1 for found in by_group.values())


def test_key_frames_are_pictures_beside_the_world_with_their_times(done, world):
    rows = tables.read_table(world, "key_frames").to_pylist()
    mine = [row for row in rows if row["video_id"] == "v03"]
    assert [row["frame_index"] for row in mine] == [0, 1]
    np.testing.assert_allclose([row["at_seconds"] for row in mine], [0.2, 0.7], atol=1e-6)  # middles of two halves
    pictures = [cv2.imread(files.locate(world, row["path"])) for row in mine]
    np.testing.assert_allclose([picture.mean() for picture in pictures], [43, 143], atol=3)
    assert pictures[0].shape == (48, 64, 3)
    assert len(rows) == 2 * 12


def test_frames_that_a_video_came_with_are_its_key_frames(done, world):
    rows = [row for row in tables.read_table(world, "key_frames").to_pylist() if row["video_id"] == "v00"]
    assert [(row["frame_index"], row["path"], row["at_seconds"]) for row in rows] == [
        (0, "a.jpg", None),
        (1, "b.jpg", None),
    ]


def test_a_run_without_key_frames_counts_none_and_leaves_those_of_others(media, tmp_path):
    paths = [media.write(f"{i}.mp4", media.plain([5] * 10)) for i in range(12)]
    videos = pa.table({"video_id": [f"v{i}" for i in range(12)], "media_path": paths, "frame_paths": [["a.jpg"]] * 12})
    tables.write_table(str(media.folder), "videos", videos)
    before = run(str(media.folder), str(tmp_path / "with"))
    without = run(str(media.folder), str(tmp_path / "without"), SETTINGS.model_copy(update={"key_frames": 0}))
    assert [made.get_int_custom_property("key_frames") for made in (before, without)] == [12, 0]
    assert len(tables.read_table(str(media.folder), "key_frames")) == 12


def test_running_again_writes_the_same_examples(done, world, tmp_path):
    again = run(world, str(tmp_path / "again"))
    first, second = read(done.uri), read(again.uri)
    assert {k: v["split"] for k, v in first.items()} == {k: v["split"] for k, v in second.items()}
    for name, example in first.items():
        assert all(np.array_equal(example[key], second[name][key]) for key in clips.parse_spec(SETTINGS)), name


def test_an_empty_split_is_one_clear_error(media, tmp_path):
    media.write("a.mp4", media.plain([5] * 10))
    tables.write_table(str(media.folder), "videos", pa.table({"video_id": ["a"], "media_path": ["a.mp4"]}))
    with pytest.raises(ContractError, match="expected clips in every split, got none in"):
        run(str(media.folder), str(tmp_path / "examples"))


def test_a_world_without_media_paths_is_refused(tmp_path):
    tables.write_table(str(tmp_path), "videos", pa.table({"video_id": ["a"], "medi_path": ["a.mp4"]}))
    with pytest.raises(ContractError, match=r"'media_path' is missing \(did you mean 'medi_path'"):
        run(str(tmp_path), str(tmp_path / "examples"))


def videos(groups: list[str | None], published: list[int] | None = None) -> pa.Table:
    columns = {"video_id": [f"v{i}" for i in range(len(groups))], "group_id": pa.array(groups, pa.string())}
    return pa.table({**columns, **({"published_at": published} if published else {})})


def test_a_video_without_an_id_is_one_clear_error(tmp_path):
    media_paths = ["a.mp4", "b.mp4", "c.mp4"]
    tables.write_table(str(tmp_path), "videos", pa.table({"video_id": ["a", None, ""], "media_path": media_paths}))
    with pytest.raises(ContractError, match=r"expected one row for each video_id, got 2 without: `shortlist check`"):
        run(str(tmp_path), str(tmp_path / "examples"))


def test_media_that_may_not_be_read_have_a_fingerprint_all_the_same(media, monkeypatch):
    path = media.write("locked.mp4", media.plain([0] * 4))

    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open", locked, raising=False)
    assert files.sketch(path) == "unreadable: Permission denied"


def test_clips_of_another_sampling_or_sound_are_of_another_shape():
    plain = ClipSettings(frames=8, size=32)
    for other in ({"sound_rate": 48_000}, {"sampling": "consecutive"}, {"frames": 16}):
        assert plain.model_copy(update=other).shape != plain.shape
    assert plain.model_copy(update={"key_frames": 3, "jpeg_quality": 50}).shape == plain.shape


def test_a_split_by_hash_depends_on_the_group_alone():
    division = Splits.from_json(BY_GROUP)
    names = [f"g{i}" for i in range(400)]
    assigned = splits.assign(videos(names), division, "w")
    np.testing.assert_allclose(np.bincount(assigned) / 400, [0.5, 0.25, 0.25], atol=0.08)
    np.testing.assert_array_equal(splits.assign(videos(names[::-1] + names), division, "w")[400:], assigned)


def test_videos_without_a_group_are_groups_of_their_own():
    assigned = splits.assign(videos([None, ""] * 100), Splits.from_json(BY_GROUP), "w")
    assert set(assigned) == {0, 1, 2}


def test_a_split_by_time_goes_by_the_first_of_a_group():
    division = Splits.from_json('{"by": "time", "train": 0.5, "valid": 0.25, "test": 0.25}')
    # Groups a (first at 10), b 20, c 30, d 40: the median is above 20, three quarters above 30.
    table = videos(["d", "a", "b", "a", "c"], [40, 10, 20, 99, 30])
    assert [SPLITS[i] for i in splits.assign(table, division, "w")] == ["test", "train", "train", "train", "valid"]


def test_a_split_by_time_needs_times():
    with pytest.raises(ContractError, match="need published_at of every video"):
        splits.assign(videos(["a"]), Splits.from_json('{"by": "time", "train": 0.5, "valid": 0.25, "test": 0.25}'), "w")


def test_the_fingerprint_changes_with_media_and_with_nothing_else(media):
    media.raw("a.mp4", b"one")
    tables.write_table(str(media.folder), "videos", pa.table({"video_id": ["a", "b"], "media_path": ["a.mp4", None]}))
    first = fingerprint(str(media.folder))
    media.raw("unrelated.mp4", b"x")
    media.raw("a.mp4", b"one")
    assert fingerprint(str(media.folder)) == first
    media.raw("a.mp4", b"two")
    assert fingerprint(str(media.folder)) != first
