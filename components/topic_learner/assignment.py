"""Which topics a video has: for videos that topics are learned from, and for those that came later.

N videos, K topics, T tags, D width of a topic vector, W of a tag's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the model's ops)
from scipy import sparse

from components.topic_learner import topics
from components.topic_learner.settings import TopicSettings
from components.topic_learner.tag_graph import Floats, incidence, video_tag_vectors
from components.world import files, tables
from transform import clips, videos
from transform.contract import ContractError

BATCH = 256
VIDEO_TOPICS, TOPICS_FILE = "video_topics", "topics.json"
VIDEOS = pa.schema([("video_id", pa.string()), ("title", pa.string()), ("tags", tables.STRINGS), ("z", tables.FLOATS)])
ASSIGNED = pa.schema(list(tables.CANONICAL[VIDEO_TOPICS].items()))
_TAGS = pa.schema([("tag", pa.string()), ("vector", tables.FLOATS)])
_CENTRES, _REPRESENTATION, _TAG_VECTORS = "centres.npy", "representation", "tag_vectors"


@dataclass(frozen=True)
class LearnedTopics:
    """What topics of any video are told by.

    Attributes:
        representation: Folder of the SavedModel that embeds cover and title; "": topics are of tags alone.
        tags: [T], those that have a vector.
        tag_vectors: [T, W].
        ids: [K].
        centres: [K, D], rows of length 1.
    """

    representation: str
    tags: list[str]
    tag_vectors: Floats
    ids: list[str]
    centres: Floats

    @classmethod
    def read(cls, uri: str, settings: TopicSettings) -> LearnedTopics:
        """What TopicLearner wrote.

        Raises:
            ContractError: It is not there as a whole, or the representation is gone.
        """
        needed = (TOPICS_FILE, _CENTRES, _REPRESENTATION, f"{_TAG_VECTORS}.parquet")
        missing = [name for name in needed if not files.is_file(f"{uri}/{name}")]
        if missing:
            raise ContractError(f"{uri}: expected topics as TopicLearner writes them, got no {missing[0]}: run again")
        ids = [topic["id"] for topic in json.loads(_read(f"{uri}/{TOPICS_FILE}"))]
        with files.reading(f"{uri}/{_CENTRES}") as file:
            centres = np.load(file)
        rows = tables.read_table(uri, _TAG_VECTORS, _TAGS.names).to_pydict()
        vectors = np.reshape(np.array(rows["vector"], np.float32), (len(rows["tag"]), settings.tag_width))
        representation = _read(f"{uri}/{_REPRESENTATION}").decode()
        if representation and not files.is_file(f"{representation}/saved_model.pb"):
            raise ContractError(
                f"{representation}: expected the topic representation that topics in {uri} were learned with, and it "
                "is gone: run again"
            )
        return cls(representation, rows["tag"], vectors, ids, centres)

    def write(self, uri: str) -> None:
        """For `read`, but for the ids, which are in the descriptions of topics."""
        with files.writing(f"{uri}/{_CENTRES}") as file:
            np.save(file, self.centres)
        with files.writing(f"{uri}/{_REPRESENTATION}") as file:
            file.write(self.representation.encode())
        tables.write_table(uri, _TAG_VECTORS, pa.table([self.tags, list(self.tag_vectors)], _TAGS))

    def assign(
        self, video_ids: Sequence[str], vectors: Floats, settings: TopicSettings
    ) -> tuple[pa.Table, sparse.csr_matrix, npt.NDArray[np.bool_]]:
        """The table `video_topics` of videos [N] by their topic vectors [N, D], and what `topics.assign` returns."""
        members, passed = topics.assign(vectors, self.centres, settings)
        ends = pa.array(members.indptr, pa.int32())
        assigned = pa.ListArray.from_arrays(ends, pa.array(self.ids).take(pa.array(members.indices)))
        cosines = pa.ListArray.from_arrays(ends, pa.array(members.data, pa.float32()))
        return pa.table([pa.array(video_ids, pa.string()), assigned, cosines], ASSIGNED), members, passed

    def assign_later(self, records: Iterable[bytes], settings: TopicSettings) -> pa.Table:
        """The table `video_topics` of videos that topics were not learned from.

        Args:
            records: Serialized examples of `transform.videos`. A tag that has no vector counts for nothing.
            settings: By which the topics were learned.
        """
        model = tf.saved_model.load(self.representation) if self.representation else None
        width = self.centres.shape[1] - self.tag_vectors.shape[1]
        parts = [ASSIGNED.empty_table()]
        for batch in _batches(records):
            rows = described(tf.constant(batch), model)
            vectors = vectors_of(rows, self.tags, self.tag_vectors, width)
            parts.append(self.assign(rows["video_id"].to_pylist(), vectors, settings)[0])
        return pa.concat_tables(parts)


def described(records: tf.Tensor, model: Any) -> pa.Table:
    """Title, tags and representation of videos, in the columns of `VIDEOS`.

    Args:
        records: String [N], serialized examples of `transform.videos`.
        model: A topic representation, loaded; None: nothing is known of cover and title.
    """
    raw = tf.io.parse_example(records, {n: kind for n, kind in videos.parse_spec().items() if n != videos.COVER})
    texts = [[_text(value) for value in raw[name].numpy()] for name in (clips.VIDEO_ID, clips.TITLE)]
    tags = [[_text(tag) for tag in row] for row in raw[videos.TAGS].to_list()]
    z: list[Any] = [None] * len(tags)
    if model is not None:
        z = [row if row.any() else None for row in model.signatures["embed"](examples=records)["z"].numpy()]
    return pa.table(
        [pa.array(column, kind) for column, kind in zip([*texts, tags, z], VIDEOS.types, strict=True)], VIDEOS
    )


def vectors_of(rows: pa.Table, tags: Sequence[str], tag_vectors: Floats, width: int) -> Floats:
    """Topic vectors of videos: what clusters are made of, and what is compared with their centres.

    Args:
        rows: N of them, in the columns of `VIDEOS`.
        tags: [T].
        tag_vectors: [T, W].
        width: Of a representation; 0 where there is none.

    Returns:
        [N, width + W]; zeros where a video has neither cover nor title nor any of the tags.
    """
    z = np.zeros((len(rows), width), np.float32)
    for row, value in zip(z, rows["z"].to_pylist(), strict=True):
        if value is not None:
            row[:] = value
    return topics.topic_vectors(z, video_tag_vectors(incidence(rows["tags"].to_pylist(), tags), tag_vectors))


def _batches(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(records)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _read(path: str) -> bytes:
    with files.reading(path) as file:
        return bytes(file.read())
