"""PredictionService, ModelService and health over a real channel."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature="two", model="scaler", version=None, label=None, **inputs):
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    if label is not None:
        message.model_spec.version_label = label
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def good():
    return request(a=np.array([[1, 2], [3, 4]], np.float32), n=np.array([5, 6], np.int64))


def refusal(call, message) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(message, timeout=10)
    return error.value.code(), error.value.details()


def test_predict_answers_what_the_model_answers(stub, saved):
    answer = stub.Predict(good(), timeout=10)
    model = tf.saved_model.load(str(saved / "scaler" / "2"))
    expected = model.signatures["two"](a=tf.constant([[1.0, 2.0], [3.0, 4.0]]), n=tf.constant([5, 6], tf.int64))
    assert sorted(answer.outputs) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs[name]), value)
    # [1 + 2, 3 + 4] * factor 3 of version 2
    assert list(answer.outputs["sum"].float_val) == [9.0, 21.0]
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("scaler", 2, "two")


def test_a_version_can_be_chosen_and_the_newest_is_the_default(stub):
    for version, factor in ((1, 2.0), (2, 3.0), (None, 3.0)):
        answer = stub.Predict(request("one", version=version, x=np.ones(1, np.float32)), timeout=10)
        assert list(answer.outputs["y"].float_val) == [factor]


def test_an_empty_signature_name_means_serving_default(stub):
    answer = stub.Predict(request("", examples=np.array([b"", b""], object)), timeout=10)
    assert list(answer.outputs["score"].float_val) == [3.0, 3.0]  # missing x is 1, factor 3
    assert answer.model_spec.signature_name == "serving_default"


def test_output_filter_returns_only_what_it_names(stub):
    message = good()
    message.output_filter.append("n")
    answer = stub.Predict(message, timeout=10)
    assert list(answer.outputs) == ["n"]
    assert list(answer.outputs["n"].int64_val) == [5, 6]


def test_every_dtype_comes_back_as_it_went(stub):
    sent = {
        "float": np.array([1.5, np.nan, -np.inf], np.float32),
        "double": np.array([1e300, np.inf], np.float64),
        "half": np.array([0.5, 65504], np.float16),
        "int32": np.array([-(2**31)], np.int32),
        "int64": np.array([2**63 - 1, -(2**63)], np.int64),
        "uint8": np.array([255], np.uint8),
        "int8": np.array([-128], np.int8),
        "uint64": np.array([2**64 - 1], np.uint64),
        "bool": np.array([True, False]),
        "text": np.array(["é".encode()], object),
        "raw_bytes": np.array([b"\x00\xff", b""], object),
    }
    answer = stub.Predict(request("echo", **sent), timeout=10)
    for name, value in sent.items():
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs[name]), value, err_msg=name)


def test_a_batch_of_none_is_answered_with_none(stub):
    answer = stub.Predict(request("one", x=np.zeros(0, np.float32)), timeout=10)
    assert answer.outputs["y"].tensor_shape.dim[0].size == 0


A = np.zeros((1, 2), np.float32)
N = np.zeros(1, np.int64)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (request(model="nobody"), NOT_FOUND, "Servable not found for request: Latest(nobody)"),
        (request(model="../scaler"), NOT_FOUND, "Servable not found for request: Latest(../scaler)"),
        (request(version=7), NOT_FOUND, "Servable not found for request: Specific(scaler, 7)"),
        (request(version=-1), NOT_FOUND, "Servable not found for request: Specific(scaler, -1)"),
        (request(label="canary"), INVALID, "Unrecognized servable version label: canary"),
        (request("nothing"), grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "nothing" not found.'),
        (predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
        (request(model=""), INVALID, "ModelSpec has no name specified."),
        (
            request(a=A),
            INVALID,
            "input size does not match signature: 1!=2 len({a}) != len({a,n}). Sent extra: {}. "
            "Missing but required: {n}.",
        ),
        (
            request(a=A, n=N, z=N),
            INVALID,
            "input size does not match signature: 3!=2 len({a,n,z}) != len({a,n}). Sent extra: {z}. "
            "Missing but required: {}.",
        ),
        (
            request(a=A, z=N),
            INVALID,
            "input tensor alias not found in signature: z. Inputs expected to be in the set {a,n}.",
        ),
        (request(a=A, n=A), INVALID, "Expects arg[1] to be int64 but float is provided (input n)"),
        (
            request(a=A, n=np.array([b"x"], object)),
            INVALID,
            "Expects arg[1] to be int64 but string is provided (input n)",
        ),
        (request(a=np.zeros(2, np.float32), n=N), INVALID, "input a has incompatible shape [2]: expected [-1,2]"),
        (
            request(a=np.zeros((1, 3), np.float32), n=N),
            INVALID,
            "input a has incompatible shape [1,3]: expected [-1,2]",
        ),
        (request("one", x=np.float32(1)), INVALID, "input x has incompatible shape []: expected [-1]"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_servings_words(stub, message, code, details):
    assert refusal(stub.Predict, message) == (code, details)


def test_the_output_filter_is_checked(stub):
    unknown, twice = good(), good()
    unknown.output_filter.append("score")
    twice.output_filter.extend(["n", "n"])
    assert refusal(stub.Predict, unknown) == (
        INVALID,
        "output tensor alias not found in signature: score Outputs expected to be in the set {n,sum}.",
    )
    assert refusal(stub.Predict, twice) == (INVALID, "duplicate output tensor alias: n")


def test_what_an_op_refuses_keeps_its_code_and_words(stub):
    code, details = refusal(stub.Predict, request("pick", indices=np.array([7], np.int32)))
    assert code is INVALID
    assert "index too large" in details
    assert "stack traces" not in details


def hostile_tensors():
    for sizes, values in (([-1], [1.0]), ([-5, 2], []), ([2**62], [1.0]), ([2**40, 2**40], [1.0])):
        message = request("anything", x=np.float32(0))
        tensor = message.inputs["x"]
        tensor.Clear()
        tensor.dtype = 1
        tensor.float_val.extend(values)
        for size in sizes:
            tensor.tensor_shape.dim.add().size = size
        yield message
    unknown_rank = request("anything", x=np.float32(0))
    unknown_rank.inputs["x"].tensor_shape.unknown_rank = True
    yield unknown_rank
    short = request("anything", x=np.zeros(4, np.float32))
    short.inputs["x"].tensor_content = b"123"
    yield short
    no_type = request("anything", x=np.float32(0))
    no_type.inputs["x"].dtype = 0
    yield no_type
    deep = request("anything", x=np.float32(0))
    for _ in range(300):
        deep.inputs["x"].tensor_shape.dim.add().size = 1
    yield deep


@pytest.mark.parametrize("message", hostile_tensors())
def test_a_malformed_tensor_is_refused_and_the_server_lives(stub, message):
    code, details = refusal(stub.Predict, message)
    assert code is INVALID
    assert "x" in details
    assert list(stub.Predict(good(), timeout=10).outputs["sum"].float_val) == [9.0, 21.0]


def test_a_few_bytes_cannot_ask_for_all_the_memory(stub):
    message = request("anything", x=np.float32(0))
    message.inputs["x"].tensor_shape.dim.add().size = 2**27  # one value stands for all: 2**27 * 4 bytes = 512 MiB
    expected = (INVALID, "input x of shape [134217728] is larger than 268435456 bytes")
    assert refusal(stub.Predict, message) == expected


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (10_000_000, b"x" * 1_000_000),  # 10 TB of repeated text, though 10_000_000 * 24 bytes of strings would pass
        (300, b"x" * 1_000_000),  # 300 * 24 bytes of strings and 299 MB of repeated text
        (2**24, b""),  # 2**24 * 24 bytes of empty strings = 384 MiB
    ],
)
def test_one_string_cannot_ask_for_all_the_memory(stub, size, text):
    message = request("", examples=np.array([text], object))
    message.inputs["examples"].tensor_shape.dim[0].size = size
    before = time.monotonic()
    assert refusal(stub.Predict, message) == (
        INVALID,
        f"input examples of shape [{size}] is larger than 268435456 bytes",
    )
    assert time.monotonic() - before < 5


def test_a_last_string_may_stand_for_a_few_more(stub):
    message = request("", examples=np.array([b""], object))
    message.inputs["examples"].tensor_shape.dim[0].size = 3
    assert list(stub.Predict(message, timeout=10).outputs["score"].float_val) == [3.0] * 3


def test_examples_that_are_none_are_refused_by_the_model(stub):
    code, details = refusal(stub.Predict, request("serving_default", examples=np.array([b"\xff\xff"], object)))
    assert code is INVALID
    assert "parse" in details


def test_a_long_message_is_cut_to_fit_a_header(stub):
    code, details = refusal(stub.Predict, request(a=A, n=N, **{"z" * 20_000: N}))
    assert code is INVALID
    assert len(details) < 2100


def test_metadata_holds_the_signatures(stub):
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "scaler"
    answer = stub.GetModelMetadata(message, timeout=10)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("scaler", 2)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    two = signatures.signature_def["two"]
    assert {name: info.dtype for name, info in two.inputs.items()} == {"a": 1, "n": 9}  # DT_FLOAT, DT_INT64
    assert sorted(two.outputs) == ["n", "sum"]
    assert two.method_name == "tensorflow/serving/predict"


def test_metadata_requests_are_checked(stub):
    message = get_model_metadata_pb2.GetModelMetadataRequest()
    message.model_spec.name = "scaler"
    needs_one = "GetModelMetadataRequest must specify at least one metadata_field"
    assert refusal(stub.GetModelMetadata, message) == (INVALID, needs_one)
    message.metadata_field.append("weights")
    assert refusal(stub.GetModelMetadata, message) == (INVALID, "Metadata field weights is not supported")
    message.metadata_field[:] = ["signature_def"]
    message.model_spec.name = "nobody"
    assert refusal(stub.GetModelMetadata, message)[0] is NOT_FOUND


def test_status_lists_versions_and_finds_one(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_status_pb2.GetModelStatusRequest()
    assert refusal(stub.GetModelStatus, message) == (INVALID, "Missing ModelSpec")
    message.model_spec.name = "nobody"
    assert refusal(stub.GetModelStatus, message) == (NOT_FOUND, "Could not find any versions of model nobody")
    message.model_spec.name = "scaler"
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    found = stub.GetModelStatus(message, timeout=10).model_version_status
    assert [(status.version, status.state, status.status.error_code) for status in found] == [
        (2, available, 0),
        (1, available, 0),
    ]
    message.model_spec.version.value = 1
    assert [status.version for status in stub.GetModelStatus(message, timeout=10).model_version_status] == [1]
    message.model_spec.version.value = 9
    assert refusal(stub.GetModelStatus, message) == (NOT_FOUND, "Could not find version 9 of model scaler")


def test_health_is_serving_when_the_models_are_loaded(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_eight_threads_get_each_their_own_answers(stub):
    def ask(thread: int) -> int:
        correct = 0
        for index in range(50):
            value = thread * 1000 + index
            message = request("two", a=np.full((3, 2), value, np.float32), n=np.full(3, value, np.int64))
            answer = stub.Predict(message, timeout=30)
            # two columns of `value`, times factor 3
            correct += list(answer.outputs["sum"].float_val) == [6.0 * value] * 3
            correct += list(answer.outputs["n"].int64_val) == [value] * 3
        return correct

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [100] * 8
