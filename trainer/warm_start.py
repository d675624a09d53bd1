"""Where a training starts from: what an earlier one learned, kept beside the SavedModel that it exported.

A row of an embedding table belongs to an id, and the same id may have another row later: rows are taken over by id, and
ids that are new start as in any training. Everything else is taken over as it is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from trainer.data import READ_BATCH, Split
from trainer.keras_version import keras
from trainer.layers.vocabulary_embedding import VocabularyEmbedding
from transform.contract import Contract, ContractError
from transform.impressions import read_vocabularies, vocabulary_entries, write_vocabularies
from transform.warm_start import FOLDER

_WEIGHTS, _ABOUT = "weights.npz", "weights.json"


class _Table(NamedTuple):
    """What is known of a weight besides its values: its vocabulary ("" for none) and its shape behind the rows."""

    vocabulary: str
    shape: tuple[int, ...]


def keep(
    model: keras.Model,
    contract: Contract,
    transform_output: tft.TFTransformOutput,
    directory: str,
    met: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes what a later training takes over into a SavedModel.

    Args:
        model: As it was trained.
        contract: The features.
        transform_output: What Transform wrote.
        directory: Of the SavedModel.
        met: By vocabulary, bool [rows]: ids that the model learned of, where it makes a difference to it.
    """
    folder = f"{directory}/{FOLDER}"
    write_vocabularies({name: vocabulary_entries(name, transform_output) for name in contract.vocabularies}, folder)
    values = {f"w{number}": value for number, value in enumerate(model.get_weights())}
    buffer = io.BytesIO()
    np.savez(buffer, **values, **{f"met_{name}": rows for name, rows in (met or {}).items()})
    with tf.io.gfile.GFile(f"{folder}/{_WEIGHTS}", "wb") as file:
        file.write(buffer.getvalue())
    buckets = {name: vocabulary.oov_buckets for name, vocabulary in contract.vocabularies.items()}
    with tf.io.gfile.GFile(f"{folder}/{_ABOUT}", "w") as file:
        file.write(json.dumps({"features": _features(contract), "tables": _tables(model), "buckets": buckets}))


