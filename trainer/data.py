"""Transformed examples into batches, fast enough for two busy cores.

A split that fits in memory is read and parsed once; an epoch is then a permutation of its rows, gathered by batch.
A larger one is streamed: records are shuffled and whole batches parsed at a time. Either way the order depends on seed
and epoch alone, so that a training that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import tensorflow as tf

from transform.contract import Contract, ContractError

READ_BATCH = 4096
KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Split:
    """One split of transformed examples.

    Attributes:
        contract: Tells inputs, label and weight.
        files: Its TFRecord files.
        spec: How one example is parsed.
        rows: How many there are.
        columns: All of them, or None where they are streamed.
        only_clicks: Of rows that are streamed, the others are passed over.
    """

    contract: Contract
    files: tuple[str, ...]
    spec: Mapping[str, Any]
    rows: int
    columns: Mapping[str, np.ndarray] | None
    only_clicks: bool = False

    def epochs(
        self, first: int, last: int, batch_size: int, seed: int, shuffle_rows: int, skip: int = 0
    ) -> tf.data.Dataset:
        """Shuffled full batches of (inputs, label, weight) for the epochs `first` to `last - 1`, each in its own order.

        The rows left over by the last full batch of an epoch are skipped, others each time.

        Args:
            first: Number of the first epoch.
            last: Number behind the last epoch.
            batch_size: Rows a batch, at most `rows`.
            seed: Decides the orders.
            shuffle_rows: Size of the buffer that shuffles streamed rows.
            skip: So many batches of the first epoch are left out.
        """
        if self.columns is None:
            orders = (shuffled(records(self.files), shuffle_rows, seed + epoch) for epoch in range(first, last))
            full = (self._streamed(order, batch_size, drop_remainder=True) for order in orders)
            batches = reduce(tf.data.Dataset.concatenate, full).skip(skip)
        else:
            columns = {name: tf.constant(values) for name, values in self.columns.items()}
            order = tf.data.Dataset.range(first, last).flat_map(lambda epoch: self._order(epoch, batch_size, seed))
            order = order.skip(skip)
            batches = order.map(lambda rows: {n: tf.gather(v, rows) for n, v in columns.items()}, tf.data.AUTOTUNE)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return batches.map(self._to_pair).prefetch(tf.data.AUTOTUNE).with_options(options)

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """All rows once, in order, as batches of (inputs, label, weight)."""
        if self.columns is None:
            batches = self._streamed(records(self.files), batch_size)
        else:
            columns = {name: tf.constant(values) for name, values in self.columns.items()}
            starts = tf.data.Dataset.range(0, self.rows, batch_size)
            batches = starts.map(lambda start: {n: v[start : start + batch_size] for n, v in columns.items()})
        return batches.map(self._to_pair).prefetch(tf.data.AUTOTUNE)

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and weights of all rows, in order, each [rows]."""
        answers = list(self.in_order(READ_BATCH).map(lambda inputs, *answer: tuple(answer)).as_numpy_iterator())
        labels, weights = (np.concatenate(part) for part in zip(*answers, strict=True))
        return labels, weights

    def _order(self, epoch: tf.Tensor, batch_size: int, seed: int) -> tf.data.Dataset:
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.range(self.rows), seed=tf.stack([tf.cast(seed, tf.int64), epoch])
        )
        steps = self.rows // batch_size
        return tf.data.Dataset.from_tensor_slices(tf.reshape(shuffled[: steps * batch_size], [steps, batch_size]))

    def _streamed(self, rows: tf.data.Dataset, batch_size: int, drop_remainder: bool = False) -> tf.data.Dataset:
        """Records to parsed batches."""
        if not self.only_clicks:
            return rows.batch(batch_size, drop_remainder).map(self._parse, tf.data.AUTOTUNE)
        clicks = rows.batch(READ_BATCH).map(self._parse, tf.data.AUTOTUNE).map(self._clicks, tf.data.AUTOTUNE)
        return clicks.rebatch(batch_size, drop_remainder)

    def _clicks(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        clicked = batch[self.contract.label.name] > 0
        return {name: tf.boolean_mask(values, clicked) for name, values in batch.items()}

    def _parse(self, records: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.io.parse_example(records, dict(self.spec))

    def _to_pair(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        label = batch[self.contract.label.name]
        weight = batch[self.contract.weight.name] if self.contract.weight else tf.ones_like(label)
        inputs = {f.name: batch[f.name] for f in self.contract.inputs}
        return {n: tf.cast(v, tf.int64) if v.dtype == tf.int32 else v for n, v in inputs.items()}, label, weight


def read(patterns: Sequence[str], feature_spec: Mapping[str, Any], contract: Contract, memory_bytes: float) -> Split:
    """The split of transformed examples in the files that match `patterns`.

    Args:
        patterns: Globs of TFRecord files, gzipped if they end in .gz.
        feature_spec: `TFTransformOutput.transformed_feature_spec()`.
        contract: Tells which features are needed.
        memory_bytes: What parsed columns may take; a larger split is streamed.

    Raises:
        ContractError: There are no files, or no examples in them.
    """
    files = tuple(sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern)))
    needed = [f.name for f in (*contract.inputs, contract.label, contract.weight) if f is not None]
    spec = {name: feature_spec[name] for name in needed}
    columns = _load(files, spec, memory_bytes) if files else None
    rows = 0 if not files else _count(files) if columns is None else len(columns[contract.label.name])
    if not rows:
        raise ContractError(
            f"expected transformed examples in {', '.join(patterns)}, got {len(files)} files with 0 rows: "
            "give the split a larger share of the interactions, or import more of them"
        )
    return Split(contract, files, spec, rows, columns)


def positives(split: Split) -> Split:
    """The clicks of a split; one too large for memory is read once to count them.

    Raises:
        ContractError: There are none.
    """
    labels = split.answers()[0] if split.columns is None else split.columns[split.contract.label.name]
    rows = np.flatnonzero(labels > 0)
    if not len(rows):
        raise ContractError(
            f"expected positive impressions in {', '.join(split.files)}, got {split.rows} negative ones"
        )
    if split.columns is None:
        return replace(split, rows=len(rows), only_clicks=True)
    return replace(split, rows=len(rows), columns={n: v[rows] for n, v in split.columns.items()})


def records(files: Sequence[str]) -> tf.data.Dataset:
    """The records of TFRecord files, gzipped if the first ends in .gz, always in the same order."""
    return tf.data.TFRecordDataset(list(files), "GZIP" if files[0].endswith(".gz") else "", num_parallel_reads=4)


def shuffled(rows: tf.data.Dataset, buffer: int, seed: int) -> tf.data.Dataset:
    """The rows in an order decided by the seed, the same whenever it is asked for: Keras may ask twice an epoch."""
    return rows.shuffle(buffer, seed, reshuffle_each_iteration=False)


def kept(batches: tf.data.Dataset, rows: int) -> tf.data.Dataset:
    """The same batches; few rows are held in memory from the second pass on, whose set-up would take longer than they.

    Args:
        batches: Of tensors [batch, ...].
        rows: In all.
    """
    shapes = [(spec.shape[1:], spec.dtype.size) for spec in tf.nest.flatten(batches.element_spec)]
    known = all(shape.is_fully_defined() for shape, _ in shapes)
    few = known and rows * sum(shape.num_elements() * size for shape, size in shapes) <= KEPT_BYTES
    return batches.cache() if few else batches


def _count(files: Sequence[str]) -> int:
    return int(records(files).batch(READ_BATCH).reduce(0, lambda total, batch: total + tf.size(batch)))


def _load(files: Sequence[str], spec: dict[str, Any], memory_bytes: float) -> dict[str, np.ndarray] | None:
    """All columns, indices narrowed to int32; None if they would take more than `memory_bytes`."""
    parsed = records(files).batch(READ_BATCH).map(lambda records: tf.io.parse_example(records, spec), tf.data.AUTOTUNE)
    parts: list[dict[str, np.ndarray]] = []
    size = 0
    for batch in parsed.as_numpy_iterator():
        parts.append({n: v.astype(np.int32) if v.dtype == np.int64 else v for n, v in batch.items()})
        size += sum(values.nbytes for values in parts[-1].values())
        if size > memory_bytes:
            return None
    return {name: np.concatenate([part[name] for part in parts]) for name in spec} if parts else None
