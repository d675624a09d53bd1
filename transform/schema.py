"""What raw tf.Examples look like, derived from the contract: TFMD schema and parse spec.

The encoding (`components/impression_example_gen`, `serving/requests.py`): id, text and slice features hold one string
('' = missing), ids and history any number of strings, number, label and weight one float (NaN = missing), vectors D
floats (all zeros = missing).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from transform.contract import Contract, Feature, Kind, Role

NAN = float("nan")


def raw_schema(contract: Contract) -> schema_pb2.Schema:
    """The schema of raw training examples, against which ExampleValidator holds every split.

    Anomalies are: a missing feature (but for ids and history, where nothing is a value), a wrong type, another number
    of values, a vector of another dimension, an infinite number, a number outside the contract's minimum and maximum,
    a label that is missing or outside 0 to 1, and a missing weight.

    Args:
        contract: The features.

    Returns:
        A schema with one entry per feature, in the contract's order.
    """
    return schema_pb2.Schema(feature=[_schema_entry(feature) for feature in contract.features])


def parse_spec(contract: Contract) -> dict[str, Any]:
    """How a request's tf.Example is parsed: the features of role user, video and context.

    Every feature may be left out, and then counts as missing: the defaults are what training data holds for a missing
    value. This is what lets a model answer cold-start users and worlds without optional features.

    Args:
        contract: The features.

    Returns:
        By feature name: a FixedLenFeature with a default or, for ids and history, a VarLenFeature.
    """
    return {feature.name: _parse_entry(feature) for feature in contract.inputs}


def _is_list(feature: Feature) -> bool:
    """Whether raw examples hold any number of values; a text is one string until it is split into words."""
    return feature.multi_valued and feature.kind is not Kind.TEXT


def _is_float(feature: Feature) -> bool:
    return feature.kind in (Kind.NUMBER, Kind.VECTOR)


def _schema_entry(feature: Feature) -> schema_pb2.Feature:
    entry = schema_pb2.Feature(name=feature.name, type=schema_pb2.FLOAT if _is_float(feature) else schema_pb2.BYTES)
    if not _is_list(feature):
        entry.presence.min_fraction = 1.0
        entry.presence.min_count = 1
        entry.shape.SetInParent()  # no dimensions: one value
    if feature.kind is Kind.VECTOR:
        entry.shape.dim.add(size=feature.dimension)
    if _is_float(feature):
        entry.float_domain.CopyFrom(_float_domain(feature))
    return entry


def _float_domain(feature: Feature) -> schema_pb2.FloatDomain:
    if feature.role is Role.LABEL:  # in examples a label is 0 or 1, whatever the table's unit
        return schema_pb2.FloatDomain(min=0.0, max=1.0, disallow_nan=True, disallow_inf=True)
    may_be_missing = feature.kind is Kind.NUMBER and feature.role is not Role.WEIGHT
    domain = schema_pb2.FloatDomain(disallow_inf=True, disallow_nan=not may_be_missing)
    if feature.minimum is not None:
        domain.min = feature.minimum
    if feature.maximum is not None:
        domain.max = feature.maximum
    return domain


def _parse_entry(feature: Feature) -> Any:
    if _is_list(feature):
        return tf.io.VarLenFeature(tf.string)
    if feature.kind is Kind.VECTOR:
        return tf.io.FixedLenFeature([feature.dimension], tf.float32, [0.0] * (feature.dimension or 0))
    if feature.kind is Kind.NUMBER:
        return tf.io.FixedLenFeature([], tf.float32, NAN)
    return tf.io.FixedLenFeature([], tf.string, "")
