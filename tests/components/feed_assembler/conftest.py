"""A small demo world with content vectors, and stages whose scores tell if a single feature is another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from components.feed_assembler.executor import assemble
from components.importers.demo import import_demo
from components.impression_example_gen import asking
from components.world import tables
from transform import contract as contracts
from transform.contract import Contract, Feature, Kind
from transform.feed import FeedSettings
from transform.schema import parse_spec

ANSWERS = 20
EXPORTER = "trainer.feed_export"
PLAIN = FeedSettings(length=6, per_author=None, per_topic=None, fresh_share=0.0)


def tensor_spec(feature: Feature) -> tf.TensorSpec:
    if feature.kind is Kind.VECTOR:
        return tf.TensorSpec([None, feature.dimension], tf.float32, feature.name)
    if feature.kind is Kind.NUMBER:
        return tf.TensorSpec([None], tf.float32, feature.name)
    return tf.TensorSpec([None, None] if feature.kind in (Kind.IDS, Kind.HISTORY) else [None], tf.string, feature.name)


def weighed(name: str, value: tf.Tensor) -> tf.Tensor:
    """A number [B] that changes with whatever changes in a feature; padding and missing values count nothing."""
    if value.dtype == tf.string:
        numbers = tf.cast(tf.strings.to_hash_bucket_fast(value, 1009), tf.float64) / 1009
        numbers *= tf.cast(value != "", tf.float64)
    else:
        numbers = tf.asinh(tf.cast(tf.where(tf.math.is_nan(value), 0.3, value), tf.float64)) / 10
    if len(numbers.shape) == 2:
        numbers = tf.reduce_sum(numbers * tf.cast(1 + tf.range(tf.shape(numbers)[1]) % 7, tf.float64), axis=1)
    return numbers * float(1 + len(name) % 5)


def save(module: tf.Module, specs: dict[str, tf.TensorSpec], answer: Any, contract: Contract, folder: Path) -> str:
    """A SavedModel with the signatures `raw` and `serving_default` of one function of features."""
    known = {f.name: f for f in contract.inputs}
    spec = {name: how for name, how in parse_spec(contract).items() if name in specs}

    def serving_default(examples: tf.Tensor) -> Any:
        parsed = tf.io.parse_example(examples, spec)
        return answer(**{n: tf.sparse.to_dense(v) if isinstance(v, tf.SparseTensor) else v for n, v in parsed.items()})

    raw = tf.function(lambda **features: answer(**features)).get_concrete_function(**specs)
    signatures = {"raw": raw}
    if set(specs) <= set(known):
        examples = tf.TensorSpec([None], tf.string, "examples")
        signatures["serving_default"] = tf.function(serving_default).get_concrete_function(examples)
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return str(folder)


@dataclass(frozen=True)
class Small:
    """A world, its contract and what was learned of its videos; and the stages."""

    world: str
    contract: Contract
    learned: dict[str, str]
    stages: dict[str, str]
    now: int

    def feed(self, folder: Path, settings: FeedSettings = PLAIN, without: tuple[str, ...] = ()) -> Any:
        """The assembled feed, loaded."""
        stages = {name: path for name, path in self.stages.items() if name not in without}
        assemble(EXPORTER, stages, self.world, self.contract, settings, self.learned).save(str(folder))
        return tf.saved_model.load(str(folder))

    def indexed_retriever(self, index: Any, folder: Path) -> str:
        """A retrieval model of a `TopicIndex` in which every user likes the first of two axes."""
        module = tf.Module()
        module.index = index

        def answer(exclude: tf.Tensor, queue: tf.Tensor, **features: tf.Tensor) -> dict[str, tf.Tensor]:
            history = features["watch_history"]
            queries = tf.repeat([[1.0, 0.0]], tf.shape(history)[0], axis=0)
            return index.answer(queries, tf.concat([exclude, history], axis=1), history, queue)

        return save(module, _asked_of_a_retriever(self.contract), answer, self.contract, folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("feed")
    world, contract = str(folder / "world"), contracts.load("microvideo")
    import_demo(None, world, users=12, videos=40, interactions=500, seed=3)
    videos = tables.read_table(world, "videos", ["video_id"])["video_id"].to_pylist()
    random = np.random.default_rng(0)

    def vectors(share: float) -> pa.Array:
        rows = [random.normal(size=16).tolist() if random.random() < share else None for _ in videos]
        return pa.array(rows, pa.list_(pa.float32()))

    names = ("visual_vector", "audio_vector", "text_vector", "fused_vector")
    content = pa.table({"video_id": videos, **{name: vectors(0.8) for name in names}})
    tables.write_table(str(folder / "learned"), "content", content)
    stages = {
        "ranker": ranker(contract, folder / "ranker"),
        "retriever": retriever(contract, videos, folder / "retriever"),
        "chooser": chooser(contract, folder / "chooser"),
    }
    return Small(world, contract, {"content": str(folder / "learned")}, stages, asking.clock(world))


def ranker(contract: Contract, folder: Path) -> str:
    def answer(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        score = tf.add_n([weighed(f.name, features[f.name]) for f in contract.inputs])
        weights = tf.stack([features["user_events"], features["video_events"]], axis=1)
        return {"score": tf.cast(tf.math.floormod(score, 1.0), tf.float32), "modality_weights": weights}

    return save(tf.Module(), {f.name: tensor_spec(f) for f in contract.inputs}, answer, contract, folder)


def retriever(contract: Contract, videos: list[str], folder: Path) -> str:
    """Answers the first `ANSWERS` videos of the catalogue that are neither excluded nor watched, queued ones first."""

    def one(row: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        out, queue = row
        order = tf.concat([queue, tf.constant(videos)], axis=0)
        order, _ = tf.unique(order)
        kept = ~tf.reduce_any(order[:, tf.newaxis] == out[tf.newaxis], axis=1) & (order != "")
        found = tf.boolean_mask(order, kept)[:ANSWERS]
        found = tf.pad(found, [[0, ANSWERS - tf.shape(found)[0]]], constant_values="")
        queued = tf.reduce_any(found[:, tf.newaxis] == queue[tf.newaxis], axis=1)
        return found, tf.where(found == "", "", tf.where(queued, "queue", "topic"))

    def answer(exclude: tf.Tensor, queue: tf.Tensor, **features: tf.Tensor) -> dict[str, tf.Tensor]:
        out = tf.concat([exclude, features["watch_history"]], axis=1)
        of_strings = tf.TensorSpec([ANSWERS], tf.string)
        ids, sources = tf.map_fn(one, (out, queue), fn_output_signature=(of_strings, of_strings))
        falling = tf.repeat(1 - tf.range(ANSWERS, dtype=tf.float32)[tf.newaxis] / ANSWERS, tf.shape(out)[0], axis=0)
        return {"video_ids": ids, "sources": sources, "scores": falling}

    return save(tf.Module(), _asked_of_a_retriever(contract), answer, contract, folder)


def _asked_of_a_retriever(contract: Contract) -> dict[str, tf.TensorSpec]:
    more = {name: tf.TensorSpec([None, None], tf.string, name) for name in ("exclude", "queue")}
    return {**{f.name: tensor_spec(f) for f in contract.inputs if f.about == "user"}, **more}


def chooser(contract: Contract, folder: Path) -> str:
    wanted = [contract.user_key, *contract.histories, contract.video_key]

    def answer(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        score = tf.cast(tf.add_n([weighed(f.name, features[f.name]) for f in wanted]), tf.float32)
        frame = tf.cast(score * 1000, tf.int32) % 5 - 1
        shown = frame >= 0
        return {
            "score": score,
            "frame": frame,
            "path": tf.where(shown, features[contract.video_key.name] + ".jpg", ""),
            "frame_score": tf.where(shown, score, np.nan),
            "at_seconds": tf.where(shown, 0.5, np.nan),
        }

    return save(tf.Module(), {f.name: tensor_spec(f) for f in wanted}, answer, contract, folder)
