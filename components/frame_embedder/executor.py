"""Describes the candidates for covers in Beam.

    rows of videos with the paths of their pictures --by hash of video--> read, encoded, TFRecords --> counts

Files have names that depend on the partition alone and appear by renaming: a bundle may be run again.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import cv2
import numpy as np
import pyarrow as pa
import tensorflow as tf
from apache_beam.utils.shared import Shared
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.clip_example_gen.executor import has_key_frames
from components.frame_embedder.encoders import Encoder, encoder
from components.frame_embedder.settings import FrameSettings
from components.impression_example_gen import impressions, partitions
from components.world import files, tables
from components.world.pictures import Image, read_picture
from transform import frames
from transform.contract import ContractError

SUMMARY_FILE, FRAMES = "summary.json", "frames"
VIDEOS_PER_PARTITION = 2048
BATCH = 64  # videos read, and pictures encoded, at once
LARGEST_SIDE = 512  # pixels of a picture; no encoder looks at more
LOOKS = pa.schema(list(tables.CANONICAL["looks"].items()))
_COUNTED = ("videos", "pictures", "bad_pictures")

VECTORS = "frame_vectors"

Row = dict[str, Any]
Picture = tuple[str, float | None]  # path, and at which second


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes `frames/` and `summary.json`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: `clips`, optionally.
            output_dict: `frames`.
            exec_properties: `world` and `settings_json`.

        Raises:
            ContractError: The table of videos does not fit, or there are no weights.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        made = artifact_utils.get_single_instance(output_dict["frames"])
        world = exec_properties["world"]
        settings = FrameSettings.model_validate_json(exec_properties["settings_json"])
        encoder(settings)  # weights that do not fit are said here rather than by a worker
        rows = read_pictures(world, has_key_frames(input_dict), settings.encoder == "given")
        files.make_folder(f"{made.uri}/{FRAMES}")
        tables.write_table(f"{made.uri}/looks", "none", LOOKS.empty_table())  # where there is no video at all
        with self._make_beam_pipeline() as pipeline:
            build(pipeline, rows, world, settings, made.uri)
        counts = read_summary(made.uri)
        for name in _COUNTED:
            made.set_int_custom_property(name, counts[name])
        if counts["bad_pictures"]:
            logging.warning("%d of %d frames of %s are no pictures", counts["bad_pictures"], counts["pictures"], world)


def read_summary(uri: str) -> dict[str, int]:
    """How many `videos`, `pictures` and `bad_pictures` an execution met."""
    with files.reading(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def read_pictures(world: str, with_key_frames: bool, with_vectors: bool = False) -> pa.Table:
    """All videos, with the `path` and `at_seconds` of each candidate, in the order of their index.

    Args:
        world: Folder of the table `videos`.
        with_key_frames: Whether those that ClipExampleGen found go before a video's own pictures.
        with_vectors: Whether the videos come with `frame_vectors`: only their own pictures can be meant.

    Raises:
        ContractError: Ids are not clear; or there is no column of vectors, or they do not fit the pictures.
    """
    rows = tables.read_table(world, "videos").combine_chunks()
    impressions.refuse_unclear_ids(rows, "video_id", f"{world}, videos")
    given = [_own_pictures(row) for row in rows.select(_present(rows, "frame_paths", "cover_path")).to_pylist()]
    found = _key_frames(world) if with_key_frames and not with_vectors else {}
    pictures = [found.get(video) or own for video, own in zip(rows["video_id"].to_pylist(), given, strict=True)]
    more = {}
    if with_vectors:
        if VECTORS not in rows.column_names:
            raise ContractError(
                f"{world}, videos: frames with encoder `given` need the column {VECTORS}, got none: add it, or choose "
                "another encoder"
            )
        more[VECTORS] = rows[VECTORS]
        vectors = [found or [] for found in rows[VECTORS].to_pylist()]
        # Where there is a vector without a picture, there is a frame that nobody can look at.
        pictures = [own or [("", None)] if found else own for own, found in zip(pictures, vectors, strict=True)]
        _refuse_misfits(world, rows["video_id"].to_pylist(), pictures, vectors)
    paths = pa.array([[path for path, _ in row] for row in pictures], pa.list_(pa.string()))
    seconds = pa.array([[at for _, at in row] for row in pictures], pa.list_(pa.float64()))
    return pa.table({"video_id": rows["video_id"], frames.PATH: paths, frames.SECONDS: seconds, **more})


def _present(rows: pa.Table, *names: str) -> list[str]:
    return [name for name in names if name in rows.column_names] or rows.column_names[:1]


def _own_pictures(row: Row) -> list[Picture]:
    paths = row.get("frame_paths") or [row.get("cover_path")]
    return [(path, None) for path in paths if path]


def _refuse_misfits(
    world: str, videos: Sequence[str], pictures: Sequence[list[Picture]], vectors: Sequence[list[float]]
) -> None:
    """Vectors have one width, and there is one for each picture."""
    widths = [len(found) / len(own) if found else None for own, found in zip(pictures, vectors, strict=True)]
    usual = Counter(width for width in widths if width).most_common(1)
    for video, own, found, width in zip(videos, pictures, vectors, widths, strict=True):
        if width and width != usual[0][0]:
            raise ContractError(
                f"{world}, videos: expected {VECTORS} of {video!r} to hold {usual[0][0]:g} values, as most have, for "
                f"each of its {len(own)} pictures, got {len(found)}: mend them, or leave them empty"
            )


def _key_frames(world: str) -> dict[str, list[Picture]]:
    """What ClipExampleGen found, by video."""
    columns = ["video_id", "frame_index", "path", "at_seconds"]
    table = tables.read_table(world, "key_frames", columns).sort_by([("frame_index", "ascending")])
    found: dict[str, list[Picture]] = {}
    for row in table.to_pylist():
        found.setdefault(row["video_id"], []).append((row["path"], row["at_seconds"]))
    return found


def build(pipeline: beam.Pipeline, rows: pa.Table, world: str, settings: FrameSettings, uri: str) -> None:
    """Add the whole graph to a pipeline."""
    wanted = -(-len(rows) // VIDEOS_PER_PARTITION) or 1
    (
        pipeline
        | "Videos" >> beam.Create(list(partitions.split(rows, "video_id", wanted)))
        | "Spread" >> beam.Reshuffle()
        | "Describe" >> beam.ParDo(_Describe(world, settings, uri))
        | "Count" >> beam.CombineGlobally(partitions.total)
        | "Summarise" >> beam.Map(_summarise, uri)
    )


class _Describe(beam.DoFn):
    """Writes the examples of a partition; a worker loads the encoder once."""

    def __init__(self, world: str, settings: FrameSettings, uri: str) -> None:
        self._world, self._settings, self._uri, self._shared = world, settings, uri, Shared()

    def setup(self) -> None:
        self._encode = self._shared.acquire(lambda: _Held(self._settings)).encode

    def process(self, element: tuple[int, bytes]) -> Iterable[dict[str, int]]:
        partition, content = element
        rows = pa.ipc.open_stream(content).read_all().to_pylist()
        partial, counts = f"{self._uri}/.{FRAMES}-{uuid.uuid4().hex}", Counter[str]()
        looks: list[Row] = []
        with tf.io.TFRecordWriter(partial, "GZIP") as writer:
            for found in described(rows, self._world, self._encode):
                writer.write(found.example)
                looks.append({"video_id": found.video_id, "look_vector": found.look})
                counts.update(videos=1, pictures=len(found.readable), bad_pictures=found.readable.count(False))
        tf.io.gfile.rename(partial, f"{self._uri}/{FRAMES}/data_tfrecord-{partition:05d}.gz", overwrite=True)
        tables.write_table(f"{self._uri}/looks", f"{partition:05d}", pa.Table.from_pylist(looks, LOOKS))
        yield dict(counts)


class Described(NamedTuple):
    """What is known of a video's frames.

    Attributes:
        video_id: Whose.
        example: The frame example, serialised.
        look: [C], the mean of its frames; None without one.
        readable: Of each picture, whether it could be read.
    """

    video_id: str
    example: bytes
    look: np.ndarray | None
    readable: list[bool]


def described(rows: Sequence[Row], world: str, encode: Encoder | None) -> Iterator[Described]:
    """What the candidates for the covers of videos look like.

    Args:
        rows: Of `read_pictures`.
        world: Where relative paths start.
        encode: From pictures to vectors; None: the rows have vectors.

    """
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        looks = map(_given, batch) if encode is None else _encoded(batch, world, encode)
        for row, (own, there) in zip(batch, looks, strict=True):
            seconds = [np.nan if at is None else at for at in row[frames.SECONDS]]
            example = frames.encode(row["video_id"], row[frames.PATH], seconds, own, there)
            yield Described(row["video_id"], example, own[there].mean(axis=0) if any(there) else None, there)


def _given(row: Row) -> tuple[np.ndarray, list[bool]]:
    """[F, C] and [F]: without a vector, or with one of no numbers, a picture counts as one that could not be read."""
    count = len(row[frames.PATH])
    values = np.array(row[VECTORS] or [], np.float32)
    vectors = values.reshape(count, -1) if count else np.zeros((0, 0), np.float32)
    there = np.isfinite(vectors).all(axis=1) & bool(len(values))
    return np.where(there[:, np.newaxis], vectors, 0), there.tolist()


def _encoded(batch: Sequence[Row], world: str, encode: Encoder) -> Iterator[tuple[np.ndarray, list[bool]]]:
    pictures = [_picture(files.locate(world, path)) for row in batch for path in row[frames.PATH]]
    vectors = _vectors(pictures, encode)
    ends = np.cumsum([len(row[frames.PATH]) for row in batch])
    for own, end in zip(np.split(vectors, ends[:-1]), ends, strict=True):
        yield own, [picture is not None for picture in pictures[end - len(own) : end]]


def _picture(path: str) -> Image | None:
    picture = read_picture(path)
    if picture is None:
        return None
    scale = LARGEST_SIDE / max(picture.shape[:2])  # a batch of photographs would take gigabytes
    scaled = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    return np.asarray(scaled, np.uint8)


def _vectors(pictures: Sequence[Image | None], encode: Encoder) -> np.ndarray:
    """[pictures, C]; zeros where there is no picture."""
    there = [index for index, picture in enumerate(pictures) if picture is not None]
    if not there:
        return np.zeros((len(pictures), 0), np.float32)
    parts = (there[start : start + BATCH] for start in range(0, len(there), BATCH))
    encoded = np.concatenate([encode([p for p in map(pictures.__getitem__, part) if p is not None]) for part in parts])
    vectors = np.zeros((len(pictures), encoded.shape[1]), np.float32)
    vectors[there] = encoded
    return vectors


class _Held:
    """What workers of a process share."""

    def __init__(self, settings: FrameSettings) -> None:
        self.encode = encoder(settings)


def _summarise(counts: dict[str, int], uri: str) -> None:
    with files.writing(f"{uri}/{SUMMARY_FILE}") as file:
        file.write(json.dumps({name: counts.get(name, 0) for name in _COUNTED}).encode())
