"""Decodes the videos of a world in Beam: clips as tf.Examples by split, candidates for the cover beside the world.

    rows with media --by hash of video--> decode, write TFRecords, rejects and pictures --> counts

A partition is some `CLIPS_PER_PARTITION` rows; its clips go to its files one by one, so that a worker holds one or two
clips at a time. Files have names that depend on the partition alone and appear by renaming: a bundle may be run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.clip_example_gen import sound, splits
from components.clip_example_gen.clip import Clip
from components.clip_example_gen.isolation import Decoder
from components.clip_example_gen.video import FaultError
from components.impression_example_gen import impressions, partitions
from components.impression_example_gen.artifact import describe
from components.impression_example_gen.impressions import SPLITS, Splits
from components.world import files, tables
from transform import clips
from transform.clip_settings import ClipSettings
from transform.contract import Contract, ContractError, Kind, Role

SUMMARY_FILE = "summary.json"
CLIPS_PER_PARTITION = 64
MIN_PARTITIONS = 16  # so that few videos keep all cores busy too
REJECTED = pa.schema([(name, pa.string()) for name in ("video_id", "media_path", "reason", "detail")])
KEY_FRAMES = pa.schema(
    [("video_id", pa.string()), ("frame_index", pa.int64()), ("at_seconds", pa.float64()), ("path", pa.string())]
)
_BUCKET_ENDS = (5, 15, 60)
_PARTIAL = ".partial"  # not in a split, whose every file TFX reads

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every worker knows.

    Attributes:
        world: Where relative paths start, and where pictures go.
        uri: The folder of the examples.
        settings: What to decode.
        title: Column of the title.
    """

    world: str
    uri: str
    settings: ClipSettings
    title: str


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the splits of `examples` with `summary.json` and `rejected.parquet`, and the key frames of the world."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: Empty.
            output_dict: `examples`.
            exec_properties: `world`, `contract_json`, `settings_json`, `splits_json`.

        Raises:
            ContractError: The table of videos does not fit, settings or splits are not valid, or a split would be
                empty.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        contract = Contract.from_json(exec_properties["contract_json"])
        settings = ClipSettings.from_json(exec_properties["settings_json"])
        division = Splits.from_json(exec_properties["splits_json"])
        job = Job(exec_properties["world"], examples.uri, settings, title_column(contract))
        videos = read_videos(job, division)
        rows = videos.filter(pc.not_equal(pc.fill_null(videos["media_path"], ""), ""))
        for folder in (_PARTIAL, *(f"Split-{split}" for split in SPLITS)):
            tf.io.gfile.makedirs(f"{job.uri}/{folder}")
        known = {"without_media": len(videos) - len(rows), "splits": json.loads(exec_properties["splits_json"])}
        with self._make_beam_pipeline() as pipeline:
            build(pipeline, rows, job, known)
        files.remove_folder(f"{job.uri}/{_PARTIAL}")
        _describe(examples, read_summary(job.uri), job.world)


