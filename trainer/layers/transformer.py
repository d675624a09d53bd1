"""A small transformer over title words, of BERT's kind: trained positions, layers of attention, normalised last.

B batch, L words, W width.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.fields import Present


@keras.saving.register_keras_serializable("shortlist")
class Positions(keras.layers.Layer):
    """Adds a trained vector of its place to each word.

    Attributes:
        longest: Most words of a title.
    """

    def __init__(self, longest: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.longest = longest

    def build(self, input_shape: Any) -> None:
        """Makes the vectors."""
        initial = keras.initializers.RandomNormal(stddev=0.02)
        self.table = self.add_weight("table", [self.longest, int(input_shape[-1])], initializer=initial)
        super().build(input_shape)

    def call(self, words: tf.Tensor) -> tf.Tensor:
        """[B, L, W] to [B, L, W], L at most `longest`."""
        return words + self.table[: tf.shape(words)[1]]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "longest": self.longest}


def transformer(
    title: tf.Tensor, rows: int, longest: int, width: int, layers: int, heads: int, dropout: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Words to vectors that know the whole title.

    No word attends to padding, and positions are counted from the front: a padded title and a short one are the same.

    Args:
        title: Int64 [B, L], 0 is padding behind.
        rows: Rows of the embedding table.
        longest: Largest L.
        width: W, a multiple of `heads`.
        layers: How many blocks.
        heads: Of each attention.
        dropout: Of embeddings, attention and both residuals of a block.

    Returns:
        Vectors [B, L, W], those of padding without meaning, and the mask [B, L] of the words that are there.
    """
    mask = Present()(title)
    words = keras.layers.Embedding(rows, width, keras.initializers.RandomNormal(stddev=0.02))(title)
    words = keras.layers.LayerNormalization()(Positions(longest)(words))
    words = keras.layers.Dropout(dropout)(words)
    for _ in range(layers):
        words = _block(words, mask, heads, dropout)
    return words, mask


def _block(words: tf.Tensor, mask: tf.Tensor, heads: int, dropout: float) -> tf.Tensor:
    """BERT's: attention and a GELU network of four times the width, each with residual, then normalised."""
    width = words.shape[-1]
    attention = keras.layers.MultiHeadAttention(heads, width // heads, dropout=dropout)
    attended = attention(words, words, attention_mask=mask[:, tf.newaxis, :])
    words = keras.layers.LayerNormalization()(words + keras.layers.Dropout(dropout)(attended))
    hidden = keras.layers.Dense(width)(keras.layers.Dense(4 * width, "gelu")(words))
    return keras.layers.LayerNormalization()(words + keras.layers.Dropout(dropout)(hidden))
