"""Softmax over what is there: the one place where attention meets missing values."""

from __future__ import annotations

import tensorflow as tf


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis among the entries whose mask is 1; the others, and rows without any, get weight 0.

    Computed in float32 whatever the precision of `scores`, and returned in the precision of `scores`.

    Args:
        scores: [..., N].
        mask: [..., N] of 0.0 and 1.0, or of a shape that broadcasts to it.
    """
    there = tf.cast(mask, tf.float32)
    shifted = tf.cast(scores, tf.float32) + (there - 1.0) * 1e9
    weights = tf.exp(shifted - tf.stop_gradient(tf.reduce_max(shifted, axis=-1, keepdims=True))) * there
    return tf.cast(weights / tf.maximum(tf.reduce_sum(weights, axis=-1, keepdims=True), 1e-30), scores.dtype)
