"""The baseline: a 2D convolutional network that sees each frame by itself, and so no motion.

B batch, T frames, H and W pixels, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.keras_version import keras


def c2d(clip: tf.Tensor, filters: Sequence[int]) -> tf.Tensor:
    """The blocks of `conv3d` without time: 3 x 3 convolution, pooling, batch normalisation, ReLU, mean over space.

    Args:
        clip: [B, T, H, W, C].
        filters: Of each block.

    Returns:
        [B, T, F]; reordering the frames reorders the vectors and changes nothing else.
    """
    frames, height, width, channels = clip.shape[1:]
    images = tf.reshape(clip, [-1, height, width, channels])
    for outgoing in filters:
        images = keras.layers.Conv2D(outgoing, 3, padding="same", use_bias=False)(images)
        images = keras.layers.MaxPool2D(2, padding="same")(images)
        images = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(images))
    return tf.reshape(tf.reduce_mean(images, axis=[1, 2]), [-1, frames, filters[-1]])
