"""Numbers that look random and depend on nothing but what they are made from: lots that every replica draws alike."""

from __future__ import annotations

import tensorflow as tf

_FACTORS = (-7046029254386353131, -4658895280553007687)  # of splitmix64


def scattered(numbers: tf.Tensor) -> tf.Tensor:
    """Int64 to int64 that look random: multiplications, which wrap, and shifts."""
    for factor in _FACTORS:
        numbers = tf.bitwise.bitwise_xor(numbers, tf.bitwise.right_shift(numbers, tf.constant(30, tf.int64))) * factor
    return tf.bitwise.bitwise_xor(numbers, tf.bitwise.right_shift(numbers, tf.constant(31, tf.int64)))


def seeds(ids: tf.Tensor) -> tf.Tensor:
    """Strings to int64 of any size, to be scattered."""
    return tf.strings.to_hash_bucket_fast(ids, 2**62)
