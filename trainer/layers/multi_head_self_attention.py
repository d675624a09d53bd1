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
    r"""One layer of self-attention with residual.

    For each head, with keys k of all fields that are present::

        a[i, k] = softmax_k(<W_Q e_i, W_K e_k> / sqrt(W));   c_i = concat_heads(sum_k a[i, k] W_V e_k)

    and then, by `residual`::

        projected:  s_i = ReLU(c_i + W_R e_i)        identity:  s_i = e_i + W_O c_i

    The paper (section 3) names the layer without printing it. `projected` is AutoInt's (Song et al. 2019, eq. 5-8);
    `identity` is the Transformer's, W_O starting from zeros, so that the layer starts as if it were not there. Both
    differ from AutoInt in that the inner product is divided by sqrt(W), and that absent fields are neither looked at
    nor given a vector (their row is zeros), so that a masked field and no field are the same.

    Attributes:
        heads: H.
        width: W.
        residual: `projected` gives vectors of width H * W, `identity` of width D.
    """

    def __init__(self, heads: int, width: int, residual: str = "projected", **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.heads, self.width, self.residual = heads, width, residual

    def build(self, input_shape: Any) -> None:
        """Makes W_Q, W_K, W_V (and W_R) apart, to be used side by side: one product instead of three or four."""
        incoming, outer = int(input_shape[0][-1]), self.heads * self.width
        parts = "qkvr" if self.residual == "projected" else "qkv"
        shape = [incoming, outer]
        self.kernels = [self.add_weight(f"kernel_{part}", shape, initializer="glorot_uniform") for part in parts]
        if self.residual == "identity":
            self.output_kernel = self.add_weight("kernel_o", [outer, incoming], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(vectors [B, N, D], mask [B, N]) to [B, N, H * W] or [B, N, D]; see `residual`."""
        vectors, mask = inputs
        fields, outer = vectors.shape[1], self.heads * self.width
        projected = tf.reshape(vectors, [-1, vectors.shape[2]]) @ tf.concat(self.kernels, 1)
        parts = tf.split(tf.reshape(projected, [-1, fields, len(self.kernels) * outer]), len(self.kernels), axis=2)
        query, key, value = (tf.reshape(x, [-1, fields, self.heads, self.width]) for x in parts[:3])
        scores = tf.einsum("bihw,bkhw->bhik", query, key) / self.width**0.5
        weights = masked_softmax(scores, mask[:, tf.newaxis, tf.newaxis, :])
        attended = tf.reshape(tf.einsum("bhik,bkhw->bihw", weights, value), [-1, fields, outer])
        if self.residual == "identity":
            return (vectors + attended @ self.output_kernel) * mask[:, :, tf.newaxis]
        return tf.nn.relu(attended + parts[3]) * mask[:, :, tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads, "width": self.width, "residual": self.residual}
