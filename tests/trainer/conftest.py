"""A tiny world with every kind of feature, transformed once a session by the product's own preprocessing."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam

from transform.contract import Contract, Kind, Role, parse
from transform.impressions import preprocessing_fn, vocabulary_sizes
from transform.schema import raw_schema

CONTRACT = parse("""\
name: tiny
vocabularies:
  user_id: {}
  video_id: {}
  author_id: {}
  word: {}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: followed, kind: ids, role: user, vocabulary: author_id, max_length: 3, source: users.followed_ids}
  - {name: history, kind: history, role: user, vocabulary: video_id, max_length: 4, source: derived.user_history}
  - {name: events, kind: number, role: user, scale: log, default: 0, source: derived.user_events}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: author, kind: id, role: video, vocabulary: author_id, source: videos.author_id}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 3, source: videos.title}
  - {name: look, kind: vector, role: video, dimension: 3, source: videos.look, optional: true}
  - {name: sound, kind: vector, role: video, dimension: 2, source: videos.sound, optional: true}
  - {name: clicked, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}
  - {name: novelty, kind: id, role: slice, source: derived.user_novelty}
""")

Row = dict[str, Any]


def raw_row(index: int) -> Row:
    """An impression; every third user likes what the others do not: an interaction of user and video."""
    user, video = index % 6, (index // 6) % 5
    return {
        "user_id": f"u{user}",
        "followed": [f"a{user % 2}", f"a{user % 3}"][: user % 3],
        "history": [f"v{(video + 1) % 5}", f"v{(video + 2) % 5}"][: index % 3],
        "events": float(index % 7),
        "video_id": f"v{video}",
        "author": f"a{video % 3}",
        "title": f"clip {video} of many",
        "look": [1.0, float(video), 0.0] if video else [0.0, 0.0, 0.0],
        "sound": [float(user), 1.0] if video != 1 else [0.0, 0.0],
        "clicked": float((user % 2) ^ (video % 2)),
        "novelty": "known",
    }


@dataclass(frozen=True)
class World:
    """What the pipeline hands to the trainer."""

    contract: Contract
    raw: list[Row]
    transformed: dict[str, np.ndarray]
    output: tft.TFTransformOutput
    fn_args: Any

    @property
    def sizes(self) -> dict[str, int]:
        return vocabulary_sizes(self.contract, self.output)

    def example(self, row: Row) -> bytes:
        """A request with the features of `row` that the contract knows as inputs."""
        return raw_example(self.contract, row)

    def write_transformed(self, chosen: np.ndarray, path: Path) -> None:
        """Those rows as Transform would write them."""
        _write({name: values[chosen] for name, values in self.transformed.items()}, path)

    @property
    def inputs(self) -> dict[str, tf.Tensor]:
        return {f.name: tf.constant(self.transformed[f.name]) for f in self.contract.inputs}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("transformed")
    raw = [raw_row(index) for index in range(240)]

    def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
        return preprocessing_fn(inputs, {"contract": CONTRACT.to_json()})

    metadata = tft.DatasetMetadata(raw_schema(CONTRACT))
    with tft_beam.Context(temp_dir=str(folder / "temporary")):
        (rows, transformed_metadata), transform_fn = (raw, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocess)
        transform_fn | tft_beam.WriteTransformFn(str(folder))
        transformed_metadata | tft_beam.WriteMetadata(str(folder / "transformed_metadata"), None)
    columns = {name: _narrow(np.array([row[name] for row in rows])) for name in rows[0]}
    _write(columns, folder / "train" / "examples.gz")
    _write({name: values[:60] for name, values in columns.items()}, folder / "valid" / "examples.gz")
    with tf.io.TFRecordWriter(str(folder / "raw.gz"), "GZIP") as writer:
        for row in raw[:60]:
            writer.write(raw_example(CONTRACT, row))
    about_videos = [f.name for f in CONTRACT.select(roles=(Role.VIDEO,))]
    with tf.io.TFRecordWriter(str(folder / "catalogue.gz"), "GZIP") as writer:
        for row in {row["video_id"]: row for row in raw}.values():
            writer.write(raw_example(CONTRACT, {name: row[name] for name in about_videos}))
    fn_args = SimpleNamespace(
        catalogue_files=[str(folder / "catalogue*")],
        raw_files=[str(folder / "raw*")],
        train_files=[str(folder / "train" / "*")],
        eval_files=[str(folder / "valid" / "*")],
        transform_graph_path=str(folder),
    )
    return World(CONTRACT, raw, columns, tft.TFTransformOutput(str(folder)), fn_args)


def raw_example(contract: Contract, row: Row) -> bytes:
    feature = {f.name: _encode(f.kind, row[f.name]) for f in contract.inputs if f.name in row}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True))


def _encode(kind: Kind, value: Any) -> tf.train.Feature:
    values = value if isinstance(value, list) else [value]
    if kind in (Kind.NUMBER, Kind.VECTOR):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))


def _write(columns: dict[str, np.ndarray], path: Path) -> None:
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for index in range(len(columns["clicked"])):
            feature = {name: _feature(values[index]) for name, values in columns.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _feature(value: np.ndarray) -> tf.train.Feature:
    if value.dtype == np.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))
    return tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(value)))


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float64 else values
