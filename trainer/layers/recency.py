"""What a user's history says for retrieval: recent videos count more, and which topics they are of.

B batch, L entries of the history, D embedding width, T rows of the topic vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class RecencyPooling(keras.layers.Layer):
    """Weighted mean of a history, with weights softmax(w[age]) over what is there; the last entry has age 0.

    All weights start equal. An empty history gives zeros, and a padded one what a shorter one gives.
    """

    def build(self, input_shape: Any) -> None:
        """Makes w."""
        self.by_age = self.add_weight("by_age", [int(input_shape[0][1])], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(vectors [B, L, D] most recent last, then padding; mask [B, L]) to [B, D]."""
        vectors, mask = inputs
        count = tf.cast(tf.reduce_sum(tf.cast(mask, tf.float32), axis=1, keepdims=True), tf.int32)
        age = tf.maximum(count - 1 - tf.range(tf.shape(mask)[1]), 0)
        return tf.einsum("bld,bl->bd", vectors, masked_softmax(tf.gather(self.by_age, age), mask))


class TopicShares(keras.layers.Layer):
    """How a user's last clicks are spread over topics: counts over their sum, zeros where no topic is known.

    Attributes:
        topics: [V, any]: the topics of each video of the vocabulary, 0 for none.
        rows: T.
        recent: Clicks that count, the paper's N1.
    """

    def __init__(self, topics: np.ndarray, rows: int, recent: int) -> None:
        super().__init__()
        self.topics, self.rows, self.recent = topics, rows, recent

    def call(self, history: tf.Tensor) -> tf.Tensor:
        """Int64 [B, L], most recent last, then zeros, to [B, T]."""
        there = tf.cast(history != 0, tf.int32)
        from_end = tf.reduce_sum(there, axis=1, keepdims=True) - tf.cumsum(there, axis=1)
        topics = tf.gather(self.topics, tf.where(from_end < self.recent, history, 0))
        flat = tf.cast(tf.reshape(topics, [-1, topics.shape[1] * topics.shape[2]]), tf.int32)
        counts = tf.math.bincount(flat, minlength=self.rows + 1, maxlength=self.rows + 1, dtype=tf.float32, axis=-1)
        counts = tf.ensure_shape(counts[:, 1:], [None, self.rows])
        return tf.math.divide_no_nan(counts, tf.reduce_sum(counts, axis=1, keepdims=True))


class TopicTaste(keras.layers.Layer):
    """The mean vector of the topics of a user's last clicks, each weighed by its share of them.

    Attributes:
        table: Vectors of topics, row 0 for none. By rows rather than by a matrix of T columns, so that a topic that is
            new leaves those of the others where they are.
    """

    def __init__(self, table: keras.layers.Embedding) -> None:
        super().__init__()
        self.table = table

    def call(self, shares: tf.Tensor) -> tf.Tensor:
        """[B, T], as `TopicShares` gives them, to [B, D]."""
        rows = tf.range(1, self.table.input_dim)
        return tf.matmul(tf.cast(shares[:, :-1], self.compute_dtype), self.table(rows))
