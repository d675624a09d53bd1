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
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import tensorflow as tf

from serving import tensors
from serving.model_server.errors import RequestError, invalid

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]

MAX_DEPTH = 64  # no tensor nests deeper, and parsers recurse
MAX_VALUES = 2_000_000  # of one body, lists and objects included: each takes some 60 bytes, where it came as 2

_ELEMENT = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT:"
_TYPES = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        RequestError: Not UTF-8, not JSON, nested too deeply, a key twice, or not an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode()
        _check_brackets(text)
        content = json.loads(text, object_pairs_hook=_object)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(content, dict):
        raise invalid(f"JSON Value: {printed(content)} Is not object")
    return content


def _check_brackets(text: str) -> None:
    too_many = ValueError(f"more than {MAX_VALUES} values: send smaller batches")
    without_escapes = text.replace("\\\\", "").replace('\\"', "")
    if without_escapes.count('"') > 4 * MAX_VALUES:  # a value has two, and its key two more
        raise too_many
    outside_strings = "".join(without_escapes.split('"')[::2])
    if any(sum(map(outside_strings.count, marks)) > MAX_VALUES for marks in ("[{,", "]}")):
        raise too_many
    brackets = re.sub(r"[^\[\]{}]+", "", outside_strings)
    opening = np.isin(np.frombuffer(brackets.encode(), np.uint8), [ord("["), ord("{")])
    if np.cumsum(np.where(opening, 1, -1)).max(initial=0) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # readers differ in which of them counts
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate key {repeated!r}")
    return content


