"""TensorProto without TensorFlow, against TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tensorflow.core.framework import tensor_pb2

from serving import tensors

NUMERIC = [np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64]
NUMERIC += [np.uint8, np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128]
ARRAYS = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_dims=3))
)


def filled(values):
    proto = tf.make_tensor_proto(0)
    proto.Clear()
    tensors.fill(proto, values)
    return proto


@given(ARRAYS)
def test_tensorflow_reads_what_is_written_bit_for_bit(array):
    read = tf.make_ndarray(filled(array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(ARRAYS)
def test_what_tensorflow_writes_is_read_in_both_its_encodings(array):
    in_content = tf.make_tensor_proto(array)
    in_fields = filled(array)
    for proto in (in_content, in_fields):
        read = tensors.to_array(proto)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_bfloat16_is_read_and_written_bit_for_bit():
    array = tf.constant([[1.5, -0.0], [float("inf"), 3e38]], tf.bfloat16).numpy()
    for proto in (filled(array), tf.make_tensor_proto(array)):
        assert tf.make_ndarray(proto).tobytes() == array.tobytes()
        assert (tensors.to_array(proto).dtype, tensors.to_array(proto).tobytes()) == (array.dtype, array.tobytes())


@pytest.mark.parametrize("dtype", [tf.qint8, tf.quint8, tf.qint16, tf.quint16, tf.qint32], ids=lambda d: d.name)
def test_quantized_values_are_read_and_written(dtype):
    integers = np.array([3, 100, 1], dtype.as_numpy_dtype[0])
    array = integers.view(dtype.as_numpy_dtype)
    assert filled(array).int_val == [3, 100, 1]
    for proto in (filled(array), tf.make_tensor_proto(array)):
        assert proto.dtype == dtype.as_datatype_enum
        np.testing.assert_array_equal(tensors.to_array(proto), array)
        np.testing.assert_array_equal(tf.io.parse_tensor(proto.SerializeToString(), dtype), integers)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 4095, 4096, 600_000])  # lengths of one to four bytes on the wire
def test_floats_lie_in_their_typed_field(size):
    array = np.arange(size, dtype=np.float32)
    proto = filled(array)
    assert not proto.tensor_content
    np.testing.assert_array_equal(np.array(proto.float_val, np.float32), array)
    assert proto == tensor_pb2.TensorProto(dtype=1, tensor_shape=proto.tensor_shape, float_val=array.tolist())


@given(st.lists(st.binary(max_size=5), max_size=4))
def test_bytes_survive(values):
    array = np.array(values, dtype=object)
    for sent in [array, values] if values else [array]:  # from a list too, of which NumPy would drop zeros at the end
        np.testing.assert_array_equal(tensors.to_array(filled(sent)), array)


def test_strings_are_sent_as_utf8():
    assert tensors.to_array(filled(["é", "b"])).tolist() == ["é".encode(), b"b"]


def test_the_last_value_stands_for_the_rest():
    proto = filled(np.array([1.0, 2.0], np.float32))
    proto.tensor_shape.dim[0].size = 4
    assert tensors.to_array(proto).tolist() == [1.0, 2.0, 2.0, 2.0]


def test_a_type_that_cannot_be_sent_is_named():
    with pytest.raises(ValueError, match=r"cannot send values of type datetime64\[s\]"):
        filled(np.zeros(2, "datetime64[s]"))


@pytest.mark.parametrize("sizes", [[-1], [2, -3]])
def test_a_negative_dimension_is_refused(sizes):
    proto = filled(np.zeros(1, np.float32))
    del proto.tensor_shape.dim[:]
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    with pytest.raises(ValueError, match="needs a known shape"):
        tensors.element_count(proto)
