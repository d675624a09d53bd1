"""Logistic regression over the raw fields.

Source: Richardson et al. 2007, "Predicting clicks: estimating the click-through rate for new ads", eq. 1; the paper's
first-order part (eq. 3) alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.inputs import Fields

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = b + sum_i w_i x_i, [B, 1]."""
    del config  # nothing but the weights, which are in the fields
    return fields.linear
