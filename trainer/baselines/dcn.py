"""Deep & Cross Network, both versions: explicit crosses of bounded degree beside a perceptron.

Sources: v1, Wang et al. 2017, "Deep & cross network for ad click predictions", eq. 3; v2, Wang et al. 2021, "DCN V2",
eq. 1 and the parallel structure of its fig. 1b. A cross layer learns a vector in v1, a matrix in v2.

B batch, N fields, D embedding width, W = N D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from trainer.baselines.embedding_mlp import flat
from trainer.inputs import Fields
from trainer.keras_version import keras
from trainer.layers.perceptron import perceptron

if TYPE_CHECKING:
    from trainer.ranker import Config


@keras.saving.register_keras_serializable("shortlist")
class VectorCross(keras.layers.Layer):
    """One cross layer of DCN v1: x_{l+1} = x_0 (x_l^T w) + b + x_l."""

    def build(self, input_shape: Any) -> None:
        """Makes w and b."""
        width = int(input_shape[0][-1])
        self.kernel = self.add_weight("kernel", [width, 1], initializer="glorot_uniform")
        self.bias = self.add_weight("bias", [width], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(x_0 [B, W], x_l [B, W]) to x_{l+1} [B, W]."""
        first, crossed = inputs
        return first * (crossed @ self.kernel) + self.bias + crossed


def build_v1(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = w^T [cross network, MLP] + b with vector crosses, [B, 1]."""
    first = crossed = flat(fields)
    for _ in range(config.cross_layers):
        crossed = VectorCross()((first, crossed))
    return _combined(first, crossed, config)


def build_v2(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = w^T [cross network, MLP] + b with matrix crosses x_{l+1} = x_0 * (W x_l + b) + x_l, [B, 1]."""
    first = crossed = flat(fields)
    for _ in range(config.cross_layers):
        crossed = tfrs.layers.dcn.Cross()(first, crossed)
    return _combined(first, crossed, config)


def _combined(first: tf.Tensor, crossed: tf.Tensor, config: Config) -> tf.Tensor:
    parts = [crossed, perceptron(first, config.deep)] if config.deep else [crossed]
    return keras.layers.Dense(1, name="combined_logit")(tf.concat(parts, axis=1))
