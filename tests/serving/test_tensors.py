"""TensorProto without TensorFlow, against TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serving import tensors

NUMERIC = [np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64]
NUMERIC += [np.uint8, np.uint16, np.uint32, np.uint64, np.bool_]
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


@given(st.lists(st.binary(max_size=5), max_size=4))
def test_bytes_survive(values):
    array = np.array(values, dtype=object)
    np.testing.assert_array_equal(tensors.to_array(filled(array)), array)


def test_strings_are_sent_as_utf8():
    assert tensors.to_array(filled(["é", "b"])).tolist() == ["é".encode(), b"b"]


def test_the_last_value_stands_for_the_rest():
    proto = filled(np.array([1.0, 2.0], np.float32))
    proto.tensor_shape.dim[0].size = 4
    assert tensors.to_array(proto).tolist() == [1.0, 2.0, 2.0, 2.0]


def test_a_type_that_cannot_be_sent_is_named():
    with pytest.raises(ValueError, match="cannot send values of type complex64"):
        filled(np.zeros(2, np.complex64))


@pytest.mark.parametrize("sizes", [[-1], [2, -3]])
def test_a_negative_dimension_is_refused(sizes):
    proto = filled(np.zeros(1, np.float32))
    del proto.tensor_shape.dim[:]
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    with pytest.raises(ValueError, match="needs a known shape"):
        tensors.element_count(proto)
