"""DeepFM: a factorization machine and a perceptron on the same embeddings.

Source: Guo et al. 2017, "DeepFM: a factorization-machine based neural network for CTR prediction", eq. 1-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.baselines import embedding_mlp, fm
from trainer.inputs import Fields

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = y_FM + y_DNN, [B, 1]."""
    return fm.build(fields, config) + embedding_mlp.build(fields, config)
