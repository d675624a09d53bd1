"""Which row of a table a video has: a look-up by id in plain ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from transform.contract import ContractError


class VideoNumbers(tf.Module):
    """Numbers of videos, by which tables of a SavedModel are laid out.

    Args:
        ids: In the order of `ordered`.
        what: Holds them, for messages.

    Attributes:
        ids: String [V].

    Raises:
        ContractError: No videos, or one twice.
    """

    def __init__(self, ids: Sequence[str], what: str) -> None:
        super().__init__()
        if not len(ids) or len(set(ids)) < len(ids):
            raise ContractError(f"{what}: expected distinct videos, got {len(ids)} of which {len(set(ids))} distinct")
        self.ids = tf.Variable(list(ids), trainable=False)
        self.fingerprints = tf.Variable(_fingerprints(self.ids), trainable=False)

    def number_of(self, ids: tf.Tensor) -> tf.Tensor:
        """Numbers of videos by id, any shape of strings to int32; -1 where there is none."""
        flat = tf.reshape(ids, [-1])
        position = tf.searchsorted(self.fingerprints, _fingerprints(flat))
        position = tf.minimum(position, self.ids.shape[0] - 1)
        return tf.reshape(tf.where(take(self.ids, position) == flat, position, -1), tf.shape(ids))


def ordered(ids: Sequence[str]) -> np.ndarray:
    """How to order videos so that `VideoNumbers` finds them: positions [V]."""
    return np.argsort(_fingerprints(tf.constant(list(ids), tf.string)).numpy(), kind="stable")


def take(table: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Rows of a table. `tf.gather` of a variable would set it to be copied as a whole by every later read of it."""
    return tf.gather(tf.convert_to_tensor(table), rows)


def _fingerprints(ids: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(ids, 2**63 - 1)
