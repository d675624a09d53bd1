"""A published BERT over raw titles, from the folder of its SavedModel.

B batch, L word pieces, W width of the encoder.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from trainer.keras_version import keras
from transform.contract import ContractError


@keras.saving.register_keras_serializable("shortlist")
class Bert(keras.layers.Layer):
    """Tokenises into word pieces in the graph (Chinese by characters), and encodes.

    The SavedModel is as tf-models-official exports encoders and TensorFlow Hub hands them out, downloaded: called with
    int32 [B, L] `input_word_ids`, `input_mask` (1 for pieces that are there) and `input_type_ids` (all 0), it answers
    with `pooled_output`, float [B, W]; its signatures name outputs as the encoder's layers. (The package
    `tensorflow_hub` that TFX 1.16 asks for does not import beside TensorFlow 2.16.)

    Attributes:
        folder: Of the SavedModel.
        vocabulary: File of word pieces, one a line, with [CLS] and [SEP].
        lower_case: Whether the vocabulary is of lower-cased text.
        pieces: L, longer titles are cut.
        tuned: Whether the encoder is trained too.

    Raises:
        ContractError: No such encoder or vocabulary, or a vocabulary without [CLS], [SEP] and [UNK].
    """

    def __init__(
        self, folder: str, vocabulary: str, lower_case: bool, pieces: int, tuned: bool, **keras_arguments: Any
    ) -> None:
        super().__init__(**keras_arguments)
        self.folder, self.vocabulary, self.lower_case = folder, vocabulary, lower_case
        self.pieces, self.tuned = pieces, tuned
        try:
            known = tf.io.gfile.GFile(vocabulary).read().split("\n")
            self.edges = [known.index(piece) for piece in ("[CLS]", "[SEP]", "[UNK]")][:2]
            self.tokenizer = tf_text.BertTokenizer(vocabulary, lower_case=lower_case, token_out_type=tf.int64)
            self.encoder = tf.saved_model.load(folder)
            self._encode(tf.zeros([1, 3], tf.int32), tf.ones([1, 3], tf.int32), training=False)
        except (tf.errors.OpError, OSError, ValueError, KeyError, TypeError) as error:
            raise ContractError(f"model.bert: expected an encoder and its vocabulary, got {error}") from error
        # Keras trains and checkpoints the variables that it finds among a layer's attributes.
        self.trained = list(self.encoder.trainable_variables) if tuned else []

    def call(self, titles: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """String [B] to [B, W]."""
        found = self.tokenizer.tokenize(titles).merge_dims(-2, -1)[:, : self.pieces - 2]
        joined, _ = tf_text.combine_segments([found], *self.edges)
        words, mask = tf_text.pad_model_inputs(joined, self.pieces)
        return self._encode(tf.cast(words, tf.int32), tf.cast(mask, tf.int32), training=bool(self.tuned and training))

    def _encode(self, words: tf.Tensor, mask: tf.Tensor, training: bool) -> tf.Tensor:
        named = {"input_word_ids": words, "input_mask": mask, "input_type_ids": tf.zeros_like(words)}
        return self.encoder(named, training=training)["pooled_output"]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("folder", "vocabulary", "lower_case", "pieces", "tuned")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
