"""Counts exposures and clicks in Beam, and joins videos with their topics.

interactions --sums of a shard, by hash of video--> joined --> a part of `videos/` a partition, counts
videos, topics -----------------------------------/
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.impression_example_gen import impressions, partitions
from components.impression_example_gen.impressions import OUTCOMES
from components.world import files, tables
from serving.topic_queues.queues import open_store
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Snapshot
from transform.contract import Contract

SNAPSHOT_FILE = "snapshot.json"
VIDEOS = pa.schema(
    [("video_id", pa.string()), ("topics", tables.STRINGS), ("shown", pa.int64()), ("clicked", pa.int64())]
)
_LAST = "last event"  # of the tallies the one that is not a number of rows
_TALLY = "tally"

Keyed = tuple[int, bytes]
Tally = dict[str, int]


@dataclass(frozen=True)
class Job:
    """What every worker knows.

    Attributes:
        contract_json: The features, of which the label says what a click is.
        columns: Which columns of interactions to read.
        by_category: Whether a video's primary category is its topic.
        partitions: Into how many parts videos are divided.
        uri: The folder of the snapshot.
    """

    contract_json: str
    columns: list[str]
    by_category: bool
    partitions: int
    uri: str


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes `videos/` and `snapshot.json`, and has the store start from them, if one is given."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline.

        Args:
            input_dict: `topics`, optionally.
            output_dict: `snapshot`.
            exec_properties: `world`, `contract_json` and `queues_json`.

        Raises:
            ContractError: A table or column is missing, or the store does not answer.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        world, contract_json = exec_properties["world"], exec_properties["contract_json"]
        snapshot = artifact_utils.get_single_instance(output_dict["snapshot"])
        shards = {table: tables.shards(world, table) for table in ("interactions", "videos")}
        if input_dict.get("topics"):
            shards["video_topics"] = tables.shards(artifact_utils.get_single_uri(input_dict["topics"]), "video_topics")
        contract = _contract(contract_json)
        used = {*tables.KEYS["interactions"], contract.label.column, contract.weight.column if contract.weight else ""}
        columns = [name for name in impressions.present_columns(world, "interactions", contract) if name in used]
        by_category, parts = "video_topics" not in shards, len(shards["videos"])
        job = Job(contract_json, columns, by_category, parts, snapshot.uri)
        tables.write_table(f"{job.uri}/videos", "none", VIDEOS.empty_table())  # where there is no video at all
        with self._make_beam_pipeline() as pipeline:
            build(pipeline, shards, job)
        _describe(snapshot, read_summary(job.uri), world)
        settings = QueueSettings.model_validate_json(exec_properties["queues_json"])
        if settings.store:
            with closing(open_store(settings.store, settings)) as store:
                store.replace(Snapshot.read(job.uri))  # what was recorded after its instant stays


def read_summary(uri: str) -> dict[str, Any]:
    """What an execution wrote: `before`, the second after the last event, and `counts`.

    Counts are those of `videos`, of videos `without a topic`, of the exposures (`shown`) and clicks (`clicked`) of
    videos that are there, and of interactions left out, by reason.
    """
    with files.reading(f"{uri}/{SNAPSHOT_FILE}") as file:
        return dict(json.loads(file.read()))


def build(pipeline: beam.Pipeline, shards: dict[str, list[tables.Shard]], job: Job) -> None:
    """Add the whole graph to a pipeline."""
    read = {"interactions": _read_events, "videos": _read_videos, "video_topics": _read_topics}
    found = {
        table: pipeline
        | f"Shards of {table}" >> beam.Create(parts)
        | f"Spread {table}" >> beam.Reshuffle()
        | f"Read {table}" >> beam.FlatMap(read[table], job).with_outputs(_TALLY, main="rows")
        for table, parts in shards.items()
    }
    written = (
        {table: outputs.rows for table, outputs in found.items()}
        | "By video" >> beam.CoGroupByKey()
        | "Write" >> beam.Map(_write, job)
    )
    (
        [written, *(outputs[_TALLY] for outputs in found.values())]
        | "All counts" >> beam.Flatten()
        | "Count" >> beam.CombineGlobally(_total)
        | "Summarise" >> beam.Map(_write_summary, job)
    )


@lru_cache(maxsize=4)
def _contract(text: str) -> Contract:
    return Contract.from_json(text)


def _read_events(shard: tables.Shard, job: Job) -> Iterator[Keyed | beam.pvalue.TaggedOutput]:
    """Exposures and clicks by video, and a tally of the rows that are none."""
    contract = _contract(job.contract_json)
    rows = tables.read_shard(shard, "interactions", job.columns, contract)
    events = impressions.prepare(rows, contract, impressions.Splits("time", 1, 0, 0))
    refused = events.filter(pc.invert(events["counted"]))["outcome"].to_pylist()
    tally = Counter(OUTCOMES[code] for code in refused)
    events = events.filter(events["counted"])
    tally[_LAST] = pc.max(events["at"]).as_py() or 0
    yield beam.pvalue.TaggedOutput(_TALLY, tally)
    clicked = pc.cast(pc.equal(events["label"], 1), pa.int64())
    each = pa.table({"video_id": events["video_id"], "shown": np.ones(len(events), np.int64), "clicked": clicked})
    yield from partitions.split(_sums(each), "video_id", job.partitions)


def _sums(counts: pa.Table) -> pa.Table:
    summed = counts.group_by("video_id").aggregate([("shown", "sum"), ("clicked", "sum")])
    return pa.table({"video_id": summed["video_id"], "shown": summed["shown_sum"], "clicked": summed["clicked_sum"]})


def _read_videos(shard: tables.Shard, job: Job) -> Iterator[Keyed]:
    """Ids of videos, with the category as topic where no others are given."""
    rows = tables.read_shard(shard, "videos")
    by_category = job.by_category and "primary_category" in rows.column_names
    categories = rows["primary_category"].to_pylist() if by_category else [None] * len(rows)
    topics = pa.array([[name] if name else [] for name in categories], tables.STRINGS)
    yield from partitions.split(pa.table({"video_id": rows["video_id"], "topics": topics}), "video_id", job.partitions)


def _read_topics(shard: tables.Shard, job: Job) -> Iterator[Keyed]:
    yield from partitions.split(
        tables.read_shard(shard, "video_topics", ["video_id", "topics"]), "video_id", job.partitions
    )


def _write(element: tuple[int, dict[str, Iterable[bytes]]], job: Job) -> Tally:
    """Write the videos of a partition with topics and counts, and count them."""
    partition, groups = element
    videos = partitions.from_bytes(groups["videos"])
    counts = partitions.from_bytes(groups["interactions"])
    total = 0 if counts is None else pc.sum(counts["shown"]).as_py()
    if videos is None:
        return {"unknown video": total}
    impressions.refuse_unclear_ids(videos, "video_id", "videos")
    learned = videos if job.by_category else partitions.from_bytes(groups["video_topics"])
    summed = None if counts is None else _sums(counts)
    topics = _beside(videos, learned, "topics", tables.STRINGS)
    numbers = [pc.fill_null(_beside(videos, summed, name, pa.int64()), 0) for name in ("shown", "clicked")]
    done = pa.table([videos["video_id"], topics, *numbers], schema=VIDEOS)
    tables.write_table(f"{job.uri}/videos", f"part-{partition:05d}-of-{job.partitions:05d}", done)
    shown, clicked = (pc.sum(done[name]).as_py() for name in ("shown", "clicked"))
    bare = pc.fill_null(pc.equal(pc.list_value_length(done["topics"]), 0), True)
    return {
        "videos": len(done),
        "without a topic": pc.sum(bare).as_py(),
        "shown": shown,
        "clicked": clicked,
        "unknown video": total - shown,
    }


def _beside(videos: pa.Table, others: pa.Table | None, name: str, kind: pa.DataType) -> pa.Array:
    """The others' column in the rows of the videos, null where they have no such video."""
    if others is None:
        return pa.nulls(len(videos), kind)
    where = pc.index_in(videos["video_id"], value_set=partitions.single_array(others["video_id"]))
    return partitions.single_array(others[name]).take(partitions.single_array(where))


def _total(tallies: Iterable[Tally]) -> Tally:
    total: Counter[str] = Counter()
    last = 0
    for tally in tallies:
        last = max(last, tally.get(_LAST, 0))
        total.update({name: number for name, number in tally.items() if name != _LAST})
    return {**total, _LAST: last}


def _write_summary(total: Tally, job: Job) -> None:
    """Last of all: without it there is no snapshot."""
    counts = {name: number for name, number in sorted(total.items()) if name != _LAST}
    with files.writing(f"{job.uri}/{SNAPSHOT_FILE}") as file:
        file.write(json.dumps({"before": total[_LAST] + 1, "counts": counts}, indent=1).encode())


def _describe(snapshot: types.Artifact, summary: dict[str, Any], world: str) -> None:
    counts = summary["counts"]
    rejected = sum(counts.get(name, 0) for name in OUTCOMES)
    for name in ("videos", "shown", "clicked"):
        snapshot.set_int_custom_property(name, counts.get(name, 0))
    snapshot.set_int_custom_property("rejected", rejected)
    if rejected:
        logging.warning("%d interactions of %s count for no video: %s", rejected, world, counts)
