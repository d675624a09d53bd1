"""Embeds videos and counts pairs of tags in Beam; clusters in the driver.

    files of videos --> representation, title and tags, a part of `videos/` a file
                    --> pairs of tags, added up

The driver holds the vectors of all videos (about half a kilobyte each) while it clusters.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from apache_beam.utils.shared import Shared
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.serving_baseline.executor import clip_shape, served_version
from components.topic_learner import topics
from components.topic_learner.assignment import (
    BATCH,
    TOPICS_FILE,
    VIDEO_TOPICS,
    VIDEOS,
    LearnedTopics,
    described,
    vectors_of,
)
from components.topic_learner.settings import TopicSettings
from components.topic_learner.tag_graph import Pair, TagGraph, incidence, tag_pairs, tag_vectors
from components.world import files, tables
from transform import videos
from transform.contract import ContractError

SUMMARY_FILE = "summary.json"
PAIRS = pa.schema([("tag", pa.string()), ("other", pa.string()), ("videos", pa.int64())])
_LATEST = "latest.json"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the folder that `components.topic_learner.artifact.Topics` describes."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the Beam pipeline, and cluster.

        Args:
            input_dict: `examples`.
            output_dict: `topics`.
            exec_properties: `push_destination`, `store` and `settings_json`.

        Raises:
            ContractError: No video has anything that topics could be learned from, or the served representation reads
                covers of another size.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_uri(input_dict["examples"])
        artifact = artifact_utils.get_single_instance(output_dict["topics"])
        destination, store = exec_properties["push_destination"], exec_properties["store"]
        settings = TopicSettings.model_validate_json(exec_properties["settings_json"])
        version = served_version(destination)
        shape = clip_shape(f"{destination}/{version}") if version else ""
        wanted = videos.shape(settings.cover_size)
        if shape not in ("", wanted):
            raise ContractError(
                f"{destination}/{version}: expected covers of the shape {shape}, got {wanted}: "
                "set `topics.cover_size` back, or lower the gates that refused a representation for the new ones"
            )
        if not version:
            logging.warning("no topic representation is served in %s: topics are of tags alone", destination)
        model = f"{destination}/{version}" if version else ""
        paths = sorted(tf.io.gfile.glob(f"{examples}/Split-*/*"))
        files.make_folder(f"{artifact.uri}/videos")
        with self._make_beam_pipeline() as pipeline:
            build(pipeline, paths, model, artifact.uri)
        summary = learn(artifact.uri, settings, model, *_last(store))
        for name in ("videos", "topics"):
            artifact.set_int_custom_property(name, summary[name])
        for name in ("mean_topics", "unassigned", "without_topic"):
            artifact.set_float_custom_property(name, summary[name])
        files.make_folder(store)
        _write(f"{store}/{_LATEST}", json.dumps({"uri": artifact.uri, "next_topic": summary["next_topic"]}))


def read_summary(uri: str) -> dict[str, Any]:
    """What `topics.report` says of an execution, how many tags have a vector, ids that ended, and the next number."""
    with files.reading(f"{uri}/{SUMMARY_FILE}") as file:
        return dict(json.loads(file.read()))


def build(pipeline: beam.Pipeline, paths: list[str], model: str, uri: str) -> None:
    """Add the whole graph to a pipeline; `model` is the folder of a SavedModel, or ""."""
    (
        pipeline
        | "Files" >> beam.Create(paths)
        | "Spread" >> beam.Reshuffle()
        | "Embed" >> beam.ParDo(_Embed(model, uri)).with_output_types(tuple[Pair, int])
        | "Add" >> beam.CombinePerKey(sum)
        | "Gather" >> beam.combiners.ToList()
        | "Write" >> beam.Map(_write_pairs, uri)
    )


class _Embed(beam.DoFn):
    """Writes the rows of a file of videos, and yields its pairs of tags with their number of videos."""

    def __init__(self, model: str, uri: str) -> None:
        self._path, self._uri, self._shared = model, uri, Shared()

    def setup(self) -> None:
        self._model = self._shared.acquire(lambda: tf.saved_model.load(self._path)) if self._path else None

    def process(self, path: str) -> Iterator[tuple[Pair, int]]:
        counts: Counter[Pair] = Counter()
        parts = []
        for batch in tf.data.TFRecordDataset(path, "GZIP").batch(BATCH):
            parts.append(described(batch, self._model))
            for tags in parts[-1]["tags"].to_pylist():
                counts.update(tag_pairs(tags))
        part = hashlib.sha256(path.removeprefix(path.rpartition("/Split-")[0]).encode()).hexdigest()[:16]
        tables.write_table(f"{self._uri}/videos", part, pa.concat_tables([VIDEOS.empty_table(), *parts]))
        yield from counts.items()


def learn(uri: str, settings: TopicSettings, model: str, last: str, following: int) -> dict[str, Any]:
    """Cluster what Beam wrote to `uri`, and write the topics beside it.

    Args:
        uri: Folder of the artifact.
        settings: How.
        model: Folder of the representation that Beam used, or "".
        last: Folder of the last execution's topics; "" if there is none.
        following: Number of the first topic that none has had yet.

    Returns:
        What `read_summary` gives.

    Raises:
        ContractError: No video has a vector.
    """
    rows = tables.read_table(uri, "videos", VIDEOS.names).sort_by("video_id")
    pairs = tables.read_table(uri, "tag_pairs", PAIRS.names).to_pydict()
    graph = TagGraph.of(dict(zip(zip(pairs["tag"], pairs["other"], strict=True), pairs["videos"], strict=True)))
    of_tags = tag_vectors(graph, settings.tag_width, settings.walks, settings.walk_length, settings.seed)
    ids, titles, tags = (rows[name].to_pylist() for name in ("video_id", "title", "tags"))
    width = _width(rows["z"])
    vectors = vectors_of(rows, graph.tags, of_tags, width)
    there = vectors.any(axis=1)
    if not there.any():
        raise ContractError(
            f"expected videos with a cover, a title or tags, got {len(ids)} videos without a vector: serve a topic "
            "representation, or fill tags of the table videos"
        )
    before = _last_topics(last) if last else {}
    kept_ids, kept = topics.places(vectors[there], [before.get(ids[i]) for i in np.flatnonzero(there)])
    centres = topics.cluster(vectors[there], settings, kept)
    names, following = topics.stable_ids(centres, kept_ids, kept, following, settings.threshold)
    order = np.argsort(names)
    model = model if width else ""  # no video had a cover or a title that it could read
    learned = LearnedTopics(model, graph.tags, of_tags, [names[i] for i in order], centres[order])
    assigned, members, passed = learned.assign(ids, vectors, settings)
    known = sorted({tag for of_one in tags for tag in of_one})
    descriptions = topics.describe(learned.ids, members, incidence(tags, known), known, titles)
    ended = sorted(set(before.values()) - set(names))
    summary = {**topics.report(members, passed), "tags": len(graph.tags), "ended": ended, "next_topic": following}
    tables.write_table(uri, VIDEO_TOPICS, assigned)
    learned.write(uri)
    _write(f"{uri}/{TOPICS_FILE}", json.dumps(descriptions, ensure_ascii=False, indent=1))
    _write(f"{uri}/{SUMMARY_FILE}", json.dumps(summary, indent=1))
    known_by = learned.centres.tobytes() + json.dumps(learned.ids).encode()
    _write(f"{uri}/version", hashlib.sha256(known_by).hexdigest()[:16])
    return summary


def _width(column: pa.ChunkedArray) -> int:
    """Of the vectors of a list column; 0 where all are null."""
    return max((len(value) for value in column.to_pylist() if value is not None), default=0)


def _write_pairs(pairs: list[tuple[Pair, int]], uri: str) -> None:
    ordered = sorted(pairs)
    rows = [{"tag": tag, "other": other, "videos": number} for (tag, other), number in ordered]
    tables.write_table(uri, "tag_pairs", pa.Table.from_pylist(rows, PAIRS))


def _write(path: str, text: str) -> None:
    with files.writing(path) as file:
        file.write(text.encode())


def _last(store: str) -> tuple[str, int]:
    """Where the last execution that ended left its topics ("" if they are not there), and its next topic's number."""
    if not files.is_file(f"{store}/{_LATEST}"):
        return "", 0
    with files.reading(f"{store}/{_LATEST}") as file:
        latest = json.loads(file.read())
    uri, following = str(latest["uri"]), int(latest.get("next_topic", 0))
    if files.is_file(f"{uri}/{VIDEO_TOPICS}.parquet"):
        return uri, max(following, read_summary(uri)["next_topic"])
    logging.warning("the last topics are gone from %s: all topics are new ones, with new ids", uri)
    return "", following


def _last_topics(uri: str) -> dict[str, str]:
    """By video, the best topic of the last execution."""
    with files.reading(f"{uri}/{VIDEO_TOPICS}.parquet") as file:
        rows = pq.read_table(file).to_pydict()
    return {video: found[0] for video, found in zip(rows["video_id"], rows["topics"], strict=True) if found}
