"""VPOI: matrix factorisation whose vectors also have to tell whose pictures are whose.

Source: Wang et al. 2017, "What your images reveal: exploiting visual contents for point-of-interest recommendation",
eq. 5-8. Users post no pictures here: those of the videos they took to stand for them. Their sampled softmax over
pictures is BPR against those of the sampled videos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines.pairwise.bpr import Bpr
from trainer.layers.pair_scorer import Shape, Shown, Tensors, linear, mean_frame, product

if TYPE_CHECKING:
    from trainer.jifr import Config


class Vpoi(Bpr):
    """Score = b_i + <u, v_i>; pictures count by the loss alone. A frame's score is <u, Q c>."""

    looks = True

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.of_users, self.of_videos = (linear(config.width, name=name, l2=config.projection_l2) for name in "QP")
        self.weight = config.picture_weight

    def videos(self, shown: Shown) -> Tensors:
        """Pictures in the users' and in the videos' space."""
        mean = mean_frame(shown.frames, shown.mask)
        pictures = {"q": self.of_users(mean), "p": self.of_videos(mean), "looks": self.of_users(shown.frames)}
        return {**super().videos(shown), **pictures}

    def penalty(self, people: Tensors, videos: Tensors, l2: float) -> tf.Tensor:
        """L2, and how badly user and video tell the positive video's pictures from the others'."""
        own = product(people["u"], videos["q"]), product(videos["v"][:, 0], videos["p"])
        worse = [tf.reduce_mean(tf.nn.softplus(scores[:, 1:] - scores[:, :1]), axis=1) for scores in own]
        return super().penalty(people, videos, l2) + self.weight * tf.add_n(worse)

    def look(self, people: Tensors, looks: tf.Tensor) -> tf.Tensor:
        """<u, Q c>."""
        return product(people["u"], looks)
