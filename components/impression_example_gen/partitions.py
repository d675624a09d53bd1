"""How tables travel between workers: split by a stable hash of a key, as Arrow IPC bytes; and what they counted.

A Beam element is a (partition, bytes) pair that holds thousands of rows, so that the cost of an element does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
MAX_ROWS = 32_768  # of one element: runners limit an element's size


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of parts, added up by name: for `beam.CombineGlobally`."""
    added: Counter[str] = Counter()
    for part in counts:
        added.update(part)
    return dict(added)


def stable_hash(keys: pa.Array) -> Hashes:
    """A 64-bit hash of each string that is the same in every process, on every machine and in every run."""
    encoded = pc.fill_null(keys, "").cast(pa.binary()).dictionary_encode()
    unique = pd.util.hash_array(encoded.dictionary.to_numpy(zero_copy_only=False), categorize=False)
    return np.asarray(unique, np.uint64)[encoded.indices.to_numpy()]


def mix(*parts: npt.NDArray[Any]) -> Hashes:
    """One hash of several integers a row (the finaliser of splitmix64, Steele et al. 2014, after each)."""
    state = np.zeros(len(parts[0]), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


def split(table: pa.Table, key: str, partitions: int) -> Iterator[tuple[int, bytes]]:
    """The rows of each partition that has any, serialised; a row belongs where the hash of its key says."""
    if len(table) == 0:
        return
    table = table.combine_chunks()
    owner = (stable_hash(single_array(table[key])) % np.uint64(partitions)).astype(np.int64)
    sorted_rows = table.take(np.argsort(owner, kind="stable"))
    ends = np.cumsum(np.bincount(owner, minlength=partitions))
    for partition in np.unique(owner):
        start, end = int(ends[partition - 1]) if partition else 0, int(ends[partition])
        for first in range(start, end, MAX_ROWS):
            yield int(partition), to_bytes(sorted_rows.slice(first, min(MAX_ROWS, end - first)))


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(parts: Iterable[bytes]) -> pa.Table | None:
    """One table of all parts, each column in one piece; None if there is no part."""
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables).combine_chunks() if tables else None


def single_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
