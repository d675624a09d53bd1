"""What JIFR and its baselines share: scores of pairs of user and video, and of the frames of a video for a user.

B users, U videos, K videos that each user is paired with, F frames of a video, C width of a frame's vector, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.vocabulary_embedding import VocabularyEmbedding

Tensors = dict[str, tf.Tensor]


class Shown(NamedTuple):
    """Videos as a scorer meets them.

    Attributes:
        ids: Int64 [U], rows of the table of videos.
        known: Float [U], 1.0 where training knows the id; a new video has its frames alone.
        frames: Float [U, F, C], standardised.
        mask: Float [U, F], 1.0 where there is a frame.
    """

    ids: tf.Tensor
    known: tf.Tensor
    frames: tf.Tensor
    mask: tf.Tensor


LARGEST = 10.0  # standardised values of frames lie between plus and minus this


class Shape(NamedTuple):
    """What a scorer is made for.

    Attributes:
        users: Rows of the table of users.
        videos: Rows of the table of videos.
        user: Name of the input that holds the user's row.
        history: Name of the input that holds the rows of videos clicked before; None without one.
        frames: [rows of videos, F, C], standardised: what is known of the frames of the videos of training.
        mask: [rows of videos, F].
        met_users: Bool [users]: which opened anything in the train split.
        met_videos: Bool [videos]: which were opened.
        vocabularies: Of users and of videos.
        buckets: Rows of users out of vocabulary, the last of the table.
    """

    users: int
    videos: int
    user: str
    history: str | None
    frames: np.ndarray
    mask: np.ndarray
    met_users: np.ndarray
    met_videos: np.ndarray
    vocabularies: tuple[str, str]
    buckets: int = 1

    def met(self, users: tf.Tensor) -> tf.Tensor:
        """Rows of users, one of those out of vocabulary for who opened nothing or is not named; int64 [B] to [B]."""
        unknown = tf.constant(self.users - self.buckets, users.dtype)
        learned = tf.gather(tf.constant(self.met_users), users)
        return tf.where((users < unknown) & ~learned, unknown, users)

    def table_of_users(self, width: int, name: str) -> VocabularyEmbedding:
        """A free vector for each user."""
        return _free(self.vocabularies[0], self.users, width, name)

    def table_of_videos(self, width: int, name: str) -> VocabularyEmbedding:
        """A free vector for each video."""
        return _free(self.vocabularies[1], self.videos, width, name)


def _free(vocabulary: str, rows: int, width: int, name: str) -> VocabularyEmbedding:
    near_zero = keras.initializers.RandomNormal(stddev=0.05)
    return VocabularyEmbedding(vocabulary, rows, width, embeddings_initializer=near_zero, name=name)


class PairScorer(keras.layers.Layer):
    """Scores a user's videos, and where `looks` are among what it says of videos, their frames.

    Attributes:
        free: Which of what `people` and `videos` give are free vectors, which the L2 penalty is on.
        looks: Whether it tells frames apart.
    """

    free: tuple[str, ...] = ()
    looks = True

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """What is known of the users of a batch of inputs: tensors [B, ...]."""
        raise NotImplementedError

    def videos(self, shown: Shown) -> Tensors:
        """What is known of videos: tensors [U, ...]; `looks` [U, F, D] is what `look` compares with a user."""
        raise NotImplementedError

    def score(self, people: Tensors, videos: Tensors) -> tf.Tensor:
        """People [B, ...] and videos [B or 1, K, ...] to [B, K]."""
        raise NotImplementedError

    def look(self, people: Tensors, looks: tf.Tensor) -> tf.Tensor:
        """People [B, ...] and looks [B, F, D] to [B, F]: how much each user likes each frame."""
        raise NotImplementedError

    def penalty(self, people: Tensors, videos: Tensors, l2: float) -> tf.Tensor:
        """What joins the loss of a batch of triples, [B]; videos [B, K, ...], the positive one first."""
        squares = [tf.reduce_sum(people[name] ** 2, axis=-1) for name in self.free if name in people]
        for name in (name for name in self.free if name in videos):
            norms = tf.reduce_sum(videos[name] ** 2, axis=-1)
            squares.append(norms[:, 0] + tf.reduce_mean(norms[:, 1:], axis=1))
        return l2 * tf.add_n(squares)

    def call(self, inputs: Mapping[str, tf.Tensor], shown: Shown, which: tf.Tensor, l2: float) -> Tensors:
        """Scores [B, K] and penalty [B] of users with the videos `which` [B, K] of those shown."""
        people, videos = self.people(inputs), self.videos(shown)
        paired = {name: tf.gather(value, which) for name, value in videos.items() if name != "looks"}
        return {"scores": self.score(people, paired), "penalty": self.penalty(people, paired, l2)}


def linear(width: int, l2: float = 0.0, **arguments: Any) -> keras.layers.Dense:
    """A matrix, with a penalty of l2 on it."""
    return keras.layers.Dense(width, use_bias=False, kernel_regularizer=penalised(l2), **arguments)


def penalised(l2: float) -> keras.regularizers.Regularizer | None:
    """An L2 penalty; None for 0."""
    return keras.regularizers.L2(l2) if l2 else None


def standardised(frames: tf.Tensor, mask: tf.Tensor, mean: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """Frames [U, F, C] less the mean [C], by the deviation [C], clipped; zeros where the mask [U, F] is."""
    return tf.clip_by_value((frames - mean) / deviation, -LARGEST, LARGEST) * mask[:, :, tf.newaxis]


def mean_frame(frames: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """[U, F, any] to [U, any]; zeros where there is no frame."""
    count = tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)
    return tf.einsum("ufd,uf->ud", frames, mask / count)


def product(people: tf.Tensor, videos: tf.Tensor) -> tf.Tensor:
    """Inner products of [B, D] with [B or 1, K, D]: [B, K]; nothing of the size [B, K, D] is made."""
    return tf.linalg.matvec(videos, people)
