"""Preprocessing of impressions: one graph for training, evaluation and serving, derived from the contract.

Outputs bear the names of the features. B batch, L max_length, D dimension, V vocabulary size:

- id: int64 [B]; ids, history, text: int64 [B, L]. 0 = missing or padding, 1..V = vocabulary in decreasing frequency,
  V+1..V+oov_buckets = not in the vocabulary, by hash.
- number: float32 [B], scaled, never NaN; vector: float32 [B, D] of length 1, zeros = missing.
- label, weight: float32 [B], unchanged. Slice features are not in the output: evaluation reads them raw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_transform as tft

from transform import ops
from transform.contract import Contract, Feature, Kind, Role, Scale, Vocabulary

Values = Any  # tf.Tensor or tf.RaggedTensor of strings
_KNOWN = "known_"


def preprocessing_fn(inputs: Mapping[str, Any], custom_config: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Raw features to what models read; what is learned (vocabularies, ranges) is learned from the analysed split.

    Args:
        inputs: Raw features as in `transform.schema`: dense [B] or [B, D], or SparseTensor for ids and history.
        custom_config: `contract`: the contract as JSON. `known_vocabularies`, optional: a folder of files as
            `write_vocabularies` makes them, whose entries keep their rows; what is learned comes behind them.

    Returns:
        Transformed features by name, shaped as said at the head of this module.
    """
    contract = Contract.from_json(custom_config["contract"])
    strings = {f.name: _strings(f, inputs[f.name]) for f in contract.inputs if f.vocabulary is not None}
    known = _known_entries(contract, str(custom_config.get("known_vocabularies") or ""))
    learned = _learn_vocabularies(contract, strings, known)
    outputs = {}
    for feature in contract.inputs:
        if feature.vocabulary is not None:
            name = feature.vocabulary
            indices = _look_up(strings[feature.name], known.get(name), learned[name], contract.vocabularies[name])
            outputs[feature.name] = _shaped(feature, indices)
        elif feature.kind is Kind.VECTOR:
            outputs[feature.name] = ops.unit_vector(inputs[feature.name])
        else:
            outputs[feature.name] = _scaled(feature, inputs[feature.name])
    for feature in contract.select(roles=(Role.LABEL, Role.WEIGHT)):
        outputs[feature.name] = tf.identity(inputs[feature.name])
    return outputs


def vocabulary_sizes(contract: Contract, tf_transform_output: tft.TFTransformOutput) -> dict[str, int]:
    """Rows of each embedding table: the entries, the out-of-vocabulary buckets, and one for missing.

    Args:
        contract: The features.
        tf_transform_output: What Transform wrote.

    Returns:
        Rows by vocabulary name, in the contract's order.
    """
    return {
        name: vocabulary_size(name, tf_transform_output) + vocabulary.oov_buckets + 1
        for name, vocabulary in contract.vocabularies.items()
    }


def vocabulary_size(vocabulary: str, tf_transform_output: tft.TFTransformOutput) -> int:
    """How many entries a vocabulary has."""
    known = _known_file(vocabulary, tf_transform_output)
    return (_count(known) if known else 0) + int(tf_transform_output.vocabulary_size_by_name(_file_name(vocabulary)))


def vocabulary_entries(vocabulary: str, tf_transform_output: tft.TFTransformOutput) -> list[bytes]:
    """The entries of a vocabulary in the order of their rows, from row 1: those known before, then those learned."""
    known = _known_file(vocabulary, tf_transform_output)
    return [*(_entries(known) if known else []), *tf_transform_output.vocabulary_by_name(_file_name(vocabulary))]


def _known_file(vocabulary: str, tf_transform_output: tft.TFTransformOutput) -> str:
    """Where Transform kept the entries that it was told; "" where it was told none."""
    path = tf_transform_output.vocabulary_file_by_name(_known_name(vocabulary))
    return path if path and tf.io.gfile.exists(path) else ""


def write_vocabularies(entries: Mapping[str, Sequence[bytes]], folder: str) -> None:
    """Writes entries by vocabulary for later Transforms to keep; see `preprocessing_fn`."""
    tf.io.gfile.makedirs(folder)
    for vocabulary, terms in entries.items():
        with tf.io.gfile.GFile(f"{folder}/{_known_name(vocabulary)}", "wb") as file:
            file.write(b"".join(term + b"\n" for term in terms))


