"""Builds impressions in Beam: leak-free, split, as tf.Examples.

    interactions --by hash of video----------> with_videos --by hash of user--> with_users --> TFRecords, rejects
    videos, content vectors, topics --/            |    users, frame feedback/
                                                   catalogue

Elements are Arrow batches, and both joins are keyed, so that no worker holds more than one partition (about
`rows_per_partition` interactions) and the driver holds none. Every file has a name that depends on the partition alone
and appears by renaming, so that a bundle may be run again.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.content_embedder import made_by
from components.impression_example_gen import features, impressions, partitions
from components.impression_example_gen.artifact import CATALOGUE, describe
from components.impression_example_gen.impressions import (
    EARLIER,
    IMPRESSION,
    LATER,
    LEARNED,
    MISSING_KEY,
    NEUTRAL,
    OUTCOMES,
    SPLITS,
    Splits,
)
from components.world import files, tables
from transform.contract import Contract, ContractError, Feature

SUMMARY_FILE = "summary.json"
TIME_BINS = 100_000
ROWS_PER_PARTITION = 100_000
_BYTES_PER_CSV_ROW = 32  # of a table whose rows only reading would count
_PARTIAL = ".partial"  # folder for files being written; not in a split, whose every file TFX reads
_FIRST, _LAST = 0, 1
FEEDBACK = "frame_feedback"

Keyed = tuple[int, bytes]
Counts = dict[str, int]


@dataclass(frozen=True)
class Job:
    """What every worker knows.

    Attributes:
        contract_json: The features.
        splits: How to divide; for "time", without the instants, which are a side input.
        columns: Which columns to read, by table.
        partitions: Into how many parts users and videos are divided.
        uri: The folder of the examples.
    """

    contract_json: str
    splits: Splits
    columns: dict[str, list[str]]
    partitions: int
    uri: str

    @property
    def contract(self) -> Contract:
        """The features."""
        return _contract(self.contract_json)


@lru_cache(maxsize=4)
def _contract(text: str) -> Contract:
    return Contract.from_json(text)


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the splits of `examples`, and beside them `catalogue/`, `summary.json` and `rejected-*.parquet`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: `content`, `topics` and `frames`, each optionally.
            output_dict: `examples`.
            exec_properties: `world`, `contract_json`, `splits_json`, and optionally `rows_per_partition`.

        Raises:
            ContractError: A table or column is missing, the splits are not valid, or a split would be empty.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        world = exec_properties["world"]
        folders = dict.fromkeys(("interactions", "videos", "users"), world)
        contract = Contract.from_json(exec_properties["contract_json"])
        if contract.feedback and tables.is_there(world, FEEDBACK):
            folders[FEEDBACK] = world
        for given, table in LEARNED.items():
            if input_dict.get(given):
                folders[table] = artifact_utils.get_single_uri(input_dict[given])
        shards = {table: tables.shards(folder, table) for table, folder in folders.items()}
        job = _job(folders, shards["interactions"], exec_properties, examples.uri)
        for folder in (CATALOGUE, _PARTIAL, *(_split_folder(split) for split in SPLITS)):
            tf.io.gfile.makedirs(f"{job.uri}/{folder}")
        try:
            with self._make_beam_pipeline() as pipeline:
                build(pipeline, shards, job)
        except Exception as error:
            message = _contract_message(error)
            if message is None:
                raise
            raise ContractError(message) from error
        files.remove_folder(f"{job.uri}/{_PARTIAL}")
        if input_dict.get("content") and contract.needs("content"):
            made_by.write(job.uri, made_by.read(artifact_utils.get_single_uri(input_dict["content"])))
        _describe(examples, read_summary(job.uri), world)


def read_summary(uri: str) -> dict[str, Any]:
    """What an execution counted: `interactions`, `rows` by split, `neutral`, `outside_span`, `rejected` by reason, and
    `splits`."""
    with tf.io.gfile.GFile(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def build(pipeline: beam.Pipeline, shards: dict[str, list[tables.Shard]], job: Job) -> None:
    """Add the whole graph to a pipeline."""
    splits = _splits(pipeline, shards["interactions"], job)
    by_video = (
        pipeline
        | "Interactions" >> beam.Create(shards["interactions"])
        | "Spread interactions" >> beam.Reshuffle()
        | "Prepare" >> beam.FlatMap(_prepare, job, splits).with_output_types(Keyed)
    )
    described = {name: _entities(pipeline, shards[name], name, job) for name in LEARNED.values() if name in shards}
    by_user = (
        {"events": by_video, "others": _entities(pipeline, shards["videos"], "videos", job), **described}
        | "By video" >> beam.CoGroupByKey()
        | "With videos" >> beam.FlatMap(_with_videos, job).with_output_types(Keyed)
    )
    more = {FEEDBACK: _entities(pipeline, shards[FEEDBACK], FEEDBACK, job)} if FEEDBACK in shards else {}
    (
        {"events": by_user, "others": _entities(pipeline, shards["users"], "users", job), **more}
        | "By user" >> beam.CoGroupByKey()
        | "Write" >> beam.Map(_write, job).with_output_types(Counts)
        | "Count" >> beam.CombineGlobally(partitions.total)
        | "Summarise" >> beam.Map(_write_summary, job, splits)
    )


def _splits(pipeline: beam.Pipeline, shards: list[tables.Shard], job: Job) -> Any:
    """The splits with their instants, found with a histogram of times, as a side input."""
    if job.splits.by == "hash":
        return job.splits
    times = pipeline | "Shards of times" >> beam.Create(shards) | "Spread times" >> beam.Reshuffle()
    span = times | "First and last" >> beam.Map(_first_and_last, job) | "Span" >> beam.CombineGlobally(_span)
    bins = times | "Bins" >> beam.Map(_bins, job, beam.pvalue.AsSingleton(span))
    histogram = bins | "Add" >> beam.CombineGlobally(_AddBins())
    cut = histogram | "Cut" >> beam.Map(_cut, job.splits, beam.pvalue.AsSingleton(span))
    return beam.pvalue.AsSingleton(cut)


def _times(shard: tables.Shard, job: Job) -> np.ndarray[Any, Any]:
    times = pc.drop_null(tables.read_shard(shard, "interactions", ["at"])["at"]).to_numpy()
    # One time in milliseconds would make every bin months wide.
    return times[impressions.plausible(times) & job.splits.holds(times)]


def _first_and_last(shard: tables.Shard, job: Job) -> tuple[int, int] | None:
    times = _times(shard, job)
    return (int(times.min()), int(times.max())) if len(times) else None


def _span(spans: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    known = [span for span in spans if span is not None]
    return (min(s[_FIRST] for s in known), max(s[_LAST] for s in known)) if known else None


def _width(span: tuple[int, int]) -> int:
    """Whole seconds, so that the cuts are instants."""
    return (span[_LAST] - span[_FIRST]) // TIME_BINS + 1


def _bins(shard: tables.Shard, job: Job, span: tuple[int, int] | None) -> tuple[Any, Any]:
    times = _times(shard, job) if span else np.zeros(0, np.int64)
    return np.unique((times - span[_FIRST]) // _width(span) if span else times, return_counts=True)


class _AddBins(beam.CombineFn):
    """Adds sparse histograms (bins, counts) into a dense one."""

    def create_accumulator(self) -> Any:
        return np.zeros(0, np.int64)

    def add_input(self, accumulator: Any, element: tuple[Any, Any]) -> Any:
        bins, counts = element
        dense = np.bincount(bins, weights=counts).astype(np.int64) if len(bins) else np.zeros(0, np.int64)
        return self.merge_accumulators([accumulator, dense])

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        parts = list(accumulators)
        total = np.zeros(max(map(len, parts), default=0), np.int64)
        for part in parts:
            total[: len(part)] += part
        return total

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


def _cut(counts: Any, splits: Splits, span: tuple[int, int] | None) -> Splits:
    return splits.cut(span[_FIRST], _width(span), counts) if span else splits


def _prepare(shard: tables.Shard, job: Job, splits: Splits) -> Iterator[Keyed]:
    events = tables.read_shard(shard, "interactions", job.columns["interactions"], job.contract)
    yield from partitions.split(impressions.prepare(events, job.contract, splits), "video_id", job.partitions)


def _entities(pipeline: beam.Pipeline, shards: list[tables.Shard], table: str, job: Job) -> beam.PCollection[Keyed]:
    shards_of = pipeline | f"Shards of {table}" >> beam.Create(shards) | f"Spread {table}" >> beam.Reshuffle()
    return shards_of | f"Read {table}" >> beam.FlatMap(_read_entities, table, job).with_output_types(Keyed)


def _read_entities(shard: tables.Shard, table: str, job: Job) -> Iterator[Keyed]:
    rows = tables.read_shard(shard, table, job.columns[table], job.contract)
    yield from partitions.split(rows, job.columns[table][0], job.partitions)


def _with_videos(element: tuple[int, dict[str, Iterable[bytes]]], job: Job) -> Iterator[Keyed]:
    events, videos = partitions.from_bytes(element[1]["events"]), _others(element, "videos", job)
    described = [_others(element, name, job, name) for name in LEARNED.values() if name in job.columns]
    _write_records(*impressions.catalogue(videos, job.contract, *described), CATALOGUE, element[0], job)
    if events is not None:
        done = impressions.with_videos(events, videos, job.contract, *described)
        yield from partitions.split(done, "user_id", job.partitions)


def _others(element: tuple[int, dict[str, Iterable[bytes]]], table: str, job: Job, tag: str = "others") -> pa.Table:
    """The rows of another table in a partition; one without any has the same columns, so that parts fit together."""
    rows = partitions.from_bytes(element[1][tag])
    if rows is None:
        return impressions.empty(job.columns[table], table, job.contract)
    if table != FEEDBACK:
        impressions.refuse_unclear_ids(rows, job.columns[table][0], table)
    return rows


def _write(element: tuple[int, dict[str, Iterable[bytes]]], job: Job) -> Counts:
    """Write what belongs to the users of a partition, and count it."""
    partition = element[0]
    events, users = partitions.from_bytes(element[1]["events"]), _others(element, "users", job)
    if events is None:
        return {}
    done = impressions.with_users(events, users, job.contract)
    outcome = done["outcome"].to_numpy()
    kept = impressions.shuffle(done.filter(outcome == IMPRESSION))
    if FEEDBACK in job.columns:
        kept = impressions.with_feedback(kept, _others(element, FEEDBACK, job, FEEDBACK))
    split = kept["split"].to_numpy()
    for index, name in enumerate(SPLITS):
        rows, used = kept.filter(split == index), job.contract.features
        _write_records(used, impressions.feature_columns(rows, used), _split_folder(name), partition, job)
    _write_rejected(done.filter(outcome >= MISSING_KEY), partition, job)
    return {
        **{f"split {SPLITS[i]}": int(number) for i, number in enumerate(np.bincount(split, minlength=3))},
        **{OUTCOMES[i]: int(number) for i, number in enumerate(np.bincount(outcome, minlength=len(OUTCOMES)))},
    }


def _write_records(
    used: Sequence[Feature], values: Mapping[str, pa.Array], folder: str, partition: int, job: Job
) -> None:
    """Write the file of a partition in a folder of the artifact, unless there are no rows."""
    batch = features.examples(used, values)
    if batch.num_rows == 0:
        return
    encoder, partial = RecordBatchToExamplesEncoder(), _partial(job)
    options = tf.io.TFRecordOptions("GZIP", compression_level=1)  # five times as fast as the default, files 20% larger
    with tf.io.TFRecordWriter(partial, options) as writer:
        for first in range(0, batch.num_rows, partitions.MAX_ROWS):
            for example in encoder.encode(batch.slice(first, partitions.MAX_ROWS)):
                writer.write(example)
    tf.io.gfile.rename(partial, f"{job.uri}/{folder}/data_tfrecord-{_part(partition, job)}.gz", overwrite=True)


def _write_rejected(rows: pa.Table, partition: int, job: Job) -> None:
    if len(rows) == 0:
        return
    reasons = pa.array(OUTCOMES).take(rows["outcome"].combine_chunks())
    partial = _partial(job)
    with tf.io.gfile.GFile(partial, "wb") as file:
        sink = pa.BufferOutputStream()
        pq.write_table(rows.select(["user_id", "video_id", "at"]).append_column("reason", reasons), sink)
        file.write(sink.getvalue().to_pybytes())
    tf.io.gfile.rename(partial, f"{job.uri}/rejected-{_part(partition, job)}.parquet", overwrite=True)


def _write_summary(counts: Counts, job: Job, splits: Splits) -> None:
    cuts = {"valid_from": splits.before[0], "test_from": splits.before[1]} if splits.by == "time" else {}
    summary = {
        "interactions": sum(counts.get(outcome, 0) for outcome in OUTCOMES),
        "rows": {name: counts.get(f"split {name}", 0) for name in SPLITS},
        "neutral": counts.get(OUTCOMES[NEUTRAL], 0),
        "outside_span": counts.get(OUTCOMES[EARLIER], 0) + counts.get(OUTCOMES[LATER], 0),
        "rejected": {reason: counts[reason] for reason in OUTCOMES[MISSING_KEY:] if counts.get(reason)},
        "splits": {"by": splits.by, **{name: getattr(splits, name) for name in SPLITS}, **cuts},
    }
    partial = _partial(job)
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(json.dumps(summary, indent=1))
    tf.io.gfile.rename(partial, f"{job.uri}/{SUMMARY_FILE}", overwrite=True)


def _job(folders: dict[str, str], shards: list[tables.Shard], exec_properties: dict[str, Any], uri: str) -> Job:
    contract = Contract.from_json(exec_properties["contract_json"])
    rows = sum(
        shard.rows if shard.rows >= 0 else tf.io.gfile.stat(shard.path).length // _BYTES_PER_CSV_ROW for shard in shards
    )
    size = exec_properties.get("rows_per_partition") or ROWS_PER_PARTITION
    columns = {table: impressions.present_columns(folder, table, contract) for table, folder in folders.items()}
    splits = Splits.from_json(exec_properties["splits_json"])
    return Job(exec_properties["contract_json"], splits, columns, max(1, -(-rows // int(size))), uri)


def _describe(examples: types.Artifact, summary: dict[str, Any], world: str) -> None:
    """Put on the artifact what later steps and people ask for."""
    rows = summary["rows"]
    rejected = sum(summary["rejected"].values())
    describe(examples, rows)
    for name, number in {"neutral": summary["neutral"], "rejected": rejected}.items():
        examples.set_int_custom_property(name, number)
    if rejected:
        logging.warning("%d interactions of %s yield no impression: %s", rejected, world, summary["rejected"])
    empty = [split for split in SPLITS if rows[split] == 0]
    if empty:
        raise ContractError(
            f"{world}: expected impressions in every split, got none in {', '.join(empty)} (rows {rows}, neutral "
            f"{summary['neutral']}, outside the span {summary['outside_span']}, rejected {summary['rejected']}): bring "
            "more interactions, change the fractions of `splits` or where `spans` start, or check positive_above and "
            "negative_below of the label"
        )


def _contract_message(error: Exception) -> str | None:
    """What the ContractError that a worker met says, out of the wrapping of whichever runner; None if it is another."""
    _, found, rest = str(error).rpartition("ContractError: ")
    if not found and not isinstance(error, ContractError):
        return None
    return rest.partition(" [while running")[0].partition("\n")[0]


def _split_folder(split: str) -> str:
    return f"Split-{split}"


def _part(partition: int, job: Job) -> str:
    return f"{partition:05d}-of-{job.partitions:05d}"


def _partial(job: Job) -> str:
    return f"{job.uri}/{_PARTIAL}/{uuid.uuid4().hex}"
