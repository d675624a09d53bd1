"""Trainers that fail or export a spoilt copy of a good model, to see the pipeline resume and the gates refuse.

`custom_config["model"]` says what to do: {"good": path of a SavedModel, "noise": x} adds noise of that size to every
score; {"good": path, "flip": [feature, value]} turns scores around where the feature has that value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tensorflow as tf

from components.contract_schema.executor import Executor as ContractSchemaExecutor


def failing_run_fn(fn_args: Any) -> None:
    raise RuntimeError("the machine caught fire")


def run_fn(fn_args: Any) -> None:
    spoilt = Spoilt(**fn_args.custom_config["model"])
    tf.saved_model.save(spoilt, fn_args.serving_model_dir, signatures={"serving_default": spoilt.serve})


class Settings:
    """Stands for a model's settings, and takes any."""

    @classmethod
    def of(cls, values: Any, where: str) -> None:
        pass


class Spoilt(tf.Module):
    def __init__(self, good: str, noise: float = 0.0, flip: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.good = tf.saved_model.load(good)
        self.noise = noise
        self.flip = flip

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        score = self.good.signatures["serving_default"](examples=examples)["score"]
        if self.flip:
            feature, value = self.flip
            parsed = tf.io.parse_example(examples, {feature: tf.io.FixedLenFeature([], tf.string, "")})
            score = tf.where(parsed[feature] == value, 1 - score, score)
        buckets = 1000
        random = tf.cast(tf.strings.to_hash_bucket_fast(examples, buckets), tf.float32) / buckets - 0.5
        return {"score": tf.clip_by_value(score + self.noise * random, 0.001, 0.999)}


class FailsOnce(ContractSchemaExecutor):
    """ContractSchema whose first container dies; `FAILED_BEFORE` names the file by which the second one knows."""

    def Do(self, *arguments: Any) -> None:  # noqa: N802
        marker = Path(os.environ["FAILED_BEFORE"])
        if not marker.exists():
            marker.touch()
            raise RuntimeError("fails the first time")
        super().Do(*arguments)
