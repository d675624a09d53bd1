"""What every ranking architecture starts from: Keras inputs and field vectors, derived from the contract.

Features are met by kind and role, never by name. Embedding tables are keyed by vocabulary, so that a history and the
candidate share one; first-order weights are keyed by feature, because "is the candidate" and "was watched" weigh
differently.

B batch, N fields, D embedding width, L history length, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.fields import AnyPresent, BiasedSum, IdDropout, MaskedMean, MaskedStack, NumberField, Present
from trainer.layers.vocabulary_embedding import VocabularyEmbedding
from transform.contract import CATEGORICAL, Contract, Feature, Kind, Role

if TYPE_CHECKING:
    from trainer.ranker import Config

Inputs = dict[str, tf.Tensor]


class Fields(NamedTuple):
    """The fields of a batch of impressions.

    Attributes:
        vectors: [B, N, D], one vector per input field: id -> embedding; ids, text, history -> mean of the embeddings
            over non-padding (eq. 6; empty -> zeros); number -> value times field vector; vector feature -> dense
            projection to D.
        mask: [B, N], 1.0 where the field is present (id != 0, any id != 0, vector not all zeros; numbers always).
        linear: [B, 1], first-order part over the raw fields, with the bias: one weight per id (mean for multi-valued),
            weight times number, linear map for vectors.
        user: [B, D], embedding of the user key; zeros where it is missing.
        video: [B, D], embedding of the video key; zeros where it is missing.
        history: [B, L, D], embeddings of the first derived history feature, most recent last; None without one.
        history_mask: [B, L].
        modalities: [B, M, D], projected vector features of role video; None without one.
        modality_mask: [B, M].
        features: The N features, in the order of the fields (static).
    """

    vectors: tf.Tensor
    mask: tf.Tensor
    linear: tf.Tensor
    user: tf.Tensor
    video: tf.Tensor
    history: tf.Tensor | None
    history_mask: tf.Tensor | None
    modalities: tf.Tensor | None
    modality_mask: tf.Tensor | None
    features: tuple[Feature, ...]


def keras_inputs(contract: Contract) -> Inputs:
    """One symbolic input per input feature, shaped as Transform writes it; see `transform.contract.Kind`."""
    return {f.name: keras.Input(_shape(f), name=f.name, dtype=_dtype(f)) for f in contract.inputs}


def is_modality(feature: Feature) -> bool:
    """Whether a feature is a content vector of the video: what user-guided attention chooses among."""
    return feature.kind is Kind.VECTOR and feature.role is Role.VIDEO


def is_content(feature: Feature) -> bool:
    """Whether a feature is made of the media: a modality, or how well they match what the user took to."""
    return is_modality(feature) or feature.source == "derived.content_match"


def is_social(feature: Feature) -> bool:
    """Whether a feature is a set of ids that describes the user, such as the authors they follow."""
    return feature.kind is Kind.IDS and feature.role is Role.USER


def build_fields(contract: Contract, inputs: Inputs, vocabulary_sizes: Mapping[str, int], config: Config) -> Fields:
    """The fields of all input features of `contract`.

    Args:
        contract: The features; `inputs` may hold more than it names.
        inputs: What `keras_inputs` gave.
        vocabulary_sizes: Embedding table rows by vocabulary, padding and out-of-vocabulary buckets included.
        config: `embedding_width`, `embedding_l2`, `linear_l2` and `id_dropout` are read.
    """
    tables = _embedding_tables(contract, vocabulary_sizes, config)
    fields = {f.name: _field(contract, f, inputs[f.name], tables, config) for f in contract.inputs}
    vectors, mask = MaskedStack(name="fields")(([x.vector for x in fields.values()], [x.mask for x in fields.values()]))
    linear = BiasedSum(name="linear")(([x.linear for x in fields.values()], [x.mask for x in fields.values()]))
    history = next((fields[f.name] for f in contract.histories), None)
    modalities = [fields[f.name] for f in contract.inputs if is_modality(f)]
    stacked = (
        MaskedStack(name="modalities")(([x.vector for x in modalities], [x.mask for x in modalities]))
        if modalities
        else (None, None)
    )
    return Fields(
        vectors=vectors,
        mask=mask,
        linear=linear,
        user=vectors[:, contract.inputs.index(contract.user_key)],
        video=vectors[:, contract.inputs.index(contract.video_key)],
        history=history and history.entries,
        history_mask=history and history.entry_mask,
        modalities=stacked[0],
        modality_mask=stacked[1],
        features=contract.inputs,
    )


class _Field(NamedTuple):
    vector: tf.Tensor  # [B, D]
    mask: tf.Tensor  # [B]
    linear: tf.Tensor  # [B, 1]
    entries: tf.Tensor | None = None  # [B, L, D], of multi-valued features
    entry_mask: tf.Tensor | None = None  # [B, L]


def _field(
    contract: Contract, feature: Feature, value: tf.Tensor, tables: Mapping[str, VocabularyEmbedding], config: Config
) -> _Field:
    if feature.kind is Kind.NUMBER:
        return _Field(
            NumberField(config.embedding_width)(value),
            tf.ones_like(value),
            _linear_map(feature, value[:, tf.newaxis], config),
        )
    if feature.kind is Kind.VECTOR:
        vector = keras.layers.Dense(config.embedding_width, name=f"project_{feature.name}")(value)
        return _Field(vector, AnyPresent()(Present()(value)), _linear_map(feature, value, config))
    table = tables[str(feature.vocabulary)]
    weights = _table(f"linear_{feature.name}", table.vocabulary, table.input_dim, 1, config.linear_l2)
    if feature.kind is Kind.ID:
        buckets = contract.vocabularies[str(feature.vocabulary)].oov_buckets
        ids = IdDropout(table.input_dim, buckets, config.id_dropout)(value)
        return _Field(table(ids), Present()(ids), weights(ids))
    mask, entries = Present()(value), table(value)
    return _Field(
        MaskedMean()((entries, mask)), AnyPresent()(mask), MaskedMean()((weights(value), mask)), entries, mask
    )


def _embedding_tables(
    contract: Contract, vocabulary_sizes: Mapping[str, int], config: Config
) -> dict[str, VocabularyEmbedding]:
    used = dict.fromkeys(str(f.vocabulary) for f in contract.inputs if f.kind in CATEGORICAL)
    return {
        name: _table(f"embedding_{name}", name, vocabulary_sizes[name], config.embedding_width, config.embedding_l2)
        for name in used
    }


def _table(name: str, vocabulary: str, rows: int, width: int, l2: float) -> VocabularyEmbedding:
    start = "zeros" if width == 1 else keras.initializers.RandomNormal(stddev=0.01)
    penalty = keras.regularizers.L2(l2) if l2 else None
    return VocabularyEmbedding(
        vocabulary, rows, width, embeddings_initializer=start, embeddings_regularizer=penalty, name=name
    )


def _linear_map(feature: Feature, values: tf.Tensor, config: Config) -> tf.Tensor:
    regularizer = keras.regularizers.L2(config.linear_l2) if config.linear_l2 else None
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="zeros", kernel_regularizer=regularizer, name=f"linear_{feature.name}"
    )
    return layer(values)


def _shape(feature: Feature) -> tuple[int, ...]:
    if feature.kind is Kind.VECTOR:
        return (int(feature.dimension or 0),)
    return (int(feature.max_length or 0),) if feature.multi_valued else ()


def _dtype(feature: Feature) -> str:
    return "int64" if feature.kind in CATEGORICAL else "float32"
