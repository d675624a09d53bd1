"""ACF: a user is also the videos clicked before, attended by which of them and which of their frames matter.

Source: Chen et al. 2017, "Attentive collaborative filtering: multimedia recommendation with item- and component-level
attention", eq. 5-11: <u + sum_l a(u, l) p_l, v_i>, where a(u, l) reads u, v_l, p_l and the attended frames of l. It
has no visual space, and ranks no frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines.pairwise.bpr import Bpr
from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax
from trainer.layers.pair_scorer import Shape, Tensors, linear
from transform.contract import ContractError

if TYPE_CHECKING:
    from trainer.jifr import Config


class Acf(Bpr):
    """Score = b_i + <u + sum_l a_l p_l, v_i>."""

    free = ("own", "v", "bias")

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        if shape.history is None:
            raise ContractError(
                "architecture acf: expected a contract with a feature of kind history and a derived source, got none: "
                "add `source: derived.user_history`, or choose another architecture"
            )
        self.history, units = shape.history, config.attention_units
        # Tensors and no weights: they are of the videos, and nothing of them is learned.
        self.frames, self.mask = tf.constant(shape.frames), tf.constant(shape.mask)
        self.auxiliary = shape.table_of_videos(config.width, "auxiliary")
        self.component = _Attention(units, "component_attention")
        self.item = _Attention(units, "item_attention")

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """The user's vector with what the history adds: eq. 5 in brackets."""
        own, watched = self.user_table(inputs[self.user]), inputs[self.history]
        frames, mask = tf.gather(self.frames, watched), tf.gather(self.mask, watched)  # [B, L, F, C], [B, L, F]
        weights = masked_softmax(self.component(own[:, tf.newaxis, tf.newaxis], frames), mask)
        content = tf.einsum("blf,blfc->blc", weights, frames)
        auxiliary = self.auxiliary(watched)
        described = tf.concat([self.video_table(watched), auxiliary, content], axis=-1)
        attention = masked_softmax(self.item(own[:, tf.newaxis], described), tf.cast(watched > 0, tf.float32))
        return {"own": own, "u": own + tf.einsum("bl,bld->bd", attention, auxiliary)}


class _Attention(keras.layers.Layer):
    """w relu(W_u u + W_x x + b): eq. 6 and 9."""

    def __init__(self, units: int, name: str) -> None:
        super().__init__(name=name)
        self.of_user, self.of_other = linear(units), keras.layers.Dense(units)
        self.weigh = linear(1)

    def call(self, user: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """User [B, 1.., D] and others [B, ..., any] to [B, ...]."""
        return self.weigh(tf.nn.relu(self.of_user(user) + self.of_other(other)))[..., 0]
