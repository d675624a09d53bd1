"""VBPR: matrix factorisation beside a visual space, into which a matrix brings the pictures.

Source: He and McAuley 2016, "VBPR: visual Bayesian personalized ranking from implicit feedback", eq. 4, whose terms of
the user alone cancel. A video's picture is the mean of its frames; a frame is scored as a picture would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines.pairwise.bpr import Bpr
from trainer.layers.pair_scorer import Shape, Shown, Tensors, linear, mean_frame, product

if TYPE_CHECKING:
    from trainer.jifr import Config


class Vbpr(Bpr):
    """Score = b_i + <u, v_i> + <w, E f_i> + b' f_i."""

    free = ("u", "v", "bias", "w")
    looks = True

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.visual_table = shape.table_of_users(config.visual_width, "visual_users")
        self.project = linear(config.visual_width, name="E", l2=config.projection_l2)
        self.everyone = linear(1, name="visual_bias", l2=config.projection_l2)

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """The user's vectors in both spaces; the 1 is for what all users have in common."""
        w = self.visual_table(inputs[self.user])
        return {**super().people(inputs), "w": w, "sight": tf.concat([w, tf.ones_like(w[:, :1])], axis=1)}

    def videos(self, shown: Shown) -> Tensors:
        """The frames and their mean in the visual space, b' c beside it."""
        looks = tf.concat([self.project(shown.frames), self.everyone(shown.frames)], axis=2)
        return {**super().videos(shown), "x": mean_frame(looks, shown.mask), "looks": looks}

    def score(self, people: Tensors, videos: Tensors) -> tf.Tensor:
        """Both spaces."""
        return super().score(people, videos) + product(people["sight"], videos["x"])

    def look(self, people: Tensors, looks: tf.Tensor) -> tf.Tensor:
        """<w, E c> + b' c."""
        return product(people["sight"], looks)
