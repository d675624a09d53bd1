"""Classify, Regress and MultiInference: tf.Examples in, classes or values out.

As TensorFlow Serving does by default, a signature is judged by its tensors and not by its `method_name`, which a TF2
export cannot set: input `inputs`; outputs `classes` and/or `scores` to classify, `outputs` to regress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from serving import tensors
from serving.model_server.errors import RequestError, invalid
from serving.model_server.metrics import Call
from serving.model_server.predict import answering_spec, printed, run
from serving.model_server.servable import DEFAULT_SIGNATURE, Servable, Signature

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

_INPUT = "inputs"
_VALUES = "outputs"

Array = np.ndarray[Any, Any]


def classify(servable: Servable, request: Any, call: Call) -> Any:
    """Answers a ClassificationRequest with a ClassificationResponse.

    Raises:
        RequestError: The signature does not classify, there are no examples, or the model refused them.
    """
    return classification_pb2.ClassificationResponse(**_answer(servable, request, call, CLASSIFY))


def regress(servable: Servable, request: Any, call: Call) -> Any:
    """Answers a RegressionRequest with a RegressionResponse.

    Raises:
        RequestError: The signature does not regress, there are no examples, or the model refused them.
    """
    return regression_pb2.RegressionResponse(**_answer(servable, request, call, REGRESS))


def _answer(servable: Servable, request: Any, call: Call, method: str) -> dict[str, Any]:
    signature = _signature(servable, request.model_spec, "No signature was found with the name: {}")
    check, convert = _METHODS[method]
    check(signature)
    result = convert(*_run(signature, _examples(request.input, call), call))
    return {"model_spec": answering_spec(servable, request.model_spec), "result": result}


def multi_inference(servable: Servable, request: Any, call: Call) -> Any:
    """Answers a MultiInferenceRequest, several signatures for the same examples, with a MultiInferenceResponse.

    Raises:
        RequestError: A task does not fit the model or the others, there are no examples, or the model refused them.
    """
    signatures = _task_signatures(servable, request.tasks)
    examples = _examples(request.input, call)
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures, strict=True):
        result = _METHODS[task.method_name][1](*_run(signature, examples, call))
        answer = response.results.add(model_spec=answering_spec(servable, task.model_spec))
        field = answer.classification_result if task.method_name == CLASSIFY else answer.regression_result
        field.CopyFrom(result)
    return response


def _task_signatures(servable: Servable, tasks: Any) -> list[Signature]:
    signatures: dict[str, Signature] = {}
    for task in tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        signatures[name] = _signature(servable, task.model_spec, "Requested signature not found in model graph: {}")
        if task.method_name not in _METHODS:
            message = f"Unsupported signature method_name: {task.method_name}"
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, message)
        _METHODS[task.method_name][0](signatures[name])
    return list(signatures.values())


def _signature(servable: Servable, spec: Any, missing: str) -> Signature:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(missing.format(name))
    return servable.signatures[name]


def _check_classifies(signature: Signature) -> None:
    _check_input(signature, "classification")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if not {"classes", "scores"} & set(signature.outputs):
        raise RequestError(
            grpc.StatusCode.FAILED_PRECONDITION,
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {','.join(signature.outputs)}",
        )


def _check_regresses(signature: Signature) -> None:
    _check_input(signature, "regression")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if _VALUES not in signature.outputs:
        message = f"No regression outputs found in SignatureDef: {','.join(signature.outputs)}"
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)


def _check_input(signature: Signature, task: str) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if _INPUT not in signature.inputs:
        message = f"No {task} inputs found in SignatureDef: {','.join(signature.inputs)}"
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)
    if signature.inputs[_INPUT].dtype != tf.string:
        given = tensors.dtype_name(signature.inputs[_INPUT].dtype.as_datatype_enum)
        raise invalid(f"Expects arg[0] to be {given} but string is provided (input {_INPUT})")


def _examples(message: Any, call: Call) -> list[bytes]:
    """The serialized tf.Examples of an Input; what their common context holds is in each of them."""
    context, examples = b"", message.example_list.examples
    if message.WhichOneof("kind") == "example_list_with_context":
        examples = message.example_list_with_context.examples
        context = message.example_list_with_context.context.SerializeToString()
    if not examples:
        raise invalid("Input is empty.")
    call.examples = len(examples)
    # Messages that follow each other merge, and of a feature that both have the later counts.
    return [context + example.SerializeToString() for example in examples]


def _run(signature: Signature, examples: list[bytes], call: Call) -> tuple[dict[str, Array], int]:
    return run(signature, {_INPUT: np.array(examples, object)}, call), len(examples)


def _classes(outputs: Mapping[str, Array], count: int) -> Any:
    known = {"classes": (object, "DT_STRING"), "scores": (np.float32, "DT_FLOAT")}
    found = {name: outputs[name] for name in known if name in outputs}
    for name, array in found.items():
        dtype, dtype_name = known[name]
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if array.dtype != dtype:
            raise invalid(f"Expected {name} Tensor of {dtype_name}. Got: {_data_type(array)}")
        if len(array) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    sizes = [array.shape[1] for array in found.values()]
    if len(set(sizes)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {sizes[0]} vs. {sizes[1]}")
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        into = result.classifications.add().classes
        for column in range(sizes[0]):
            one = into.add()
            if "classes" in found:
                one.label = found["classes"][row, column].decode(errors="replace")
            if "scores" in found:
                one.score = found["scores"][row, column]
    return result


def _regressions(outputs: Mapping[str, Array], count: int) -> Any:
    values = outputs[_VALUES]
    if values.ndim != 1 and not (values.ndim == 2 and values.shape[1] == 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(values)}"
        )
    if len(values) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_data_type(values)}")
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result


_METHODS: dict[str, tuple[Callable[[Signature], None], Callable[[Mapping[str, Array], int], Any]]] = {
    CLASSIFY: (_check_classifies, _classes),
    REGRESS: (_check_regresses, _regressions),
}


def _shape(array: Array) -> str:
    return printed(tf.TensorShape(array.shape))


def _data_type(array: Array) -> str:
    return f"DT_{tensors.dtype_name(tf.as_dtype(array.dtype).as_datatype_enum).upper()}"
