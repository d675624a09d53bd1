"""Matrix factorisation, trained with Bayesian personalised ranking.

Source: Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback", section 4.3.1: b_i + <u, v_i>.
It sees no frame, and ranks none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.layers.pair_scorer import PairScorer, Shape, Shown, Tensors, product

if TYPE_CHECKING:
    from trainer.jifr import Config


class Bpr(PairScorer):
    """Score = b_i + <u, v_i>; of a new video 0."""

    free: tuple[str, ...] = ("u", "v", "bias")
    looks = False

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(name="scorer")
        self.user = shape.user
        self.user_table = shape.table_of_users(config.width, "users")
        self.video_table = shape.table_of_videos(config.width, "videos")
        self.bias_table = shape.table_of_videos(1, "biases")

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """The user's vector."""
        return {"u": self.user_table(inputs[self.user])}

    def videos(self, shown: Shown) -> Tensors:
        """The video's vector and bias; zeros for a new one."""
        known = shown.known[:, tf.newaxis]
        return {"v": self.video_table(shown.ids) * known, "bias": self.bias_table(shown.ids) * known}

    def score(self, people: Tensors, videos: Tensors) -> tf.Tensor:
        """Bias and inner product."""
        return videos["bias"][:, :, 0] + product(people["u"], videos["v"])
