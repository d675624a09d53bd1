"""The multilayer perceptron of all architectures, eq. 3 of the paper: hidden layers with ReLU and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.keras_version import keras

if TYPE_CHECKING:
    from trainer.ranker import Deep


def perceptron(inputs: tf.Tensor, deep: Deep) -> tf.Tensor:
    """The last hidden layer, [B, D] to [B, units[-1]]."""
    hidden = inputs
    for units in deep.units:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
        hidden = keras.layers.Dropout(deep.dropout)(hidden)
    return hidden
