"""An embedding table that knows whose ids its rows are."""

from __future__ import annotations

from typing import Any

from trainer.keras_version import keras


class VocabularyEmbedding(keras.layers.Embedding):
    """Row 0 for missing, then a row for each entry of a vocabulary, then its out-of-vocabulary buckets.

    Args:
        vocabulary: Its name in the contract, by which `trainer.warm_start` finds the rows of ids that it knows.
        rows: See `transform.impressions.vocabulary_sizes`.
        width: D.
        arguments: Keras's own.
    """

    def __init__(self, vocabulary: str, rows: int, width: int, **arguments: Any) -> None:
        super().__init__(rows, width, **arguments)
        self.vocabulary = vocabulary
