"""From raw values to field vectors: id dropout, presence, pooling, number fields, the sum of the first-order part.

B batch, L entries, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.keras_version import keras


@keras.saving.register_keras_serializable("shortlist")
class IdDropout(keras.__internal__.layers.BaseRandomLayer):
    """In training, replaces an id by an out-of-vocabulary index, so that the vector of unknown ids is trained.

    Without it no training row of an unlimited vocabulary is out of vocabulary, and a new user or video would be scored
    with the random initial vector (cold start). 0 (missing) stays 0.

    Attributes:
        rows: Rows of the embedding table; the last `oov_buckets` are for ids out of vocabulary.
        oov_buckets: How many there are.
        rate: Probability of a replacement.
    """

    def __init__(self, rows: int, oov_buckets: int, rate: float, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.rows, self.oov_buckets, self.rate = rows, oov_buckets, rate

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Int64 [B] to int64 [B]."""
        if not training or not self.rate:
            return ids
        draw = self._random_generator.random_uniform  # Keras's own, whose state training saves
        unknown = draw(tf.shape(ids), self.rows - self.oov_buckets, self.rows, ids.dtype)
        replace = (draw(tf.shape(ids)) < self.rate) & (ids != 0)
        return tf.where(replace, unknown, ids)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rows": self.rows, "oov_buckets": self.oov_buckets, "rate": self.rate}


@keras.saving.register_keras_serializable("shortlist")
class Present(keras.layers.Layer):
    """Marks what is not padding: 1.0 where a value differs from 0, else 0.0; same shape."""

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """[...] to float [...]."""
        return tf.cast(tf.not_equal(values, tf.zeros([], values.dtype)), self.compute_dtype)


@keras.saving.register_keras_serializable("shortlist")
class AnyPresent(keras.layers.Layer):
    """Marks a field of which anything is present."""

    def call(self, mask: tf.Tensor) -> tf.Tensor:
        """[B, L] to [B]."""
        return tf.reduce_max(mask, axis=1)


@keras.saving.register_keras_serializable("shortlist")
class MaskedMean(keras.layers.Layer):
    """Mean of the vectors that are there: eq. 6, q being the entries that are not padding; none -> zeros."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """([B, L, D], mask [B, L]) to [B, D]."""
        vectors, mask = inputs
        count = tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)
        return tf.einsum("bld,bl->bd", vectors, mask / count)


@keras.saving.register_keras_serializable("shortlist")
class NumberField(keras.layers.Layer):
    """A number times the trained vector of its field (eq. 5 with a one-row matrix).

    Attributes:
        width: D.
    """

    def __init__(self, width: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.width = width

    def build(self, input_shape: Any) -> None:
        """Makes the vector."""
        self.vector = self.add_weight("vector", [self.width], initializer=keras.initializers.RandomNormal(stddev=0.05))
        super().build(input_shape)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """[B] to [B, D]."""
        return values[:, tf.newaxis] * self.vector

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("shortlist")
class MaskedStack(keras.layers.Layer):
    """Stacks N field vectors along a new axis; those of absent fields become zeros."""

    def call(self, inputs: tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
        """(N times [B, D], N masks [B]) to ([B, N, D], [B, N])."""
        vectors, masks = inputs
        mask = tf.stack(masks, axis=1)
        return tf.stack(vectors, axis=1) * mask[:, :, tf.newaxis], mask


@keras.saving.register_keras_serializable("shortlist")
class BiasedSum(keras.layers.Layer):
    """Sum of terms of equal shape, each times its mask, plus one trained bias."""

    def build(self, input_shape: Any) -> None:
        """Makes the bias."""
        self.bias = self.add_weight("bias", [1], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]) -> tf.Tensor:
        """(N terms [B, 1], N masks [B]) to [B, 1]."""
        terms, masks = inputs
        mask = tf.stack(masks, axis=1)
        return tf.reduce_sum(tf.concat(terms, axis=1) * mask, axis=1, keepdims=True) + self.bias