def signature_name(content: Mapping[str, Any]) -> str:
    """The `signature_name` of a request, or the empty string.

    Raises:
        RequestError: It is no string.
    """
    name = content.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {printed(content)} not formatted correctly. 'signature_name' key must be a string value."
        )
    utf8(name)
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
    if not inputs:
        raise invalid(f"Failed to get input map for signature: {signature_name(content) or 'DEFAULT'}")
    if "instances" in content and "inputs" in content:
        message = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        raise invalid(f"JSON Value: {printed(content)} {message}")
    if "instances" in content:
        return _rows(content["instances"], inputs), True
    if "inputs" in content:
        return _columns(content["inputs"], inputs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _rows(instances: Any, inputs: Mapping[str, tf.TensorSpec]) -> dict[str, Array]:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {printed(instances)} Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid("No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    for index, instance in enumerate(instances):
        if _is_named(instance) != named:
            wanted = "object but got list" if named else "value/list but got object"
            raise invalid(f"Expecting {wanted} at item {index} of input list")
        if named:
            _check_keys(index, instance, inputs)
    columns = {name: [row[name] for row in instances] if named else instances for name in inputs}
    return {name: _stacked(name, columns[name], spec.dtype) for name, spec in inputs.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Whether a JSON value is `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _check_keys(index: int, instance: Mapping[str, Any], inputs: Mapping[str, tf.TensorSpec]) -> None:
    for name in instance:
        if name not in inputs:
            raise invalid(f"{_ELEMENT.format(index, name)} JSON object: does not have named input: {name}")
    if len(instance) != len(inputs):
        raise invalid(
            f"Failed to process element: {index} of 'instances' list. JSON object: {printed(instance)} "
            f"keys must be equal to: {','.join(inputs)}"
        )


def _stacked(name: str, values: list[Any], dtype: tf.DType) -> Array:
    try:
        return _array(values, dtype)
    except RequestError:  # which of them was it?
        shapes = []
        for index, value in enumerate(values):
            where = _ELEMENT.format(index, name)
            try:
                shapes.append(_shape(_array(value, dtype)))
            except RequestError as error:
                raise RequestError(error.code, f"{where} {error.message}") from error
            if shapes[-1] != shapes[0]:
                raise invalid(f"{where} Expecting shape {shapes[0]} but got: {shapes[-1]}") from None
        raise


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
    if numpy_type is None or numpy_type.kind not in _LEAVES:
        message = f"Conversion of JSON Value: {printed(value)} to type: {dtype.name}"
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
                f"JSON Value: {printed(value)} found at incorrect level: {level + 1} in the JSON DOM. "
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
    if _all_small_floats(value, dtype):
        into.extend(value)
        return
    for item in value:
        _flatten(item, shape, level + 1, leaf, dtype, into)


def _all_small_floats(values: list[Any], dtype: DType) -> bool:
    """Whether `to_float` takes every one of them as it is, found without a call a value."""
    if dtype.kind != "f" or set(map(type, values)) != {float}:
        return False
    return bool(np.abs(values).max() < np.finfo(dtype).max)  # NaN is not


def to_float(value: Any, dtype: DType) -> float:
    """A JSON number as a float that the dtype holds.

    Raises:
        RequestError: No number; or an int that is not exact in the dtype, or a number beyond its range.
    """
    if type(value) not in (int, float):
        raise _type_error(value, dtype)
    limits = np.finfo(dtype)
    # The shortest digits of the largest float32 lie above it; what is less than half a step above rounds back to it.
    too_large = float(limits.max) + 2.0 ** (limits.maxexp - limits.nmant - 2)
    exact = abs(value) < (2 ** (limits.nmant + 1) if type(value) is int else too_large)
    if not exact and not (type(value) is float and not math.isfinite(value)):
        raise invalid(f"Cannot convert JSON value: {printed(value)} to {_name(dtype)} without loss of precision.")
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
        return decode_base64(value)
    if not isinstance(value, str):
        raise _type_error(value, dtype)
    return utf8(value)


def utf8(text: str) -> bytes:
    """A JSON string's bytes.

    Raises:
        RequestError: It holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"JSON Value: {printed(text)} is not Unicode: half of a surrogate pair") from error


_LEAVES: dict[str, Callable[[Any, DType], Any]] = {"f": to_float, "i": _int, "u": _int, "b": _bool, "O": _string}


def decode_base64(value: dict[str, Any]) -> bytes:
    """The bytes in `{"b64": "..."}`.

    Raises:
        RequestError: It is something else, or no base64.
    """
    if not is_base64(value):
        raise invalid(f"JSON Value: {printed(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # padding may be left out
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _type_error(value: Any, dtype: DType) -> RequestError:
    return invalid(f"JSON Value: {printed(value)} Type: {type_name(value)} is not of expected type: {_name(dtype)}")


def _name(dtype: DType) -> str:
    return {"float32": "float", "float64": "double", "float16": "half", "object": "string"}.get(dtype.name, dtype.name)


def type_name(value: Any) -> str:
    """A JSON value's type as TensorFlow Serving's messages have it."""
    return str(value) if isinstance(value, bool) else _TYPES[type(value)]


def printed(value: Any) -> str:
    """A JSON value for a message, cut where it is long."""
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
    if array.dtype.kind not in "fiubO":
        dtype = tensors.dtype_name(tf.as_dtype(array.dtype).as_datatype_enum)
        raise invalid(f"Failed to write JSON value for tensor type: {dtype}")
    if array.dtype in (np.float32, np.float16):
        return shortest(array).tolist()
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


def shortest(values: Array) -> Array:
    """The float64 with the fewest digits that each float32 (or float16) reads back from, as 0.1 for float32(0.1)."""
    if values.dtype == np.float16:  # which Arrow, several times as fast as NumPy, does not print
        return values.astype(str).astype(np.float64)
    decimals: Array = pa.array(values.ravel()).cast(pa.string()).cast(pa.float64()).to_numpy()
    return decimals.reshape(values.shape)


def _nest(array: Array, convert: Callable[[Any], Any]) -> Any:
    cells = np.empty(array.size, dtype=object)
    cells[:] = [convert(value) for value in array.ravel()]
    return cells.reshape(array.shape).tolist()


def _dump(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
