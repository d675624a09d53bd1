"""TensorProto to NumPy and back, without TensorFlow, so that a client stays light.

Values are written the way TensorFlow Serving writes them: in the typed fields (`float_val`, ...), which clients in
every language read. Both those and `tensor_content` are understood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

MAX_MESSAGE_BYTES = 256 * 1024 * 1024

_LENGTH_DELIMITED = 2  # the wire type of packed repeated fields


@dataclass(frozen=True)
class _Field:
    number: int  # of tensorflow.DataType
    name: str  # as TensorFlow prints the type
    dtype: np.dtype[Any]
    field: str  # of TensorProto
    stored_as: str = ""  # NumPy type the field's values have, where it is not `dtype`


_FIELDS = (
    _Field(1, "float", np.dtype(np.float32), "float_val"),
    _Field(2, "double", np.dtype(np.float64), "double_val"),
    _Field(3, "int32", np.dtype(np.int32), "int_val"),
    _Field(4, "uint8", np.dtype(np.uint8), "int_val"),
    _Field(5, "int16", np.dtype(np.int16), "int_val"),
    _Field(6, "int8", np.dtype(np.int8), "int_val"),
    _Field(7, "string", np.dtype(object), "string_val"),
    _Field(8, "complex64", np.dtype(np.complex64), "scomplex_val", stored_as="float32"),  # pairs
    _Field(9, "int64", np.dtype(np.int64), "int64_val"),
    _Field(10, "bool", np.dtype(bool), "bool_val"),
    _Field(11, "qint8", np.dtype([("qint8", np.int8)]), "int_val", stored_as="int8"),  # as TensorFlow has them in NumPy
    _Field(12, "quint8", np.dtype([("quint8", np.uint8)]), "int_val", stored_as="uint8"),
    _Field(13, "qint32", np.dtype([("qint32", np.int32)]), "int_val", stored_as="int32"),
    _Field(14, "bfloat16", np.dtype(ml_dtypes.bfloat16), "half_val", stored_as="uint16"),
    _Field(15, "qint16", np.dtype([("qint16", np.int16)]), "int_val", stored_as="int16"),
    _Field(16, "quint16", np.dtype([("quint16", np.uint16)]), "int_val", stored_as="uint16"),
    _Field(17, "uint16", np.dtype(np.uint16), "int_val"),
    _Field(18, "complex128", np.dtype(np.complex128), "dcomplex_val", stored_as="float64"),  # pairs
    _Field(19, "half", np.dtype(np.float16), "half_val", stored_as="uint16"),  # the 16 bits as an integer
    _Field(22, "uint32", np.dtype(np.uint32), "uint32_val"),
    _Field(23, "uint64", np.dtype(np.uint64), "uint64_val"),
)
_BY_NUMBER = {field.number: field for field in _FIELDS}
_BY_DTYPE = {field.dtype: field for field in _FIELDS}


def dtype_name(number: int) -> str:
    """TensorFlow's name of a `tensorflow.DataType`, as its messages have it: 1 is `float`."""
    return _BY_NUMBER[number].name if number in _BY_NUMBER else f"DataType {number}"


def dtype_of(number: int) -> np.dtype[Any] | None:
    """The NumPy type of a `tensorflow.DataType`; strings are object; None for one that cannot be sent."""
    return _BY_NUMBER[number].dtype if number in _BY_NUMBER else None


def element_count(proto: Any) -> int:
    """How many values a TensorProto's shape declares.

    Raises:
        ValueError: The rank is unknown or a dimension is negative.
    """
    shape = proto.tensor_shape
    sizes = [dimension.size for dimension in shape.dim]
    if shape.unknown_rank or any(size < 0 for size in sizes):
        raise ValueError(f"a tensor needs a known shape, got {sizes or 'unknown rank'}")
    return math.prod(sizes)


def fill(proto: Any, values: Any) -> None:
    """Writes `values` into an empty TensorProto.

    Args:
        proto: The message to fill, for example `request.inputs[name]`.
        values: An array, or what `np.asarray` takes; strings are `bytes` or `str`.

    Raises:
        ValueError: The values have a type that no TensorProto holds.
    """
    array = np.asarray(values)
    if array.dtype.kind in "SU":  # a fixed width, in which NumPy drops zeros at the end
        array = array.astype(object) if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    field = _BY_DTYPE.get(array.dtype)
    if field is None:
        raise ValueError(
            f"cannot send values of type {array.dtype}: expected one of {', '.join(f.name for f in _FIELDS)}"
        )
    proto.dtype = field.number
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    flat = array.ravel()
    if field.name == "string":
        proto.string_val.extend([value.encode() if isinstance(value, str) else value for value in flat])
        return
    stored = flat.view(field.stored_as) if field.stored_as else flat
    if stored.dtype.kind == "f":
        _append_packed(proto, field.field, stored)
    else:
        getattr(proto, field.field).extend(stored.tolist())


def _append_packed(proto: Any, name: str, values: np.ndarray[Any, Any]) -> None:
    """Extends a repeated field of floats by an array's own bytes, as the wire has them: no loop over values."""
    header = bytearray([proto.DESCRIPTOR.fields_by_name[name].number << 3 | _LENGTH_DELIMITED])
    length = values.nbytes
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    proto.MergeFromString(bytes(header) + values.tobytes())


def to_array(proto: Any) -> np.ndarray[Any, Any]:
    """The array in a TensorProto; strings come as an object array of `bytes`.

    Raises:
        ValueError: A type that NumPy has no counterpart of, or values that do not fill the shape.
    """
    field = _BY_NUMBER.get(proto.dtype)
    if field is None:
        raise ValueError(f"cannot read a tensor of {dtype_name(proto.dtype)}")
    shape = [dimension.size for dimension in proto.tensor_shape.dim]
    count = element_count(proto)
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype=field.dtype).copy().reshape(shape)
    stored = getattr(proto, field.field)
    values = np.fromiter(stored, field.stored_as or field.dtype, len(stored)).view(field.dtype)
    if 0 < len(values) < count:  # the last value stands for the rest
        values = np.concatenate([values, np.repeat(values[-1:], count - len(values))])
    return values.reshape(shape)
