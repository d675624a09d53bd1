"""An embedding table that knows whose ids its rows are."""

from __future__ import annotations

from typing import Any

from trainer.keras_version import keras


@keras.saving.register_keras_serializable("shortlist")
class VocabularyEmbedding(keras.layers.Embedding):
    """Row 0 for missing, then a row for each entry of a vocabulary, then its out-of-vocabulary buckets.

    Args:
        vocabulary: Its name in the contract, by which `trainer.warm_start` finds the rows of ids that it knows.
        input_dim: Rows; see `transform.impressions.vocabulary_sizes`.
        output_dim: D.
        arguments: Keras's own.
    """

    def __init__(self, vocabulary: str, input_dim: int, output_dim: int, **arguments: Any) -> None:
        super().__init__(input_dim, output_dim, **arguments)
        self.vocabulary = vocabulary

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        return {**super().get_config(), "vocabulary": self.vocabulary}