class Earlier:
    """What an earlier training left in a SavedModel.

    Args:
        saved_model: Its folder, in which `keep` wrote.
        contract: Today's features.
        transform_output: What Transform wrote today.

    Raises:
        ContractError: It learned from other features.
    """

    def __init__(self, saved_model: str, contract: Contract, transform_output: tft.TFTransformOutput) -> None:
        self._from, folder = saved_model, f"{saved_model}/{FOLDER}"
        self._contract, self._output = contract, transform_output
        self._entries, self._rows = read_vocabularies(folder), dict[str, np.ndarray]()
        with tf.io.gfile.GFile(f"{folder}/{_ABOUT}") as file:
            self._about = json.loads(file.read())
        if self._about["features"] != _features(contract):
            raise self._misfit("features")
        with tf.io.gfile.GFile(f"{folder}/{_WEIGHTS}", "rb") as file, np.load(io.BytesIO(file.read())) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}

    @classmethod
    def of(cls, fn_args: Any, contract: Contract, transform_output: tft.TFTransformOutput) -> Earlier | None:
        """The one that `fn_args.custom_config["warm_start"]` names; None where that is empty."""
        saved_model = fn_args.custom_config.get("warm_start")
        return cls(saved_model, contract, transform_output) if saved_model else None

    def take_over(self, model: keras.Model) -> None:
        """Give a model what was learned.

        Raises:
            ContractError: It is of other settings.
        """
        if _tables(model) != [_Table(name, tuple(shape)) for name, shape in self._about["tables"]]:
            raise self._misfit("settings")
        start = model.get_weights()
        model.set_weights([self._value(i, table, start[i]) for i, table in enumerate(_tables(model))])

    def put_back(self, model: keras.Model, seen: Mapping[str, np.ndarray]) -> None:
        """Give ids that the training did not see the rows that they had: penalties have pulled at all of them.

        Ids that nobody ever saw (other models know them) have that of a bucket: such rows were trained for strangers.

        Args:
            model: After the training.
            seen: See `seen_in`.
        """
        weights = model.get_weights()
        for number, table in enumerate(_tables(model)):
            if table.vocabulary:
                trained, unseen = weights[number], ~seen[table.vocabulary]
                strange = unseen & (self._earlier_rows(table.vocabulary, len(trained)) < 0)
                trained[unseen] = self._value(number, table, trained)[unseen]
                trained[strange] = trained[-self._contract.vocabularies[table.vocabulary].oov_buckets]
        model.set_weights(weights)

    def met(self, vocabulary: str, rows: int) -> np.ndarray:
        """Bool [rows]: what `keep` was told, by today's rows."""
        return self._taken(self._arrays[f"met_{vocabulary}"], vocabulary, np.zeros(rows, bool))

    def _misfit(self, what: str) -> ContractError:
        return ContractError(
            f"{self._from}: expected a model of the same {what} to go on from, got one of others: run once without "
            "--span, or go back to what they were"
        )

    def _value(self, number: int, table: _Table, start: np.ndarray) -> np.ndarray:
        before = self._arrays[f"w{number}"]
        return self._taken(before, table.vocabulary, start) if table.vocabulary else before

    def _taken(self, before: np.ndarray, vocabulary: str, start: np.ndarray) -> np.ndarray:
        """`start` with the rows of all ids that there were."""
        rows, taken = self._earlier_rows(vocabulary, len(start)), start.copy()
        taken[rows >= 0] = before[rows[rows >= 0]]
        return taken

    def _earlier_rows(self, vocabulary: str, count: int) -> np.ndarray:
        """[count]: the row that each of today's had, -1 for new ones."""
        if vocabulary not in self._rows:
            entries, known = vocabulary_entries(vocabulary, self._output), self._entries.get(vocabulary, [])
            position = {entry: row for row, entry in enumerate(known, start=1)}
            rows = np.full(count, -1)
            rows[0] = 0
            rows[1 : len(entries) + 1] = [position.get(entry, -1) for entry in entries]
            buckets = self._contract.vocabularies[vocabulary].oov_buckets
            if buckets == self._about["buckets"].get(vocabulary):  # an id falls into the same one of as many
                rows[len(entries) + 1 :] = np.arange(len(known) + 1, len(known) + 1 + buckets)
            self._rows[vocabulary] = rows
        return self._rows[vocabulary]


def seen_in(split: Split, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """By vocabulary, bool [rows]: which occur in a split; and the buckets, which ids that are dropped out train."""
    seen = {vocabulary: np.zeros(rows, bool) for vocabulary, rows in sizes.items()}
    for vocabulary, rows in seen.items():
        rows[len(rows) - split.contract.vocabularies[vocabulary].oov_buckets :] = True
    features = [f for f in split.contract.inputs if f.vocabulary is not None]
    for inputs, _, _ in split.in_order(READ_BATCH).as_numpy_iterator():
        for feature in features:
            seen[str(feature.vocabulary)][inputs[feature.name].ravel()] = True
    return seen


def starting_from(earlier: Earlier | None, build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """As `build`, but for the models to start from what was learned earlier, if anything was."""

    def make() -> keras.Model:
        model = build()
        if earlier is not None:
            earlier.take_over(model)
        return model

    return make


def _features(contract: Contract) -> list[list[Any]]:
    """What a model's inputs are, in order."""
    return [[f.name, f.kind.value, f.vocabulary, f.scale.value if f.scale else None] for f in contract.inputs]


def _tables(model: keras.Model) -> list[_Table]:
    """Of each weight, in the order of `get_weights`."""
    owners = {
        id(weight): layer.vocabulary
        for layer in model.submodules
        if isinstance(layer, VocabularyEmbedding)
        for weight in layer.weights
    }
    names = [owners.get(id(weight), "") for weight in model.weights]
    shapes = [tuple(weight.shape) for weight in model.weights]
    return [_Table(name, shape[1:] if name else shape) for name, shape in zip(names, shapes, strict=True)]
