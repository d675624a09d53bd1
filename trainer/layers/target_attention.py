"""Target attention: which of the videos in the history bear on this candidate.

B batch, L entries of the history, D embedding width, A width of the attention network.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class TargetAttention(keras.layers.Layer):
    r"""Pools a history x_l for a candidate v::

        a = softmax over present l of  h^T ReLU(W_x x_l + W_v v + W_p (x_l * v) + b);   pooled = sum_l a_l x_l

    Not in the paper: an extension after DIN (Zhou et al. 2018, section 4.3), normalised, and with one hidden layer. An
    empty history gives zeros.

    Attributes:
        width: A.
    """

    def __init__(self, width: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.width = width

    def build(self, input_shape: Any) -> None:
        """Makes W_x, W_v, W_p, b and h."""
        shape = [int(input_shape[0][-1]), self.width]
        self.entry, self.candidate, self.product = (
            self.add_weight(f"kernel_{part}", shape, initializer="glorot_uniform")
            for part in ("entry", "candidate", "product")
        )
        self.bias = self.add_weight("bias", [self.width], initializer="zeros")
        self.context = self.add_weight("context", [self.width], initializer=keras.initializers.RandomNormal(stddev=0.3))
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(history [B, L, D], mask [B, L], candidate [B, D]) to [B, D]."""
        history, mask, candidate = inputs
        guide = (candidate @ self.candidate)[:, tf.newaxis] + self.bias
        # W_x x + W_p (x * v) = (W_x + W_p diag(v)) x: one product, with a matrix for each candidate.
        kernels = self.entry + candidate[:, :, tf.newaxis] * self.product
        scores = tf.einsum("bla,a->bl", tf.nn.relu(history @ kernels + guide), self.context)
        return tf.einsum("bl,bld->bd", masked_softmax(scores, mask), history)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}
