"""How ranked candidates become a feed: caps by author and topic, and places kept for some.

Plain ops. B batch, N candidates, L places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf


class Kept(NamedTuple):
    """A share of the places, kept for some candidates as far as there are any.

    Attributes:
        these: Bool [B, N].
        share: 0 to 1.
    """

    these: tf.Tensor
    share: float


def arrange(
    scores: tf.Tensor,
    there: tf.Tensor,
    groups: Sequence[tuple[tf.Tensor, int | None]],
    kept: Sequence[Kept],
    places: tf.Tensor,
) -> tf.Tensor:
    """Which candidate stands at which place.

    1. Candidates are ordered by falling score, equal ones as they come.
    2. For each grouping in turn: whoever has `most` better ones of the same group before it, among those not yet set
       back, is set back behind all others.
    3. Of what is not set back, the best of each `Kept` get their places (rounded up, never more than there are);
       the best of all the rest, and then those set back, fill the others.
    4. The chosen ones are shown in the order of step 2.

    Args:
        scores: Float [B, N].
        there: Bool [B, N]; others are never chosen.
        groups: Int32 [B, N] and `most`; -1 is of no group, None is any number.
        kept: In the order in which they choose.
        places: Int32 [B], how many.

    Returns:
        Int32 [B, L] columns of the candidates, with L the most places of any row; -1 behind the last.
    """
    order = tf.argsort(tf.where(there, scores, -float("inf")), axis=1, direction="DESCENDING", stable=True)
    free = tf.gather(there, order, batch_dims=1)
    for group, most in groups:
        if most is not None:
            free &= _earlier(tf.gather(group, order, batch_dims=1), free) < most
    tier = tf.where(free, 0, tf.where(tf.gather(there, order, batch_dims=1), 1, 2))
    again = tf.argsort(tier, axis=1, stable=True)
    order, free, tier = (tf.gather(part, again, batch_dims=1) for part in (order, free, tier))
    chosen = _chosen(order, free, kept, places) & (tier < 2)
    return _packed(order, chosen, tf.reduce_max(places))


def _earlier(group: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """How many counted ones of its group stand before each, [B, N]."""
    order = tf.argsort(group, axis=1, stable=True)
    together = tf.gather(group, order, batch_dims=1)
    before = tf.cumsum(tf.cast(tf.gather(counted, order, batch_dims=1), tf.int32), axis=1, exclusive=True)
    first = tf.searchsorted(together, together)  # of each one's group
    within = before - tf.gather(before, first, batch_dims=1)
    back = tf.argsort(order, axis=1)
    return tf.where(group < 0, 0, tf.gather(within, back, batch_dims=1))


def _chosen(order: tf.Tensor, free: tf.Tensor, kept: Sequence[Kept], places: tf.Tensor) -> tf.Tensor:
    """Bool [B, N] of columns in order: who gets a place."""
    places = places[:, tf.newaxis]
    certain = tf.zeros_like(free)
    for these, share in kept:
        wanted = tf.cast(tf.math.ceil(share * tf.cast(places, tf.float64) - 1e-9), tf.int32)
        these = tf.gather(these, order, batch_dims=1) & free
        certain |= these & (tf.cumsum(tf.cast(these, tf.int32), axis=1) <= wanted)
        certain &= tf.cumsum(tf.cast(certain, tf.int32), axis=1) <= places
    left = places - tf.reduce_sum(tf.cast(certain, tf.int32), axis=1, keepdims=True)
    others = tf.cumsum(tf.cast(~certain, tf.int32), axis=1)
    return certain | (~certain & (others <= left))


def _packed(order: tf.Tensor, chosen: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The chosen columns at the front of each row [B, width], -1 behind the last."""
    dense = tf.ragged.boolean_mask(order, chosen).to_tensor(-1)
    missing = tf.maximum(width - tf.shape(dense)[1], 0)
    return tf.pad(dense, [[0, 0], [0, missing]], constant_values=-1)
