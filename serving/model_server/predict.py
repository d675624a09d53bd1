"""From a PredictRequest to a PredictResponse: check against the signature, run, encode.

Checks, their order and their wording follow TensorFlow Serving, so that a client cannot tell the difference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError, EncodeError
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving import tensors
from serving.model_server.errors import RequestError, from_tensorflow, invalid
from serving.model_server.metrics import Call
from serving.model_server.servable import DEFAULT_SIGNATURE, Servable, Signature

Array = np.ndarray[Any, Any]

_QUOTED_BYTES = 20_000  # of a message; it may quote 100 MB, and is cut further
_STRING_BYTES = 24  # what one string takes in a tensor, before its content


def predict(servable: Servable, request: Any, call: Call) -> Any:
    """Answers a PredictRequest from a loaded model.

    Args:
        servable: The version that the request's ModelSpec asks for.
        request: tensorflow.serving.PredictRequest.
        call: Takes the time the model needed.

    Returns:
        tensorflow.serving.PredictResponse, with the outputs of `output_filter`, or all.

    Raises:
        RequestError: The request does not fit the signature, or the model refused it.
    """
    signature = servable.signature(request.model_spec.signature_name)
    _check_names(request.inputs, signature)
    wanted = _wanted(request.output_filter, signature)
    inputs = {
        name: _tensor(request.inputs[name], name, position, spec)
        for position, (name, spec) in enumerate(signature.inputs.items())
    }
    outputs = run(signature, inputs, call)
    response = predict_pb2.PredictResponse(model_spec=answering_spec(servable, request.model_spec))
    for name in wanted:
        _put(response.outputs[name], name, outputs[name])
    return response


def run(signature: Signature, inputs: Mapping[str, Array], call: Call) -> dict[str, Array]:
    """What the model answers, by output name, to arrays of the dtypes of the signature's inputs.

    Raises:
        RequestError: A shape or the number of rows does not fit, the model refused the values, or an output is sparse.
    """
    for name, array in inputs.items():
        shape = tf.TensorShape(array.shape)
        _check_shape(name, shape, signature.inputs[name])
        _check_rows(shape, signature.inputs[name], call.max_rows)
    started = time.perf_counter()
    try:
        return signature.call(**inputs)
    except tf.errors.OpError as error:
        raise from_tensorflow(error.error_code, error.message) from error
    except UnicodeDecodeError as error:
        # TensorFlow's bindings cannot raise a message that quotes bytes of the request, and the code is lost with it.
        quoted = error.object[:_QUOTED_BYTES].decode(errors="backslashreplace")
        raise from_tensorflow(tf.errors.INVALID_ARGUMENT, quoted) from error
    finally:
        call.runtime_seconds += time.perf_counter() - started


def answering_spec(servable: Servable, asked: Any) -> Any:
    """The ModelSpec of a response: which model, version and signature answered."""
    spec = model_pb2.ModelSpec(name=servable.name, signature_name=asked.signature_name or DEFAULT_SIGNATURE)
    spec.version.value = servable.version
    return spec


def _check_names(inputs: Mapping[str, Any], signature: Signature) -> None:
    sent, expected = sorted(inputs), sorted(signature.inputs)
    if len(sent) != len(expected):
        extra = ",".join(sorted(set(sent) - set(expected)))
        missing = ",".join(sorted(set(expected) - set(sent)))
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(expected)} len({{{','.join(sent)}}}) != "
            f"len({{{','.join(expected)}}}). Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
        )
    for name in sent:
        if name not in signature.inputs:
            raise invalid(
                f"input tensor alias not found in signature: {name}. "
                f"Inputs expected to be in the set {{{','.join(expected)}}}."
            )


def _wanted(output_filter: Sequence[str], signature: Signature) -> Sequence[str]:
    for index, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{','.join(signature.outputs)}}}."
            )
        if name in output_filter[:index]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return output_filter or tuple(signature.outputs)


def _tensor(proto: Any, name: str, position: int, spec: tf.TensorSpec) -> Array:
    if proto.dtype != spec.dtype.as_datatype_enum:
        raise invalid(
            f"Expects arg[{position}] to be {tensors.dtype_name(spec.dtype.as_datatype_enum)} but "
            f"{tensors.dtype_name(proto.dtype)} is provided (input {name})"
        )
    try:
        count = tensors.element_count(proto)
    except ValueError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from error
    shape = tf.TensorShape([dimension.size for dimension in proto.tensor_shape.dim])
    _check_shape(name, shape, spec)  # before a large tensor is made
    # One value may stand for a whole tensor, so that a few bytes could ask for all the memory there is.
    if _bytes_in_memory(proto, count, spec.dtype) > tensors.MAX_MESSAGE_BYTES:
        raise invalid(f"input {name} of shape {printed(shape)} is larger than {tensors.MAX_MESSAGE_BYTES} bytes")
    try:
        array = np.asarray(tf.io.parse_tensor(proto.SerializeToString(), spec.dtype))
    except (tf.errors.OpError, DecodeError, EncodeError) as error:
        raise invalid(f"tensor parsing error: {name}") from error
    return array.view(spec.dtype.as_numpy_dtype) if spec.dtype.is_quantized else array  # which come as plain integers


def _check_shape(name: str, shape: tf.TensorShape, spec: tf.TensorSpec) -> None:
    if not spec.shape.is_compatible_with(shape):
        raise invalid(f"input {name} has incompatible shape {printed(shape)}: expected {printed(spec.shape)}")


def _check_rows(shape: tf.TensorShape, spec: tf.TensorSpec, most: float) -> None:
    if shape.rank and shape[0] > most and not spec.shape[:1].is_fully_defined():
        raise invalid(f"Task size {shape[0]} is larger than maximum input batch size {most}")


def _bytes_in_memory(proto: Any, count: int, dtype: tf.DType) -> int:
    """What the tensor takes once TensorFlow has filled its shape, repeating the last value sent."""
    if dtype != tf.string:
        return count * int(dtype.size)
    sent = proto.string_val
    repeated = max(count - len(sent), 0) * len(sent[-1]) if sent else 0
    return count * _STRING_BYTES + repeated


def printed(shape: tf.TensorShape) -> str:
    """A shape as TensorFlow Serving prints it: `[-1,2]`."""
    if shape.rank is None:
        return "[?]"
    return f"[{','.join('-1' if size is None else str(size) for size in shape.as_list())}]"


def _put(proto: Any, name: str, output: Array) -> None:
    try:
        tensors.fill(proto, output)
    except ValueError as error:  # a quantized type
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"output {name} cannot be sent: {error}") from error
