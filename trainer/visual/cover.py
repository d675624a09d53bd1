"""Encoders of covers. B batch, S pixels, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.keras_version import keras
from transform.clips import scale_frames
from transform.contract import ContractError


def small_cnn(pixels: tf.Tensor, filters: Sequence[int]) -> tf.Tensor:
    """One block a number of filters: 3 x 3 convolution, pooling, normalisation, ReLU; then the mean over space.

    Each picture is normalised by itself: what stands in the place of an absent cover bears on no other.

    Args:
        pixels: [B, S, S, 3], 0 to 255.
        filters: Of each block.

    Returns:
        [B, filters[-1]].
    """
    images = scale_frames(pixels)
    for outgoing in filters:
        images = keras.layers.Conv2D(outgoing, 3, padding="same", use_bias=False)(images)
        images = keras.layers.MaxPool2D(2, padding="same")(images)
        images = keras.layers.ReLU()(keras.layers.GroupNormalization(1)(images))
    return keras.layers.GlobalAveragePooling2D()(images)


def inception_resnet_v2(pixels: tf.Tensor, weights: str | None) -> tf.Tensor:
    """Keras's Inception-ResNet-v2 without top, fine-tuned; its batch normalisation stays as it was trained.

    Args:
        pixels: [B, S, S, 3], 0 to 255, S at least 75.
        weights: Keras's ImageNet weights (`inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5`); None:
            trained from the start.

    Returns:
        [B, 1536].

    Raises:
        ContractError: Weights that are not there or not this network's.
    """
    shape = tuple(pixels.shape[1:])
    try:
        network = keras.applications.InceptionResNetV2(False, weights=weights, input_shape=shape, pooling="avg")
    except (OSError, ValueError) as error:
        raise ContractError(f"{weights}: expected weights of Inception-ResNet-v2 without top, got {error}") from error
    return network(scale_frames(pixels), training=False if weights else None)
