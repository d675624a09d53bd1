"""TensorFlow Serving's JSON mapping of predict requests and responses.

Requests come as rows (`instances`, one entry an example) or columns (`inputs`, one entry a tensor). Bytes are
`{"b64": "..."}`; NaN and Infinity are written as such. Nothing is rounded in silence: an int for a float input must be
exact in it, and a float for an int input is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from serving import tensors
from serving.model_server.errors import RequestError, invalid

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]

MAX_DEPTH = 64  # no tensor nests deeper, and parsers recurse

_TYPES = {
    type(None): "Null",
    bool: "Bool",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        RequestError: Not UTF-8, not JSON, nested too deeply, or not an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode()
        _check_depth(text)
        content = json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(content, dict):
        raise invalid(f"JSON Value: {_print(content)} Is not object")
    return content


def _check_depth(text: str) -> None:
    outside_strings = text.replace("\\\\", "").replace('\\"', "").split('"')[::2]
    depth = 0
    for bracket in re.sub(r"[^\[\]{}]+", "", "".join(outside_strings)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def signature_name(content: Mapping[str, Any]) -> str:
    """The `signature_name` of a request, or the empty string.

    Raises:
        RequestError: It is no string.
    """
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_print(content)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def read(content: Mapping[str, Any], inputs: Mapping[str, tf.TensorSpec]) -> tuple[dict[str, Array], bool]:
    """The tensors of a request.

    Args:
        content: What `parse` returned.
        inputs: Dtype by input name, of the signature.

    Returns:
        Arrays by input name, and whether they came as rows.

    Raises:
        RequestError: Neither or both formats, or values that do not fit the inputs.
    """
    if "instances" in content and "inputs" in content:
        message = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        raise invalid(f"JSON Value: {_print(content)} {message}")
    if "instances" in content:
        return _rows(content["instances"], inputs), True
    if "inputs" in content:
        return _columns(content["inputs"], inputs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _rows(instances: Any, inputs: Mapping[str, tf.TensorSpec]) -> dict[str, Array]:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_print(instances)} Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid("No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    rows: dict[str, list[Array]] = {name: [] for name in inputs}
    for index, instance in enumerate(instances):
        if _is_named(instance) != named:
            wanted = "object but got list" if named else "value/list but got object"
            raise invalid(f"Expecting {wanted} at item {index} of input list")
        _add_row(instance if named else {next(iter(inputs)): instance}, index, inputs, rows)
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _add_row(
    instance: Mapping[str, Any], index: int, inputs: Mapping[str, tf.TensorSpec], rows: dict[str, list[Array]]
) -> None:
    for name, value in instance.items():
        where = f"Failed to process element: {index} key: {name} of 'instances' list. Error: INVALID_ARGUMENT:"
        if name not in inputs:
            raise invalid(f"{where} JSON object: does not have named input: {name}")
        try:
            array = _array(value, inputs[name].dtype)
        except RequestError as error:
            raise RequestError(error.code, f"{where} {error.message}") from error
        if rows[name] and rows[name][0].shape != array.shape:
            raise invalid(f"{where} Expecting shape {_shape(rows[name][0])} but got: {_shape(array)}")
        rows[name].append(array)
    if len(instance) != len(inputs):
        raise invalid(
            f"Failed to process element: {index} of 'instances' list. JSON object: {_print(instance)} "
            f"keys must be equal to: {','.join(inputs)}"
        )


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _columns(columns: Any, inputs: Mapping[str, tf.TensorSpec]) -> dict[str, Array]:
    if not _is_named(columns):
        if len(inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        columns = {next(iter(inputs)): columns}
    for name in inputs:
        if name not in columns:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    for name in columns:
        if name not in inputs:
            raise invalid(f"JSON object: does not have named input: {name}")
    return {name: _array(columns[name], spec.dtype) for name, spec in inputs.items()}


def _array(value: Any, dtype: tf.DType) -> Array:
    """A JSON value, any nesting of lists, as a dense array."""
    numpy_type = tensors.dtype_of(dtype.as_datatype_enum)
    if numpy_type is None:
        message = f"Conversion of JSON Value: {_print(value)} to type: {dtype.name}"
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, message)
    shape, deepest = [], value
    while isinstance(deepest, list):
        shape.append(len(deepest))
        deepest = deepest[0] if deepest else None
    leaves: list[Any] = []
    _flatten(value, shape, 0, _LEAVES[numpy_type.kind], numpy_type, leaves)
    flat = np.empty(len(leaves), dtype=numpy_type)
    flat[:] = leaves
    return flat.reshape(shape)


def _flatten(
    value: Any, shape: list[int], level: int, leaf: Callable[[Any, DType], Any], dtype: DType, into: list[Any]
) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_print(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        into.append(leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, leaf, dtype, into)


def _float(value: Any, dtype: DType) -> float:
    if type(value) not in (int, float):
        raise _type_error(value, dtype)
    limits = np.finfo(dtype)
    # The shortest digits of the largest float32 lie above it; what is less than half a step above rounds back to it.
    too_large = float(limits.max) + 2.0 ** (limits.maxexp - limits.nmant - 2)
    exact = abs(value) < (2 ** (limits.nmant + 1) if type(value) is int else too_large)
    if not exact and not (type(value) is float and not math.isfinite(value)):
        raise invalid(f"Cannot convert JSON value: {_print(value)} to {_name(dtype)} without loss of precision.")
    return value


def _int(value: Any, dtype: DType) -> int:
    limits = np.iinfo(dtype)
    if type(value) is not int or not limits.min <= value <= limits.max:
        raise _type_error(value, dtype)
    return value


def _bool(value: Any, dtype: DType) -> bool:
    if type(value) is not bool:
        raise _type_error(value, dtype)
    return value


def _string(value: Any, dtype: DType) -> bytes:
    if isinstance(value, dict):
        return _decode_base64(value)
    if not isinstance(value, str):
        raise _type_error(value, dtype)
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"JSON Value: {_print(value)} is not Unicode: half of a surrogate pair") from error


_LEAVES: dict[str, Callable[[Any, DType], Any]] = {"f": _float, "i": _int, "u": _int, "b": _bool, "O": _string}


def _decode_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_print(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # padding may be left out
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _type_error(value: Any, dtype: DType) -> RequestError:
    return invalid(f"JSON Value: {_print(value)} Type: {_TYPES[type(value)]} is not of expected type: {_name(dtype)}")


def _name(dtype: DType) -> str:
    return {"float32": "float", "float64": "double", "float16": "half", "object": "string"}.get(dtype.name, dtype.name)


def _print(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 200 else text[:200] + "..."


def write(outputs: Mapping[str, Array], as_rows: bool) -> bytes:
    """The body of a predict response, in the format of its request.

    Raises:
        RequestError: Outputs of different batch sizes cannot be rows; bytes that are not text need the suffix `_bytes`.
    """
    if not as_rows:
        columns = {name: _values(name, array) for name, array in outputs.items()}
        return _dump({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    batch_size = _batch_size(outputs)
    if len(outputs) == 1:
        return _dump({"predictions": next(_values(name, array) for name, array in outputs.items())})
    columns = {name: _values(name, array) for name, array in outputs.items()}
    return _dump(
        {"predictions": [{name: column[row] for name, column in columns.items()} for row in range(batch_size)]}
    )


def _batch_size(outputs: Mapping[str, Array]) -> int:
    sizes = {}
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information")
        sizes[name] = len(array)
        expected = next(iter(sizes.values()))
        if sizes[name] != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {sizes[name]} expecting: {expected}")
    return expected


def _values(name: str, array: Array) -> Any:
    """Nested lists of what `json` writes."""
    if array.dtype.kind == "f" and array.dtype != np.float64:
        return _nest(array, lambda value: float(str(value)))  # the shortest digits that mean this float32, as 0.1
    if array.dtype.kind != "O":
        return array.tolist()
    if name.endswith("_bytes"):
        return _nest(array, lambda value: {"b64": base64.b64encode(value).decode()})
    try:
        return _nest(array, bytes.decode)
    except UnicodeDecodeError as error:
        raise invalid(
            f"output {name} holds bytes that are not UTF-8: JSON can carry it if its name ends in _bytes"
        ) from error


def _nest(array: Array, convert: Callable[[Any], Any]) -> Any:
    cells = np.empty(array.size, dtype=object)
    cells[:] = [convert(value) for value in array.ravel()]
    return cells.reshape(array.shape).tolist()


def _dump(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
