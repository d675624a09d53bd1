"""Scene features: where a clip takes place, told by VGG16 (the whole) and VGG19 (the details).

B batch, T frames, S pixels, N_s scenes, N_a behaviours.
"""

from __future__ import annotations

import tensorflow as tf
from pydantic import Field

from trainer.keras_version import keras
from trainer.settings import Settings
from transform.contract import ContractError

# What Keras's VGG weights were trained with: blue, green, red, minus ImageNet's means.
_MEANS = (103.939, 116.779, 123.68)


class Scene(Settings):
    """Scene features.

    Attributes:
        scenes: N_s. There are no scene labels: the scenes are learned with the categories.
        vgg16_weights: Keras's ImageNet weights without top (`vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5`).
            With weights a network is frozen, without them it is trained from the start.
        vgg19_weights: The same for VGG19.
    """

    scenes: int = Field(default=16, ge=1)
    vgg16_weights: str | None = None
    vgg19_weights: str | None = None


def scene_probabilities(frames: tf.Tensor, scene: Scene) -> tf.Tensor:
    """f^s, eq. 2: both networks' features of the middle frame, fused to probabilities.

    The paper takes global features from VGG16 and local details from VGG19 without saying how they differ: here the
    mean over all places of the one and the maximum of the other. One frame, because the scene of a clip hardly changes.

    Args:
        frames: [B, T, S, S, 3], 0 to 255, S at least 32.
        scene: Sizes and weights.

    Returns:
        float32 [B, N_s].

    Raises:
        ContractError: Weights that are not there or not this network's.
    """
    image = tf.cast(frames[:, frames.shape[1] // 2, :, :, ::-1], tf.float32) - tf.constant(_MEANS)
    whole = _vgg(keras.applications.VGG16, image, "avg", scene.vgg16_weights)
    details = _vgg(keras.applications.VGG19, image, "max", scene.vgg19_weights)
    logits = keras.layers.Dense(scene.scenes)(keras.layers.Concatenate()([whole, details]))
    return keras.layers.Softmax(dtype="float32")(logits)


def joint_feature(behaviour: tf.Tensor, scene: tf.Tensor) -> tf.Tensor:
    """Eq. 6: the outer product f^A (x) f^s, ([B, N_a], [B, N_s]) to [B, N_a * N_s], row by row."""
    return tf.reshape(behaviour[:, :, tf.newaxis] * scene[:, tf.newaxis], [-1, behaviour.shape[1] * scene.shape[1]])


def _vgg(network: type, image: tf.Tensor, pooling: str, weights: str | None) -> tf.Tensor:
    model = network(include_top=False, weights=None, input_shape=tuple(image.shape[1:]), pooling=pooling)
    if weights:
        try:
            model.load_weights(weights)
        except (OSError, ValueError) as error:
            raise ContractError(f"{weights}: expected weights of {model.name} without top, got {error}") from error
        model.trainable = False
    return model(image, training=False if weights else None)
