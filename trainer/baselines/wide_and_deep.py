"""Wide & Deep.

Source: Cheng et al. 2016, "Wide & deep learning for recommender systems", eq. 3. The wide part here is the first-order
part over the raw fields: the hand-made cross products of the paper are not part of a contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines import embedding_mlp
from trainer.inputs import Fields

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = w_wide^T x + w_deep^T MLP([v_1, ..., v_N]) + b, [B, 1]."""
    return fields.linear + embedding_mlp.build(fields, config)
