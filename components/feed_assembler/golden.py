"""Requests whose answers are known, by which a served feed is checked.

What the feed says of given videos is worked out a second way: each stage is asked alone, with the examples that an
impression at that instant would have been trained as. Only for the order of whole feeds the assembled graph is its own
witness: there the check is that a server answers as TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the models' ops)
from tensorflow_serving.apis import prediction_log_pb2

from components.impression_example_gen import asking
from components.world import tables
from serving.requests import to_examples, to_feed_example
from transform.contract import Contract

USERS, VIDEOS = 3, 20  # asked about
FILE = "golden/requests"  # of the artifact, beside the model
NEWCOMER = "somebody new"
_COVER = {"frame": "frames", "path": "frame_paths", "frame_score": "frame_scores", "at_seconds": "at_seconds"}


def requests(
    feed: Any, world: str, contract: Contract, at: int, learned: Mapping[str, str]
) -> Iterator[prediction_log_pb2.PredictionLog]:
    """Requests with their answers, for some users of a world and for somebody new.

    Args:
        feed: `trainer.feed_export.Feed`.
        world: Folder of the tables.
        contract: The features.
        at: Unix seconds.
        learned: As for `asking.serving_rows`.
    """
    users = sorted(filter(None, tables.read_table(world, "users", ["user_id"])["user_id"].to_pylist()))[:USERS]
    videos = sorted(filter(None, tables.read_table(world, "videos", ["video_id"])["video_id"].to_pylist()))[:VIDEOS]
    for user in (*users, NEWCOMER):
        asked = asking.user_context(world, contract, user, at, learned)
        example = to_feed_example(asked.features, contract, **asked.told)
        examples = {"examples": np.array([example], object)}
        pairs = {**examples, "video_ids": np.array([videos], object)}
        rows = tf.constant(to_examples(asking.serving_rows(world, contract, user, videos, at, learned), contract))
        ranked = _answer(feed.ranker.signatures["serving_default"], {"examples": rows})
        yield _log("rank", pairs, {("scores" if name == "score" else name): v[None] for name, v in ranked.items()})
        if feed.chooser is not None:
            shown = _answer(feed.chooser.signatures["serving_default"], {"examples": rows})
            yield _log("cover", pairs, {_COVER[name]: v[None] for name, v in shown.items() if name in _COVER})
        yield _log("recommend", examples, _answer(feed.answers["recommend"], examples))


def write(logs: Iterator[prediction_log_pb2.PredictionLog], uri: str) -> None:
    """Writes the requests into the folder of the artifact of a model."""
    tf.io.gfile.makedirs(f"{uri}/{PurePosixPath(FILE).parent}")
    with tf.io.TFRecordWriter(f"{uri}/{FILE}") as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def read(uri: str) -> list[prediction_log_pb2.PredictLog]:
    """The requests that `write` wrote, with their answers: PredictLogs."""
    records = tf.data.TFRecordDataset(f"{uri}/{FILE}").as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record).predict_log for record in records]


def _answer(
    signature: tf.types.experimental.ConcreteFunction, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {n: v.numpy() for n, v in signature(**{name: tf.constant(value) for name, value in inputs.items()}).items()}


def _log(
    signature: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    for name, value in outputs.items():
        log.predict_log.response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log
