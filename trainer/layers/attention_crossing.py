"""Attention crossing: every pair of fields, weighed by how much the pair matters.

B batch, N fields, D embedding width, P = N (N - 1) / 2 pairs, A width of the attention network.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class AttentionCrossing(keras.layers.Layer):
    r"""Products of all pairs of fields and their attention weights, eq. 7-9 of the paper::

        phi_ij = e_i * e_j;   M'_ij = h^T ReLU(W phi_ij + b);   M = softmax over pairs of M'

    Where this differs from the print: there are N (N - 1) / 2 pairs, not n (n - 1)^2; and eq. 8 divides the raw M' by
    their sum, which is 0 / 0 where no ReLU fires, so the weights are a softmax as in AFM (Xiao et al. 2017, eq. 6), on
    which the paper draws. Pairs with an absent field take no part; where no pair is left all weights are 0.

    Attributes:
        width: A.
    """

    def __init__(self, width: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.width = width

    def build(self, input_shape: Any) -> None:
        """Makes W, b and h."""
        self.kernel = self.add_weight("kernel", [int(input_shape[0][-1]), self.width], initializer="glorot_uniform")
        self.bias = self.add_weight("bias", [self.width], initializer="zeros")
        self.context = self.add_weight("context", [self.width, 1], initializer="glorot_uniform")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """(vectors [B, N, D], mask [B, N]) to (weighted pairs M_ij phi_ij [B, P, D], weights M [B, P])."""
        vectors, mask = inputs
        pairs, there = all_pairs(vectors), all_pairs(mask)
        flat = tf.reshape(pairs, [-1, vectors.shape[2]])
        scores = tf.reshape(tf.nn.relu(flat @ self.kernel + self.bias) @ self.context, [-1, pairs.shape[1]])
        weights = masked_softmax(scores, there)
        return pairs * weights[:, :, tf.newaxis], weights

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}


def all_pairs(fields: tf.Tensor) -> tf.Tensor:
    """Products of each two fields, [B, N, ...] to [B, P, ...], ordered (0, 1), (0, 2), ..., (1, 2), ...

    Slices instead of a gather by index: its gradient would be a scatter, which is slow on CPUs.
    """
    return tf.concat([fields[:, i : i + 1] * fields[:, i + 1 :] for i in range(fields.shape[1] - 1)], axis=1)
