"""User-guided attention: which modality of a video this user looks at.

B batch, M modalities, D embedding width, A width of the attention network.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class UserGuidedAttention(keras.layers.Layer):
    r"""Fuses the modality vectors v_m of a video for a user u::

        a = softmax over present m of  h^T tanh(W_u u + W_v v_m + b);   fused = sum_m a_m v_m

    The paper describes the attention ("user-guided attention networks", section 4.4) without printing it; the form is
    that of ACF's component-level attention (Chen et al. 2017), its baseline of this kind, with tanh for ReLU.
    A modality that is missing gets weight 0; where all are missing the weights and the fused vector are zeros, not NaN.

    Attributes:
        width: A.
    """

    def __init__(self, width: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.width = width

    def build(self, input_shape: Any) -> None:
        """Makes W_u, W_v, b and h."""
        user, modalities, _ = input_shape
        self.user_kernel = self.add_weight("user_kernel", [int(user[-1]), self.width], initializer="glorot_uniform")
        self.kernel = self.add_weight("kernel", [int(modalities[-1]), self.width], initializer="glorot_uniform")
        self.bias = self.add_weight("bias", [self.width], initializer="zeros")
        self.context = self.add_weight("context", [self.width], initializer=keras.initializers.RandomNormal(stddev=0.3))
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """(user [B, D], modalities [B, M, D], mask [B, M]) to (fused [B, D], weights [B, M])."""
        user, modalities, mask = inputs
        guide = (user @ self.user_kernel)[:, tf.newaxis]
        hidden = tf.tanh(guide + tf.einsum("bmd,da->bma", modalities, self.kernel) + self.bias)
        weights = masked_softmax(tf.einsum("bma,a->bm", hidden, self.context), mask)
        return tf.einsum("bm,bmd->bd", weights, modalities), weights

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}
