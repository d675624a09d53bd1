"""Factorization machine.

Source: Rendle 2010, "Factorization machines", eq. 1, and Lemma 3.1 for the linear-time form of the second-order part.

B batch, N fields, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.inputs import Fields

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = first-order part + sum_{i<j} <v_i, v_j> x_i x_j, [B, 1]."""
    del config  # the width is in the fields
    return fields.linear + pair_products(fields.vectors)


def pair_products(vectors: tf.Tensor) -> tf.Tensor:
    """Sum of the inner products of all pairs, [B, N, D] to [B, 1], as (|sum v|^2 - sum |v|^2) / 2; absent are zeros."""
    total = tf.reduce_sum(vectors, axis=1)
    squares = tf.square(total) - tf.reduce_sum(tf.square(vectors), axis=1)
    return 0.5 * tf.reduce_sum(squares, axis=1, keepdims=True)
