"""Title words to vectors that know their neighbours.

B batch, L words, W width.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.fields import Present


def title_encoder(title: tf.Tensor, rows: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Embedding and a convolution over three words.

    Padding is embedded as zeros, which is what lies beyond the edge too: a padded title and a short one are the same.

    Args:
        title: Int64 [B, L], 0 is padding.
        rows: Rows of the embedding table.
        width: W.

    Returns:
        Vectors [B, L, W], and the mask [B, L] of the words that are there.
    """
    mask = Present()(title)
    words = keras.layers.Embedding(rows, width)(title) * mask[:, :, tf.newaxis]
    return keras.layers.Conv1D(width, 3, padding="same", activation="relu")(words), mask
