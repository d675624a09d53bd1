"""Attentional factorization machine.

Source: Xiao et al. 2017, "Attentional factorization machines: learning the weight of feature interactions via attention
networks", eq. 5-7: the pairs of FM as vectors, weighed by a small network, summed and projected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.inputs import Fields
from trainer.keras_version import keras
from trainer.layers.attention_crossing import AttentionCrossing

if TYPE_CHECKING:
    from trainer.ranker import Config

ATTENTION_WIDTH = 8


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = first-order part + p^T sum_{i<j} a_ij (v_i * v_j), [B, 1]; `config.crossing` sets width and dropout."""
    width, dropout = (config.crossing.width, config.crossing.dropout) if config.crossing else (ATTENTION_WIDTH, 0.0)
    pairs, _ = AttentionCrossing(width, name="afm")((fields.vectors, fields.mask))
    pooled = keras.layers.Dropout(dropout)(tf.reduce_sum(pairs, axis=1))
    return fields.linear + keras.layers.Dense(1, use_bias=False, name="projection")(pooled)
