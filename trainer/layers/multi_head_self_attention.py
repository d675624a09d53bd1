"""Multi-head self-attention over fields: how the features of one impression bear on each other.

B batch, N fields, D width of the incoming vectors, H heads, W width of a head.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class MultiHeadSelfAttention(keras.layers.Layer):
    r"""One interacting layer with residual.

    For each head, with keys k of all fields that are present::

        a[i, k] = softmax_k(<W_Q e_i, W_K e_k> / sqrt(W));   s_i = ReLU(concat_heads(sum_k a[i, k] W_V e_k) + W_R e_i)

    The paper (section 3) names the layer without printing it; this is AutoInt's (Song et al. 2019, eq. 5-8), with two
    differences: the inner product is divided by sqrt(W) as in the Transformer, and absent fields are neither looked at
    nor given a vector (their row is zeros), so that a masked field and no field are the same.

    Attributes:
        heads: H.
        width: W.
    """

    def __init__(self, heads: int, width: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.heads, self.width = heads, width

    def build(self, input_shape: Any) -> None:
        """Makes W_Q, W_K, W_V and W_R side by side: one product instead of four."""
        shape = [int(input_shape[0][-1]), self.heads * self.width]
        self.kernels = [self.add_weight(f"kernel_{part}", shape, initializer="glorot_uniform") for part in "qkvr"]
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(vectors [B, N, D], mask [B, N]) to [B, N, H * W]."""
        vectors, mask = inputs
        fields, outer = vectors.shape[1], self.heads * self.width
        projected = tf.reshape(
            tf.reshape(vectors, [-1, vectors.shape[2]]) @ tf.concat(self.kernels, 1), [-1, fields, 4 * outer]
        )
        query, key, value, residual = tf.split(projected, 4, axis=2)
        query, key, value = (tf.reshape(x, [-1, fields, self.heads, self.width]) for x in (query, key, value))
        scores = tf.einsum("bihw,bkhw->bhik", query, key) / self.width**0.5
        weights = masked_softmax(scores, mask[:, tf.newaxis, tf.newaxis, :])
        attended = tf.reshape(tf.einsum("bhik,bkhw->bihw", weights, value), [-1, fields, outer])
        return tf.nn.relu(attended + residual) * mask[:, :, tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads, "width": self.width}
