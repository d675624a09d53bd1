"""Writes video examples in Beam.

    rows of videos, covers' paths --by hash of video--> covers read and scaled, TFRecords --> counts

A partition holds some `VIDEOS_PER_PARTITION` rows. Its files have names that depend on the partition alone and appear
by renaming: a bundle may be run again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import cv2
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.clip_example_gen import splits
from components.clip_example_gen.executor import has_key_frames, title_column
from components.impression_example_gen import impressions, partitions
from components.impression_example_gen.artifact import describe
from components.impression_example_gen.impressions import SPLITS, Splits
from components.world import files, tables
from components.world.pictures import read_picture
from transform import clips, videos
from transform.contract import Contract, ContractError

SUMMARY_FILE = "summary.json"
VIDEOS_PER_PARTITION = 2048
JPEG_QUALITY = 90
_PARTIAL = ".partial"  # not in a split, whose every file TFX reads
_PICTURE = "cover"  # column: where the cover is

Counts = dict[str, int]


@dataclass(frozen=True)
class Job:
    """What every worker knows.

    Attributes:
        world: Where relative paths start.
        uri: The folder of the examples.
        title: Column of the title.
        cover_size: S.
    """

    world: str
    uri: str
    title: str
    cover_size: int


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the splits of `examples` and `summary.json`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: `clips`, optionally.
            output_dict: `examples`.
            exec_properties: `world`, `contract_json`, `cover_size` and `splits_json`.

        Raises:
            ContractError: The table of videos or the splits do not fit, or a split would be empty.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        title = title_column(Contract.from_json(exec_properties["contract_json"]))
        job = Job(exec_properties["world"], examples.uri, title, exec_properties["cover_size"])
        rows = read_videos(job, Splits.from_json(exec_properties["splits_json"]), has_key_frames(input_dict))
        for folder in (_PARTIAL, *(f"Split-{split}" for split in SPLITS)):
            tf.io.gfile.makedirs(f"{job.uri}/{folder}")
        with self._make_beam_pipeline() as pipeline:
            build(pipeline, rows, job)
        files.remove_folder(f"{job.uri}/{_PARTIAL}")
        summary = read_summary(job.uri)
        describe(examples, summary["rows"])
        for name in ("with_cover", "bad_covers"):
            examples.set_int_custom_property(name, summary[name])
        if summary["bad_covers"]:
            logging.warning("%d covers of %s are no pictures", summary["bad_covers"], job.world)
        empty = [split for split in SPLITS if summary["rows"][split] == 0]
        if empty:
            raise ContractError(
                f"{job.world}: expected videos in every split, got none in {', '.join(empty)} ({summary['rows']}): "
                "bring more groups of videos, or change the fractions of `video_splits`"
            )


def read_summary(uri: str) -> dict[str, Any]:
    """What an execution counted: `rows` by split, `with_cover` and `bad_covers`."""
    with tf.io.gfile.GFile(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def read_videos(job: Job, division: Splits, with_key_frames: bool) -> pa.Table:
    """What examples are made from, with `cover` (a path, null without one) and `split`, an index into SPLITS."""
    rows = tables.read_table(job.world, "videos").combine_chunks()
    impressions.refuse_unclear_ids(rows, "video_id", f"{job.world}, videos")
    kept = _described(rows, job.title)
    if with_key_frames:
        cover = pc.coalesce(kept[_PICTURE], _first_key_frames(job.world, rows["video_id"]))
        kept = kept.set_column(kept.column_names.index(_PICTURE), _PICTURE, cover)
    return kept.append_column("split", pa.array(splits.assign(rows, division, job.world)))


def examples(rows: pa.Table, world: str, title: str, cover_size: int) -> Iterator[bytes]:
    """The examples that a run would make of videos whose clips it has not decoded, serialised.

    Args:
        rows: Of the table of videos.
        world: Where relative paths start.
        title: Column of the title.
        cover_size: S.
    """
    for row in _described(rows, title).to_pylist():
        yield encode(row, _cover(row, world, cover_size), title)


def _described(rows: pa.Table, title: str) -> pa.Table:
    """What an example says of a video, with `cover`, the path of its own."""
    names = [title, *videos.DESCRIBED, videos.TAGS]
    kept = rows.select([name for name in dict.fromkeys(names) if name in rows.column_names])
    nothing = pa.nulls(len(rows), pa.string())
    cover = rows["cover_path"] if "cover_path" in rows.column_names else nothing
    return kept.append_column(_PICTURE, pc.if_else(pc.equal(cover, ""), None, cover))


def _cover(row: dict[str, Any], world: str, size: int) -> bytes:
    return read_cover(files.locate(world, row[_PICTURE]), size) if row[_PICTURE] else b""


def _first_key_frames(world: str, video_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    found = tables.read_table(world, "key_frames", ["video_id", "frame_index", "path"])
    first = found.filter(pc.equal(found["frame_index"], 0)).combine_chunks()
    return first["path"].take(pc.index_in(video_ids, value_set=partitions.single_array(first["video_id"])))


def build(pipeline: beam.Pipeline, rows: pa.Table, job: Job) -> None:
    """Add the whole graph to a pipeline."""
    wanted = -(-len(rows) // VIDEOS_PER_PARTITION) or 1
    (
        pipeline
        | "Videos" >> beam.Create(list(partitions.split(rows, "video_id", wanted)))
        | "Spread" >> beam.Reshuffle()
        | "Write" >> beam.Map(_write, job)
        | "Count" >> beam.CombineGlobally(partitions.total)
        | "Summarise" >> beam.Map(_summarise, job)
    )


def _write(element: tuple[int, bytes], job: Job) -> Counts:
    partition, content = element
    counts: Counter[str] = Counter()
    with ExitStack() as opened:
        writers: dict[str, tf.io.TFRecordWriter] = {}
        for row in pa.ipc.open_stream(content).read_all().to_pylist():
            split, cover = SPLITS[row["split"]], _cover(row, job.world, job.cover_size)
            if row[_PICTURE]:
                counts["with_cover" if cover else "bad_covers"] += 1
            if split not in writers:
                path = f"{job.uri}/{_PARTIAL}/{split}-{partition:05d}"
                writers[split] = opened.enter_context(tf.io.TFRecordWriter(path, "GZIP"))
            writers[split].write(encode(row, cover, job.title))
            counts[split] += 1
    for split in writers:
        target = f"{job.uri}/Split-{split}/data_tfrecord-{partition:05d}.gz"
        tf.io.gfile.rename(f"{job.uri}/{_PARTIAL}/{split}-{partition:05d}", target, overwrite=True)
    return dict(counts)


def read_cover(path: str, size: int) -> bytes:
    """The middle of a picture as JPEG, size x size; b"" where there is no picture."""
    picture = read_picture(path)
    if picture is None:
        return b""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    square = picture[top : top + side, left : left + side]
    scaled = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return bytes(cv2.imencode(".jpg", scaled, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def encode(row: dict[str, Any], cover: bytes, title: str) -> bytes:
    """The video example of a row and its cover, serialised."""
    texts = {**{name: row.get(name) for name in videos.DESCRIBED}, clips.TITLE: row.get(title)}
    values: dict[str, list[bytes]] = {name: [(text or "").encode()] for name, text in texts.items()}
    values[videos.COVER] = [cover]
    values[videos.TAGS] = [tag.encode() for tag in row.get(videos.TAGS) or [] if tag]
    feature = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in values.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _summarise(counts: Counts, job: Job) -> None:
    numbers = {name: counts.get(name, 0) for name in ("with_cover", "bad_covers")}
    with files.writing(f"{job.uri}/{SUMMARY_FILE}") as file:
        file.write(json.dumps({"rows": {split: counts.get(split, 0) for split in SPLITS}, **numbers}).encode())
