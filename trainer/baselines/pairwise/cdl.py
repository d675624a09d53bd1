"""CDL: pictures and users brought into one space by networks; what is near is liked.

Source: Lei et al. 2016, "Comparative deep learning of hybrid representations for image recommendations", section 3: the
comparison of two distances is the loss, which is BPR of the negative squared distance. Theirs learns the picture's
network from pixels, and the user's from tags; here frames come as vectors and users as free ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.pair_scorer import PairScorer, Shape, Shown, Tensors, linear, mean_frame, penalised

if TYPE_CHECKING:
    from trainer.jifr import Config


class Cdl(PairScorer):
    """Score = -|w - x_i|^2, x_i being the mean of the frames' vectors behind a network of two layers."""

    free = ("w",)

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(name="scorer")
        self.user = shape.user
        self.user_table = shape.table_of_users(config.visual_width, "users")
        penalty = penalised(config.projection_l2)
        self.hidden = keras.layers.Dense(config.attention_units, "relu", kernel_regularizer=penalty, name="hidden")
        self.project = linear(config.visual_width, name="project", l2=config.projection_l2)

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """The user's vector."""
        return {"w": self.user_table(inputs[self.user])}

    def videos(self, shown: Shown) -> Tensors:
        """The frames behind the network, and their mean."""
        looks = self.project(self.hidden(shown.frames))
        return {"x": mean_frame(looks, shown.mask), "looks": looks}

    def score(self, people: Tensors, videos: Tensors) -> tf.Tensor:
        """Nearness."""
        return -tf.reduce_sum((people["w"][:, tf.newaxis] - videos["x"]) ** 2, axis=-1)

    def look(self, people: Tensors, looks: tf.Tensor) -> tf.Tensor:
        """Nearness."""
        return -tf.reduce_sum((people["w"][:, tf.newaxis] - looks) ** 2, axis=-1)
