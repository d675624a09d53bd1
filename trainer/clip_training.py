"""How video classifiers are trained: settings, loss and metrics for the loop of `trainer.training`.

B batch, C categories.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from pydantic import Field, model_validator
from sklearn.metrics import accuracy_score, log_loss, precision_score, recall_score
from typing_extensions import Self

from trainer.clip_data import Augmentation
from trainer.keras_version import keras
from trainer.training import Objective, TrainingConfig
from transform.clips import PRIMARY_CATEGORY


class ClipTrainingConfig(TrainingConfig):
    """How a video classifier is trained: see `TrainingConfig`, whose defaults are for rows that are smaller.

    Attributes:
        batch_size: Clips a step, over all replicas.
        shuffle_rows: Buffer of encoded clips that shuffles; half a megabyte each at 32 frames of 224 x 224.
        checkpoint_steps: Steps between two checkpoints within an epoch.
        augmentation: What clips are turned into while they train; None leaves them as they are.
        class_weights: `balanced` makes every category count alike, however many clips it has.
    """

    batch_size: int = Field(default=16, ge=1)
    shuffle_rows: int = Field(default=2_000, ge=1)
    checkpoint_steps: int = Field(default=100, ge=1)
    augmentation: Augmentation | None = Augmentation()
    class_weights: Literal["none", "balanced"] = "none"

    @model_validator(mode="after")
    def _check_streamed(self) -> Self:
        if "memory_gigabytes" in self.model_fields_set:
            raise ValueError("memory_gigabytes is of rows; clips are always streamed: remove it")
        return self

    @property
    def validation_batch_size(self) -> int:
        """As in training: what a clip's first layer answers is most of what it needs, gradients or not."""
        return self.batch_size


def objective(loss: Callable[[Any, Any, Any], tf.Tensor]) -> Objective:
    """The primary category; the best epoch has the highest share of right answers.

    Args:
        loss: (inputs, outputs, labels by category) of a batch to the mean loss.
    """
    return Objective(
        logits="logits",
        loss=lambda inputs, outputs, labels, weights: loss(inputs, outputs, labels),
        metric=partial(keras.metrics.SparseCategoricalAccuracy, name="accuracy"),
        label=lambda labels: labels[PRIMARY_CATEGORY],
        measure=measure,
        best="accuracy",
    )


def measure(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Cross-entropy in nats, share of right answers, and mean over the categories of precision and recall.

    Args:
        logits: [rows, C].
        labels: [rows], 0 to C - 1.
        weights: [rows].
    """
    classes, answers = np.arange(logits.shape[1]), logits.argmax(axis=1)
    probabilities = tf.nn.softmax(logits).numpy()
    macro = {"average": "macro", "labels": np.unique(labels), "zero_division": 0, "sample_weight": weights}
    return {
        "loss": float(log_loss(labels, probabilities, labels=classes, sample_weight=weights)),
        "accuracy": float(accuracy_score(labels, answers, sample_weight=weights)),
        "precision": float(precision_score(labels, answers, **macro)),
        "recall": float(recall_score(labels, answers, **macro)),
    }
