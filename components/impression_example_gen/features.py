"""Raw features of a contract as Arrow columns, as tf.Examples, and as rows of a request.

One function makes the columns, so that an example and a request of the same instant hold the same values.
Letters: N rows, D values of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.impression_example_gen.partitions import single_array
from transform.contract import ContractError, Feature, Kind


def columns(features: Sequence[Feature], table: pa.Table) -> dict[str, pa.Array]:
    """Each feature's values, none null.

    Args:
        features: Which.
        table: N rows whose columns are named by `Feature.source`; one that is not there is missing in every row.

    Returns:
        By feature name: string ('' = missing) for id and text, list<string> for ids and history, float32 (NaN =
        missing) for number, list<float32> of D values (zeros = missing) for vector.

    Raises:
        ContractError: A vector has another length than the contract says.
    """
    return {feature.name: _column(feature, table) for feature in features}


def examples(features: Sequence[Feature], values: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """What `columns` made, in the form that tfx_bsl's encoder turns into tf.Examples: lists of bytes or floats."""
    arrays = [_as_list(feature, values[feature.name]) for feature in features]
    return pa.RecordBatch.from_arrays(arrays, [feature.name for feature in features])


def rows(features: Sequence[Feature], values: Mapping[str, pa.Array]) -> list[dict[str, Any]]:
    """What `columns` made as one mapping a row, for a request: a missing value is left out."""
    lists = {feature.name: values[feature.name].to_pylist() for feature in features}
    return [
        {name: value for name, value in zip(lists, row, strict=True) if not _is_missing(value)}
        for row in zip(*lists.values(), strict=True)
    ]


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value == "" or (
        isinstance(value, list) and len(value) > 0 and not isinstance(value[0], str) and not any(value)
    )


def _column(feature: Feature, table: pa.Table) -> pa.Array:
    types = {Kind.NUMBER: pa.float64(), Kind.VECTOR: pa.list_(pa.float32())}
    lists = feature.kind in (Kind.IDS, Kind.HISTORY)
    kind = types.get(feature.kind, pa.list_(pa.string()) if lists else pa.string())
    name = feature.name if feature.source == "derived.user_history" else feature.source
    present = name in table.column_names
    source = single_array(table[name]).cast(kind) if present else pa.nulls(len(table), kind)
    if feature.kind is Kind.VECTOR:
        return _vectors(feature, source)
    if feature.kind is Kind.NUMBER:
        return pc.fill_null(source, math.nan).cast(pa.float32())
    return _lists(source) if lists else pc.fill_null(source, "")


def _lists(source: pa.ListArray) -> pa.ListArray:
    lengths = pc.fill_null(pc.list_value_length(source), 0).to_numpy()
    return pa.ListArray.from_arrays(_offsets(lengths), pc.fill_null(source.flatten(), ""))


def _vectors(feature: Feature, source: pa.ListArray) -> pa.ListArray:
    width = int(feature.dimension or 0)
    lengths = pc.fill_null(pc.list_value_length(source), 0).to_numpy()
    wrong = (lengths != 0) & (lengths != width)
    if wrong.any():
        raise ContractError(
            f"feature {feature.name!r}, source {feature.source}: expected vectors of {width} values, got one of "
            f"{lengths[wrong][0]}: set `dimension` in the contract, or mend the column"
        )
    dense = np.zeros((len(source), width), np.float32)
    dense[lengths == width] = pc.fill_null(source.flatten(), 0.0).to_numpy(zero_copy_only=False).reshape(-1, width)
    return pa.ListArray.from_arrays(_offsets(np.full(len(source), width)), pa.array(dense.ravel()))


def _as_list(feature: Feature, values: pa.Array) -> pa.ListArray:
    if feature.kind is Kind.VECTOR:
        return values
    if feature.kind in (Kind.IDS, Kind.HISTORY):
        return pa.ListArray.from_arrays(values.offsets, values.values.cast(pa.binary()))
    flat = values if feature.kind is Kind.NUMBER else values.cast(pa.binary())
    return pa.ListArray.from_arrays(_offsets(np.ones(len(values), np.int64)), flat)


def _offsets(lengths: Any) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
