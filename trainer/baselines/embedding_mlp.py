"""Embedding & MLP: the field vectors side by side, then a perceptron.

Source: the base model of Zhou et al. 2018, "Deep interest network for click-through rate prediction", section 4.2; a
baseline of the topic-learning paper.

B batch, N fields, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.inputs import Fields
from trainer.keras_version import keras
from trainer.layers.perceptron import perceptron

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = w^T MLP([v_1, ..., v_N]) + b, [B, 1]; without `config.deep` there is no hidden layer."""
    hidden = flat(fields)
    if config.deep:
        hidden = perceptron(hidden, config.deep)
    return keras.layers.Dense(1, name="deep_logit")(hidden)


def flat(fields: Fields) -> tf.Tensor:
    """The field vectors side by side, [B, N * D]."""
    return keras.layers.Flatten()(fields.vectors)
