"""AutoInt: layers of multi-head self-attention over the fields, beside a perceptron (AutoInt+).

Source: Song et al. 2019, "AutoInt: automatic feature interaction learning via self-attentive neural networks", eq.
5-10, section 5.2.5 for the perceptron. Two differences: inner products are divided by the root of the head's width (see
`trainer.layers.multi_head_self_attention`), and the first-order part joins, as in DeepCTR's AutoInt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines.embedding_mlp import flat
from trainer.inputs import Fields
from trainer.keras_version import keras
from trainer.layers.multi_head_self_attention import MultiHeadSelfAttention
from trainer.layers.perceptron import perceptron

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = first-order part + w^T [attended fields, MLP] + b, [B, 1]; `config.deep: null` is the plain AutoInt."""
    vectors = fields.vectors
    if config.attention:
        for _ in range(config.attention.layers):
            vectors = MultiHeadSelfAttention(config.attention.heads, config.attention.width)((vectors, fields.mask))
    parts = [keras.layers.Flatten()(vectors)]
    if config.deep:
        parts.append(perceptron(flat(fields), config.deep))
    return fields.linear + keras.layers.Dense(1, name="combined_logit")(tf.concat(parts, axis=1))