def read_summary(uri: str) -> dict[str, Any]:
    """What an execution counted: `rows` by split, `rejected` by reason, `without_media`, `with_audio`, `bytes`, ..."""
    with tf.io.gfile.GFile(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def has_key_frames(input_dict: dict[str, list[types.Artifact]]) -> bool:
    """Whether the `clips` among a component's inputs, if it has any, came with candidates for covers."""
    return any(made.get_int_custom_property("key_frames") for made in input_dict.get("clips") or ())


def read_videos(job: Job, division: Splits) -> pa.Table:
    """The columns of the videos that clips are made from, and their `split`, an index into SPLITS."""
    videos = tables.read_table(job.world, "videos").combine_chunks()
    if "media_path" not in videos.column_names:
        raise tables.missing_column(f"{job.world}, videos", "media_path", videos.column_names)
    impressions.refuse_unclear_ids(videos, "video_id", f"{job.world}, videos")
    columns = ("video_id", "media_path", job.title, clips.PRIMARY_CATEGORY, clips.SECONDARY_CATEGORY, "frame_paths")
    kept = videos.select([name for name in dict.fromkeys(columns) if name in videos.column_names])
    return kept.append_column("split", pa.array(splits.assign(videos, division, job.world)))


def build(pipeline: beam.Pipeline, rows: pa.Table, job: Job, known: dict[str, Any]) -> None:
    """Add the whole graph to a pipeline; `known` goes into the summary."""
    wanted = max(-(-len(rows) // CLIPS_PER_PARTITION), MIN_PARTITIONS)
    wanted = 1 << (wanted - 1).bit_length()  # so that a grown world's partition holds clips of one of the last run's
    (
        pipeline
        | "Videos" >> beam.Create(list(partitions.split(rows, "video_id", wanted)))
        | "Spread" >> beam.Reshuffle()
        | "Decode" >> beam.ParDo(_Decode(job))
        | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Summarise" >> beam.Map(_summarise, job, known)
    )


@dataclass
class Account:
    """What came of a partition, beside its examples.

    Attributes:
        counts: By "rows <split>", "rejected <reason>", "bytes" and "with_audio".
        rejected: REJECTED.
        key_frames: KEY_FRAMES.
    """

    counts: Counter[str]
    rejected: pa.Table
    key_frames: pa.Table


class _Decode(beam.DoFn):
    """Writes the examples and pictures of a partition."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self) -> None:
        self._decoder = Decoder(self._job.settings)
        self._log_mel = sound.LogMel(self._job.settings)

    def teardown(self) -> None:
        self._decoder.close()
        del self._log_mel  # TensorFlow complains of functions that outlive it

    def process(self, element: tuple[int, bytes]) -> Iterator[Account]:
        partition, content = element
        rows = pa.ipc.open_stream(content).read_all().to_pylist()
        files_of = [(files.locate(self._job.world, row["media_path"]), not row.get("frame_paths")) for row in rows]
        with _Output(self._job, partition) as output:
            for row, answer in zip(rows, self._decoder.clips(files_of), strict=True):
                if isinstance(answer, FaultError):
                    output.reject(row, answer)
                    continue
                heard = b"" if answer.windows is None else self._log_mel(answer.windows)
                output.add(row, answer, encode(row, answer, heard, self._job))
        yield output.account()


class _Output:
    """The files of one partition; they appear when all of it is done."""

    def __init__(self, job: Job, partition: int) -> None:
        self._counts: Counter[str] = Counter()
        self._job, self._name = job, f"{partition:05d}"
        self._rejected: list[Row] = []
        self._key_frames: list[Row] = []
        self._writers: dict[str, tf.io.TFRecordWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is not None:
            return
        for split in self._writers:
            path = f"{self._job.uri}/Split-{split}/data_tfrecord-{self._name}.gz"
            tf.io.gfile.rename(self._partial(split), path, overwrite=True)

    def account(self) -> Account:
        """What was written and what was not."""
        rejected = pa.Table.from_pylist(self._rejected, REJECTED)
        return Account(self._counts, rejected, pa.Table.from_pylist(self._key_frames, KEY_FRAMES))

    def reject(self, row: Row, fault: FaultError) -> None:
        """Note why a row gives no clip."""
        self._rejected.append({"reason": fault.reason, "detail": fault.detail, **row})
        self._counts[f"rejected {fault.reason}"] += 1

    def add(self, row: Row, clip: Clip, record: bytes) -> None:
        """Write a clip's example and the candidates for its cover."""
        split = SPLITS[row["split"]]
        self._writer(split).write(record)
        if self._job.settings.key_frames:
            self._key_frames += _write_key_frames(row, clip, self._job.world)
        self._counts.update({f"rows {split}": 1, "bytes": len(record), "with_audio": int(clip.windows is not None)})

    def _writer(self, split: str) -> tf.io.TFRecordWriter:
        if split not in self._writers:
            stored = tf.io.TFRecordOptions("GZIP", compression_level=0)  # TFX reads gzip, and JPEG does not shrink
            self._writers[split] = self._open.enter_context(tf.io.TFRecordWriter(self._partial(split), stored))
        return self._writers[split]

    def _partial(self, split: str) -> str:
        return f"{self._job.uri}/{_PARTIAL}/{split}-{self._name}"


def encode(row: Row, clip: Clip, heard: bytes, job: Job) -> bytes:
    """The clip example (`transform.clips`) of a row, its clip and its spectrograms, serialised."""
    bucket = clips.DURATION_BUCKETS[sum(clip.seconds >= end for end in _BUCKET_ENDS)]
    values: dict[str, list[bytes]] = {
        clips.VIDEO_ID: [row["video_id"].encode()],
        clips.FRAMES: clip.frames,
        clips.SOUND: [heard],
        clips.TITLE: [(row.get(job.title) or "").encode()],
        clips.PRIMARY_CATEGORY: [(row.get(clips.PRIMARY_CATEGORY) or "").encode()],
        clips.SECONDARY_CATEGORY: [(row.get(clips.SECONDARY_CATEGORY) or "").encode()],
        clips.HAS_AUDIO: [b"yes" if heard else b"no"],
        clips.DURATION_BUCKET: [bucket.encode()],
        **({clips.FLOW: clip.flow} if job.settings.flow else {}),
    }
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in values.items()}
    features[clips.FRAME_TIMES] = tf.train.Feature(float_list=tf.train.FloatList(value=clip.times))
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _write_key_frames(row: Row, clip: Clip, world: str) -> list[Row]:
    """Write the candidates' pictures; their rows, or those of the frames that the video came with."""
    given = row.get("frame_paths")
    if given:
        return [_key_frame(row, index, None, path) for index, path in enumerate(given)]
    name = hashlib.sha256(row["video_id"].encode()).hexdigest()[:32]  # an id may hold any character
    folder = f"key_frames/{name[:2]}"
    if clip.key_frames:
        files.make_folder(files.join(world, folder))
    rows = []
    for index, (seconds, picture) in enumerate(clip.key_frames):
        path = f"{folder}/{name}-{index:02d}.jpg"
        with files.writing(files.join(world, path)) as file:
            file.write(picture)
        rows.append(_key_frame(row, index, seconds, path))
    return rows


def _key_frame(row: Row, index: int, seconds: float | None, path: str) -> Row:
    return {"video_id": row["video_id"], "frame_index": index, "at_seconds": seconds, "path": path}


def _summarise(accounts: list[Account], job: Job, known: dict[str, Any]) -> None:
    """Write the tables and the summary of all partitions."""
    counts: Counter[str] = sum((account.counts for account in accounts), Counter())
    key_frames = pa.concat_tables([KEY_FRAMES.empty_table(), *(account.key_frames for account in accounts)])
    rejected = pa.concat_tables([REJECTED.empty_table(), *(account.rejected for account in accounts)])
    tables.write_table(job.uri, "rejected", rejected)
    if job.settings.key_frames:
        tables.write_table(job.world, "key_frames", key_frames.sort_by([("video_id", "ascending")]))
    reasons = {key.removeprefix("rejected "): n for key, n in counts.items() if key.startswith("rejected ")}
    summary = {
        "rows": {split: counts[f"rows {split}"] for split in SPLITS},
        "rejected": reasons,
        **{name: counts[name] for name in ("with_audio", "bytes")},
        "key_frames": len(key_frames),
        **known,
        "settings": job.settings.model_dump(),
    }
    with files.writing(f"{job.uri}/{SUMMARY_FILE}") as file:
        file.write(json.dumps(summary, indent=1).encode())


def _describe(examples: types.Artifact, summary: dict[str, Any], world: str) -> None:
    """Put on the artifact what later steps and people ask for."""
    rows, rejected = summary["rows"], sum(summary["rejected"].values())
    describe(examples, rows)
    numbers = {"rejected": rejected, **{name: summary[name] for name in ("without_media", "with_audio", "key_frames")}}
    for name, number in {**numbers, "bytes_per_clip": summary["bytes"] // max(sum(rows.values()), 1)}.items():
        examples.set_int_custom_property(name, number)
    if rejected:
        logging.warning("%d videos of %s give no clip: %s", rejected, world, summary["rejected"])
    empty = [split for split in SPLITS if rows[split] == 0]
    if empty:
        raise ContractError(
            f"{world}: expected clips in every split, got none in {', '.join(empty)} (rows {rows}, rejected "
            f"{summary['rejected']}, without media {summary['without_media']}): bring more groups of videos, or change "
            "the fractions of `splits`"
        )


def title_column(contract: Contract) -> str:
    """The column of `videos` that holds the title: the first text of the contract."""
    texts = [f.column for f in contract.select((Kind.TEXT,), (Role.VIDEO,)) if f.table == "videos"]
    return next(iter(texts), clips.TITLE)
