"""Runs the served classifier's `embed` over clips in Beam.

    files of clips --> those unchanged since the last execution: its rows; the others: in batches through the model
                   --> a part of `content/` and of `frames/` a file

A worker loads the model once, and holds one batch of clips and the vectors of one file at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the model's ops)
from apache_beam.utils.shared import Shared
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.content_embedder import made_by
from components.impression_example_gen import partitions
from components.serving_baseline.executor import clip_shape, served_version
from components.world import files, tables
from transform import clips
from transform.contract import CONTENT, ContractError

SUMMARY_FILE = "summary.json"
BATCH = 16
FRAMES = pa.schema(
    [
        ("video_id", pa.string()),
        ("frame_times", tables.FLOATS),
        ("frame_attention", tables.FLOATS),
        ("frame_vectors", pa.list_(tables.FLOATS)),
    ]
)
VECTORS = pa.schema(list(tables.CANONICAL["content"].items()))
_SCHEMAS = {"content": VECTORS, "frames": FRAMES}
_LATEST = "latest.json"

Rows = dict[str, list[dict[str, Any]]]


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes `content/`, `frames/` and `summary.json`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: `examples`.
            output_dict: `content`.
            exec_properties: `push_destination`, `clip_shape` and `store`.

        Raises:
            ContractError: The classifier being served reads clips of another shape.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_uri(input_dict["examples"])
        content = artifact_utils.get_single_instance(output_dict["content"])
        destination, store = exec_properties["push_destination"], exec_properties["store"]
        version = served_version(destination)
        for table, schema in _SCHEMAS.items():
            tables.write_table(f"{content.uri}/{table}", "none", schema.empty_table())  # where there is no clip at all
        if version:
            _check_shape(f"{destination}/{version}", exec_properties["clip_shape"])
            made_by.write(content.uri, _identity(f"{destination}/{version}").hex())
            embed = _Embed(f"{destination}/{version}", _last(store), content.uri)
            with self._make_beam_pipeline() as pipeline:
                build(pipeline, sorted(tf.io.gfile.glob(f"{examples}/Split-*/*")), embed, content.uri)
        else:
            logging.warning("no classifier is served in %s: all content vectors are missing", destination)
            _write_json({}, f"{content.uri}/{SUMMARY_FILE}")
        counts = read_summary(content.uri)
        content.set_int_custom_property("rows", sum(counts.values()))
        for name in ("embedded", "reused"):
            content.set_int_custom_property(name, counts.get(name, 0))
        files.make_folder(store)
        _write_json({"uri": content.uri}, f"{store}/{_LATEST}")


def read_summary(uri: str) -> dict[str, int]:
    """How many videos an execution `embedded`, and how many vectors of the last one it `reused`."""
    with tf.io.gfile.GFile(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def build(pipeline: beam.Pipeline, paths: list[str], embed: _Embed, uri: str) -> None:
    """Add the whole graph to a pipeline."""
    (
        pipeline
        | "Files" >> beam.Create(paths)
        | "Spread" >> beam.Reshuffle()
        | "Embed" >> beam.ParDo(embed)
        | "Count" >> beam.CombineGlobally(partitions.total)
        | "Summarise" >> beam.Map(_write_json, f"{uri}/{SUMMARY_FILE}")
    )


class _Embed(beam.DoFn):
    """Writes the vectors of the clips of a file, and yields how many were made and how many were there already.

    Args:
        model: Folder of the SavedModel.
        last: Folder of the last execution's vectors; "" if there is none.
        uri: Folder to write to.
    """

    def __init__(self, model: str, last: str, uri: str) -> None:
        self._path, self._last, self._uri = model, last, uri
        self._identity = _identity(model)
        self._shared = Shared()

    def setup(self) -> None:
        self._model = self._shared.acquire(lambda: tf.saved_model.load(self._path))

    def process(self, path: str) -> Iterator[dict[str, int]]:
        known = _known(self._last) if self._last else {}
        rows: Rows = {table: [] for table in _SCHEMAS}
        wanted: list[tuple[str, str]] = []
        waiting: list[tuple[str, bytes]] = []
        for record in tf.data.TFRecordDataset(path, "GZIP").as_numpy_iterator():
            fingerprint = hashlib.sha256(self._identity + _canonical(record)).hexdigest()
            if fingerprint in known:
                wanted.append((known[fingerprint], fingerprint))
                continue
            waiting.append((fingerprint, record))
            if len(waiting) == BATCH:
                self._add(rows, waiting)
                waiting = []
        self._add(rows, waiting)
        made = {table: pa.Table.from_pylist(rows[table], schema) for table, schema in _SCHEMAS.items()}
        found = _reused(self._last, wanted)
        part = hashlib.sha256(path.removeprefix(path.rpartition("/Split-")[0]).encode()).hexdigest()[:16]
        for table in _SCHEMAS:
            tables.write_table(f"{self._uri}/{table}", part, pa.concat_tables([made[table], *found[table]]))
        yield {"embedded": len(rows["content"]), "reused": len(wanted)}

    def _add(self, rows: Rows, clips_of: list[tuple[str, bytes]]) -> None:
        """The rows of a batch of clips."""
        if not clips_of:
            return
        answer = self._model.signatures["embed"](examples=tf.constant([record for _, record in clips_of]))
        values = {name: value.numpy() for name, value in answer.items()}
        for index, (fingerprint, _) in enumerate(clips_of):
            video = values[clips.VIDEO_ID][index].decode()
            vectors = {name: values[name.removesuffix("_vector")][index] for name in CONTENT}
            present = {name: vector if vector.any() else None for name, vector in vectors.items()}
            rows["content"].append({"video_id": video, "fingerprint": fingerprint, **present})
            frames = {name: values[name][index] for name in ("frame_times", "frame_attention")}
            rows["frames"].append({"video_id": video, **frames, "frame_vectors": list(values["frame_vectors"][index])})


def _canonical(record: bytes) -> bytes:
    """The record with its features in order: as they were written, their order is a matter of chance."""
    return bytes(tf.train.Example.FromString(record).SerializeToString(deterministic=True))


@lru_cache(maxsize=2)
def _known(last: str) -> dict[str, str]:
    """By fingerprint, the part of the last execution that holds its vectors."""
    parts = [name.removesuffix(".parquet") for name in files.names(f"{last}/content")]
    return {
        fingerprint: part
        for part in parts
        for fingerprint in _read(f"{last}/content", part, ["fingerprint"])["fingerprint"].to_pylist()
    }


def _reused(last: str, wanted: Iterable[tuple[str, str]]) -> dict[str, list[pa.Table]]:
    """The rows of the last execution with the wanted (part, fingerprint), by table."""
    by_part: dict[str, list[str]] = {}
    for part, fingerprint in wanted:
        by_part.setdefault(part, []).append(fingerprint)
    found: dict[str, list[pa.Table]] = {table: [] for table in _SCHEMAS}
    for part, fingerprints in by_part.items():
        vectors, frames = (_read(f"{last}/{table}", part) for table in _SCHEMAS)
        kept = vectors.filter(pc.is_in(vectors["fingerprint"], value_set=pa.array(fingerprints)))
        found["content"].append(kept)
        of_them = pc.is_in(frames["video_id"], value_set=kept["video_id"].combine_chunks())
        found["frames"].append(frames.filter(of_them))
    return found


def _read(folder: str, part: str, columns: list[str] | None = None) -> pa.Table:
    with files.reading(f"{folder}/{part}.parquet") as file:
        return pq.read_table(file, columns=columns)


def _check_shape(model: str, shape: str) -> None:
    served = clip_shape(model)
    if served != shape:
        raise ContractError(
            f"{model}: expected clips of the shape {served or 'that it does not tell'}, got {shape}: set `clips:` "
            "back, or lower the gates that refused a classifier for the new ones"
        )


def _identity(model: str) -> bytes:
    """What a SavedModel is known by: the bytes of its graph, variables and assets, whatever version they came as."""
    digest = hashlib.sha256()
    for pattern in ("saved_model.pb", "variables/*", "assets/*"):
        for path in sorted(tf.io.gfile.glob(f"{model}/{pattern}")):
            digest.update(f"{files.identity(path)}\n".encode())
    return digest.digest()


def _last(store: str) -> str:
    """Where the last execution that ended left its vectors; "" if there is none."""
    if not files.is_file(f"{store}/{_LATEST}"):
        return ""
    with files.reading(f"{store}/{_LATEST}") as file:
        uri = str(json.loads(file.read())["uri"])
    return uri if files.is_folder(f"{uri}/content") else ""


def _write_json(content: Any, path: str) -> None:
    with files.writing(path) as file:
        file.write(json.dumps(content).encode())
