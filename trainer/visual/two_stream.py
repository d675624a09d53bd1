"""Behaviour features: what happens in a clip, told by an RGB stream and, if there is one, an optical-flow stream.

B batch, T' time steps, F features, A = N_a behaviour classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.keras_version import keras


def behaviour_scores(streams: Sequence[tf.Tensor], classes: int) -> tf.Tensor:
    """f^A, eq. 4-5 of the classifier's paper: p_a = p_a^RGB + p_a^Flow, each a softmax over the classes.

    As printed, the scores of two streams sum to 2.

    Args:
        streams: Features [B, T', F] of each stream.
        classes: N_a.

    Returns:
        float32 [B, A].
    """
    return tf.add_n([_probabilities(tf.reduce_mean(features, axis=1), classes) for features in streams])


def _probabilities(features: tf.Tensor, classes: int) -> tf.Tensor:
    logits = keras.layers.Dense(classes)(features)
    return keras.layers.Softmax(dtype="float32")(logits)
