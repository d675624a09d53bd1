"""Attention over the local features of a clip: which frames matter. Its weights are the key-frame scores.

B batch, L local features, D their width.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class FrameAttention(keras.layers.Layer):
    r"""Weighted sum of local features, eq. 11 and 13 of the classifier's paper::

        a = softmax over present l of  w x_l;   v = sum_l a_l x_l

    Where this differs from the print: no b. As an L-dimensional vector it would tie the layer to one number of frames
    and to their order, which would let the 2D baseline see motion; as a number it cancels out. Where nothing is present
    a and v are zeros. Equal weights (eq. 12, average pooling) are what it starts from, w being zeros.
    """

    def build(self, input_shape: Any) -> None:
        """Makes w."""
        self.kernel = self.add_weight("kernel", [int(input_shape[0][-1])], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """(local features [B, L, D], mask [B, L]) to (v [B, D], a float32 [B, L])."""
        features, mask = inputs
        scores = tf.cast(tf.einsum("bld,d->bl", features, self.kernel), tf.float32)
        weights = masked_softmax(scores, mask)
        return tf.einsum("bl,bld->bd", tf.cast(weights, features.dtype), features), weights


def spread_over_frames(steps: tf.Tensor, frames: int) -> tf.Tensor:
    """Time steps to the frames they stand for, [B, T', ...] to [B, T, ...].

    Networks halve time by pooling, some times, and the last step may stand for fewer frames: T' = ceil(T / 2^n).
    """
    count, stride = steps.shape[1], 1
    while -(-frames // stride) > count:
        stride *= 2
    return tf.gather(steps, [min(frame // stride, count - 1) for frame in range(frames)], axis=1)