def read_vocabularies(folder: str) -> dict[str, list[bytes]]:
    """What `write_vocabularies` wrote; nothing where there is no such folder."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    return {name.removeprefix(_KNOWN): _entries(f"{folder}/{name}") for name in names if name.startswith(_KNOWN)}


def _entries(path: str) -> list[bytes]:
    with tf.io.gfile.GFile(path, "rb") as file:
        return list(file.read().split(b"\n")[:-1])


def _count(path: str) -> int:
    with tf.io.gfile.GFile(path, "rb") as file:
        return int(file.read().count(b"\n"))


def _file_name(vocabulary: str) -> str:
    return f"vocabulary_{vocabulary}"


def _known_name(vocabulary: str) -> str:
    return f"{_KNOWN}{vocabulary}"


class _Known(NamedTuple):
    """Entries that keep their rows: a table from entry to position, -1 for others, and how many there are."""

    table: tf.lookup.StaticHashTable
    size: int


def _known_entries(contract: Contract, folder: str) -> dict[str, _Known]:
    """By vocabulary; nothing for those that no file in the folder tells of."""
    paths = {name: f"{folder}/{_known_name(name)}" for name in contract.vocabularies} if folder else {}
    sizes = {name: _count(path) for name, path in paths.items() if tf.io.gfile.exists(path)}
    return {name: _Known(_table_of(paths[name], name), size) for name, size in sizes.items() if size}


def _table_of(path: str, vocabulary: str) -> tf.lookup.StaticHashTable:
    def make() -> tf.lookup.StaticHashTable:
        index = tf.lookup.TextFileIndex
        lines = tf.lookup.TextFileInitializer(path, tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER)
        return tf.lookup.StaticHashTable(lines, -1)

    return tft.make_and_track_object(make, name=_known_name(vocabulary))


def _strings(feature: Feature, raw: Any) -> Values:
    """The values to look up: [B] for id, ragged [B, (values)] for the rest."""
    if feature.kind is Kind.ID:
        return raw
    return ops.split_words(raw) if feature.kind is Kind.TEXT else ops.known_values(raw)


def _learn_vocabularies(
    contract: Contract, strings: Mapping[str, Values], known: Mapping[str, _Known]
) -> dict[str, Any]:
    """By name: the entries over all features that share it, by falling frequency, ties in reverse byte order."""
    learned = {}
    for name, vocabulary in contract.vocabularies.items():
        shared = [strings[f.name] for f in contract.inputs if f.vocabulary == name]
        flat = tf.concat([s.flat_values if isinstance(s, tf.RaggedTensor) else s for s in shared], axis=0)
        room = vocabulary.max_size
        if name in known:
            flat = tf.boolean_mask(flat, known[name].table.lookup(flat) < 0)
            room = room and max(room - known[name].size, 1)  # tft asks for room for one at least
        learned[name] = tft.vocabulary(
            flat,  # '' is never an entry: tft leaves it out
            top_k=room,
            frequency_threshold=vocabulary.min_count if vocabulary.min_count > 1 else None,
            vocab_filename=_file_name(name),
        )
    return learned


def _look_up(strings: Values, known: _Known | None, learned: Any, vocabulary: Vocabulary) -> Values:
    """Indices from 1; 0 for ''."""
    if isinstance(strings, tf.RaggedTensor):  # of its values: ragged ops make large graphs
        return strings.with_flat_values(_look_up(strings.flat_values, known, learned, vocabulary))
    found = tft.apply_vocabulary(strings, learned, num_oov_buckets=vocabulary.oov_buckets) + 1
    if known is not None:
        positions = known.table.lookup(strings)
        found = tf.where(positions < 0, found + known.size, positions + 1)
    return tf.where(tf.equal(strings, ""), tf.zeros_like(found), found)


def _shaped(feature: Feature, indices: Values) -> tf.Tensor:
    if feature.max_length is None:
        return indices
    pad = ops.pad_history if feature.kind is Kind.HISTORY else ops.pad_first
    return pad(indices, feature.max_length)


def _scaled(feature: Feature, numbers: tf.Tensor) -> tf.Tensor:
    """The numbers, missing ones filled with the default or else the train mean, scaled.

    For counts (scale log) the mean is that of the logarithms, so that missing lands in the middle of what is seen.
    """
    curve = ops.log1p if feature.scale is Scale.LOG else tf.identity
    known = ops.is_known(numbers)
    values = curve(tf.where(known, numbers, 0.0))
    present = tf.boolean_mask(values, known)
    filler = tft.mean(present) if feature.default is None else curve(tf.constant(feature.default, tf.float32))
    values = tf.where(known, values, filler)
    if feature.scale is Scale.NONE:
        return values
    if feature.scale is Scale.MINMAX:
        return ops.minmax(values, tft.min(present), tft.max(present))
    return ops.zscore(values, tft.mean(present), tft.var(present))
