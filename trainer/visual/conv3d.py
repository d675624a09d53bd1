"""The paper's 3D convolutional network: sees how things move. Also listens: a sequence of spectrograms is such a clip.

B batch, T frames, T' time steps, H and W pixels (or spectrogram steps and mel bands), C channels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import tensorflow as tf

from trainer.keras_version import keras

Normalisation = Literal["batch", "clip"]


def conv3d(clip: tf.Tensor, filters: Sequence[int], normalisation: Normalisation = "batch") -> tf.Tensor:
    """One block a number of filters: 3 x 3 x 3 convolution, pooling, normalisation, ReLU; then the mean over space.

    The network of "Multimodal Micro-video Classification Based on 3D CNN" (input, 3D convolution, pooling, BN, FC,
    output; section 1), whose sizes are not printed. As in C3D (Tran et al. 2015), the first pooling leaves time as it
    is. The fully connected part follows in `trainer.video_classifier`.

    Args:
        clip: [B, T, H, W, C].
        filters: Of each block.
        normalisation: `batch` is batch normalisation. `clip` normalises each clip by itself, for a modality that may
            be absent: what stands in its place must not bear on the statistics of the others.

    Returns:
        [B, T', F], T' = ceil(T / 2^(blocks - 1)).
    """
    for block, channels in enumerate(filters):
        clip = keras.layers.Conv3D(channels, 3, padding="same", use_bias=False)(clip)
        clip = keras.layers.MaxPool3D((2 if block else 1, 2, 2), padding="same")(clip)
        norm = keras.layers.BatchNormalization(momentum=0.9) if normalisation == "batch" else _clip_normalisation()
        clip = keras.layers.ReLU()(norm(clip))
    return tf.reduce_mean(clip, axis=[2, 3])


def _clip_normalisation() -> keras.layers.Layer:
    return keras.layers.GroupNormalization(groups=1)
