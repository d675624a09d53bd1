"""Private and shared vectors: what sight and sound say each by itself and both together, and the losses that part them.

B batch, D width of the modality vectors, W = D / 2 width of a private or shared vector.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.keras_version import keras

_EPSILON = 1e-7


def private_shared(modalities: dict[str, tf.Tensor], width: int) -> dict[str, tf.Tensor]:
    """A private network for each modality, and one shared network for all of them.

    Section 3.1 of the recommendation paper has three 3D networks over pixels and spectrograms. Here the modalities'
    own networks come first and the three branches on top of them, so that one shared network can read both.

    Args:
        modalities: Vectors [B, D] by modality.
        width: W.

    Returns:
        By modality [B, 2 W]: the private vector, then the shared one.
    """
    shared = keras.Sequential([keras.layers.Dense(width, "relu"), keras.layers.Dense(width)], name="shared")
    private = {
        name: keras.layers.Dense(width, name=f"{name}_private")(keras.layers.Dense(width, "relu")(vector))
        for name, vector in modalities.items()
    }
    return {name: keras.layers.Concatenate()([private[name], shared(vector)]) for name, vector in modalities.items()}


def similarity_loss(visual: tf.Tensor, audio: tf.Tensor, both: tf.Tensor) -> tf.Tensor:
    """L_S, eq. 10: 1 / (2 N) sum_n |H_a^s - H_v^s|^2, over the N clips that have both modalities.

    Args:
        visual: Shared vectors [B, W].
        audio: The same of sound.
        both: [B] of 0.0 and 1.0.

    Returns:
        At least 0; 0 where no clip has both.
    """
    distance = tf.reduce_sum(tf.math.squared_difference(audio, visual), axis=1)
    return _mean(distance, both) / 2.0


def difference_loss(private: tf.Tensor, shared: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """L_D of one modality, after eq. 11: mean of 2^-KL(P || Q), P and Q the softmax of its private and shared vector.

    As printed, the loss is KL = sum P log2(P / Q) itself, and minimising it would make private and shared *alike*,
    while it is meant to keep them different. So the sign is turned, and, since -KL has no lower end, the loss is 2^-KL:
    1 where the distributions are equal, nearing 0 as they part. The logarithms are of probabilities plus 1e-7.

    Args:
        private: [B, W].
        shared: [B, W].
        present: [B] of 0.0 and 1.0: clips that have the modality.

    Returns:
        0 to 1; 0 where no clip has the modality.
    """
    return _mean(2.0 ** -divergence(private, shared), present)


def divergence(private: tf.Tensor, shared: tf.Tensor) -> tf.Tensor:
    """KL divergence in bits between the softmax of two vectors, [B, W] each, to [B]."""
    p, q = tf.nn.softmax(private), tf.nn.softmax(shared)
    return tf.reduce_sum(p * tf.math.log((p + _EPSILON) / (q + _EPSILON)), axis=1) / tf.math.log(2.0)


def _mean(values: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(values * present) / tf.maximum(tf.reduce_sum(present), 1.0)
