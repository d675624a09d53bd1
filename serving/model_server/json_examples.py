"""TensorFlow Serving's JSON mapping of classify and regress: tf.Examples as objects of features, results as lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import input_pb2

from serving.model_server.errors import invalid
from serving.model_server.json_tensors import decode_base64, is_base64, printed, shortest, to_float, type_name, utf8


def read(content: Mapping[str, Any]) -> Any:
    """The Input message of a classify or regress request.

    Args:
        content: The request: `examples`, a list of objects of feature name to value or list of values, and perhaps
            `context`, one such object whose features all examples have.

    Raises:
        RequestError: Neither, or features of a kind that a tf.Example has not.
    """
    context = _example(content["context"]) if "context" in content else None
    if "examples" not in content:
        message = "When method is classify, key 'examples' is expected and was not found"
        raise invalid(f"JSON Value: {printed(content)} {message}")
    examples = content["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {printed(content)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {printed(content)} 'examples' value is an empty array")
    read_ones = [_example(example) for example in examples]
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=read_ones))
    with_context = input_pb2.ExampleListWithContext(examples=read_ones, context=context)
    return input_pb2.Input(example_list_with_context=with_context)


def _example(features: Any) -> Any:
    if not isinstance(features, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(features)}")
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[utf8(name)]
        for value in values if isinstance(values, list) else [values]:
            _add(value, name, feature)
    return example


def _add(value: Any, name: str, feature: Any) -> None:
    kind, converted = _convert(value, name)
    kept = feature.WhichOneof("kind")
    if kept not in (None, kind):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {kept.removesuffix('_list')}")
    getattr(feature, kind).value.append(converted)


def _convert(value: Any, name: str) -> tuple[str, Any]:
    """The list of a tf.Feature that a JSON value belongs in, and what to put there."""
    if is_base64(value):
        return "bytes_list", decode_base64(value)
    if isinstance(value, str):
        return "bytes_list", utf8(value)
    if isinstance(value, float):
        return "float_list", to_float(value, np.dtype(np.float32))
    if not isinstance(value, int):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    if not -(2**63) <= value < 2**63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return "int64_list", int(value)


def write_classes(response: Any) -> bytes:
    """The body that carries a ClassificationResponse: a list of `[label, score]` an example."""
    rows = [row.classes for row in response.result.classifications]
    scores = iter(_decimals([one.score for row in rows for one in row]))
    return _dump([[[one.label, next(scores)] for one in row] for row in rows])


def write_values(response: Any) -> bytes:
    """The body that carries a RegressionResponse: a value an example."""
    return _dump(_decimals([one.value for one in response.result.regressions]))


def _decimals(values: list[float]) -> Any:
    return shortest(np.array(values, np.float32)).tolist()


def _dump(results: list[Any]) -> bytes:
    return json.dumps({"results": results}, ensure_ascii=False).encode()
