"""Classify, Regress and MultiInference over gRPC and REST, metrics, readiness and reflection."""

import http.client
import json
import re
import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.model_server import json_examples
from serving.model_server.errors import RequestError
from serving.model_server.options import Options
from serving.model_server.server import Server, start

INVALID, FAILED, UNIMPLEMENTED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
EXAMPLES = tf.TensorSpec([None], tf.string, name="inputs")


QUANTIZED = (tf.qint8, tf.quint8, tf.qint16, tf.quint16, tf.qint32)
RARE = (*QUANTIZED, tf.int16, tf.uint16, tf.uint32)


class Judge(tf.Module):
    """Of an example's x and offset: class scores (x, x + offset), and the value 2 x + offset."""

    def _parse(self, inputs):
        number = tf.io.FixedLenFeature([], tf.float32, default_value=0.0)
        parsed = tf.io.parse_example(inputs, {"x": number, "offset": number})
        return parsed["x"], parsed["offset"]

    @tf.function(input_signature=[EXAMPLES])
    def classify(self, inputs):
        x, offset = self._parse(inputs)
        names = tf.tile([["low", "high"]], [tf.size(inputs), 1])
        return {"classes": names, "scores": tf.stack([x, x + offset], axis=1)}

    @tf.function(input_signature=[EXAMPLES])
    def scores(self, inputs):
        return {"scores": self.classify(inputs)["scores"]}

    @tf.function(input_signature=[EXAMPLES])
    def flat_scores(self, inputs):
        return {"scores": self.classify(inputs)["scores"][:, 0]}

    @tf.function(input_signature=[EXAMPLES])
    def whole_scores(self, inputs):
        return {"scores": tf.cast(self.classify(inputs)["scores"], tf.int64)}

    @tf.function(input_signature=[EXAMPLES])
    def too_few(self, inputs):
        return {"scores": self.classify(inputs)["scores"][:1]}

    @tf.function(input_signature=[EXAMPLES])
    def uneven(self, inputs):
        return {"classes": self.classify(inputs)["classes"][:, :1], "scores": self.classify(inputs)["scores"]}

    @tf.function(input_signature=[EXAMPLES])
    def regress(self, inputs):
        x, offset = self._parse(inputs)
        return {"outputs": 2 * x + offset}

    @tf.function(input_signature=[EXAMPLES])
    def regress_column(self, inputs):
        return {"outputs": self.regress(inputs)["outputs"][:, None]}

    @tf.function(input_signature=[EXAMPLES])
    def regress_wide(self, inputs):
        return {"outputs": self.classify(inputs)["scores"]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def elsewhere(self, examples):
        return {"outputs": self.regress(examples)["outputs"]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bfloat16), tf.TensorSpec([], tf.complex64)])
    def unusual(self, b, c):
        return {"b": b, "c": c, "d": tf.cast(c, tf.complex128), "text_bytes": tf.constant(b"nul\x00"), "q": b * b}

    @tf.function
    def rare(self, **inputs):
        return {name: tf.identity(value) for name, value in inputs.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("judges")
    model = Judge()
    names = ["scores", "flat_scores", "whole_scores", "too_few", "uneven", "regress", "regress_column", "regress_wide"]
    names += ["elsewhere", "unusual"]
    signatures = {name: getattr(model, name) for name in names} | {"serving_default": model.classify}
    rare = {dtype.name: tf.TensorSpec([None], dtype, name=dtype.name) for dtype in RARE}
    signatures["rare"] = model.rare.get_concrete_function(**rare)
    tf.saved_model.save(model, str(path / "judge" / "5"), signatures=signatures)
    (path / "monitoring.config").write_text('prometheus_config { enable: true path: "/own/metrics" }')
    return path


@pytest.fixture(scope="module")
def server(folder):
    config = str(folder / "monitoring.config")
    options = Options(models=str(folder), port=0, rest_api_port=0, latest=1, monitoring_config_file=config)
    with Server(options) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def ask(server):
    def send(method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        return response.status, content

    return send


def example(**numbers):
    features = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[x])) for name, x in numbers.items()}
    return tf.train.Example(features=tf.train.Features(feature=features))


def listed(*examples):
    return input_pb2.Input(example_list=input_pb2.ExampleList(examples=examples))


def in_context(context, *examples):
    message = input_pb2.ExampleListWithContext(context=context, examples=examples)
    return input_pb2.Input(example_list_with_context=message)


def asked(message, signature="", given=None, model="judge", **fields):
    request = message(**fields, input=given if given is not None else listed(example(x=1.0)))
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    return request


def classification(signature="", given=None):
    return asked(classification_pb2.ClassificationRequest, signature, given)


def regression(signature="regress", given=None):
    return asked(regression_pb2.RegressionRequest, signature, given)


def task(signature, method, model="judge"):
    made = inference_pb2.InferenceTask(method_name=f"tensorflow/serving/{method}")
    made.model_spec.name = model
    made.model_spec.signature_name = signature
    return made


def refusal(call, message):
    with pytest.raises(grpc.RpcError) as error:
        call(message, timeout=10)
    return error.value.code(), error.value.details()


def test_classify_gives_labels_and_scores(stub):
    answer = stub.Classify(classification(given=listed(example(x=1.0, offset=0.5), example())), timeout=10)
    rows = [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]
    assert rows == [[("low", 1.0), ("high", 1.5)], [("low", 0.0), ("high", 0.0)]]
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("judge", 5, "serving_default")


def test_classify_without_classes_leaves_labels_empty(stub):
    answer = stub.Classify(classification("scores"), timeout=10)
    assert [(one.label, one.score) for one in answer.result.classifications[0].classes] == [("", 1.0), ("", 1.0)]


@pytest.mark.parametrize("signature", ["regress", "regress_column"])
def test_regress_gives_a_value_an_example(stub, signature):
    answer = stub.Regress(regression(signature, listed(example(x=1.0), example(x=-2.0, offset=1.0))), timeout=10)
    assert [one.value for one in answer.result.regressions] == [2.0, -3.0]


def test_a_context_is_in_every_example_and_an_examples_own_feature_wins(stub):
    given = in_context(example(offset=10.0), example(x=1.0), example(x=1.0, offset=3.0))
    answer = stub.Regress(regression(given=given), timeout=10)
    assert [one.value for one in answer.result.regressions] == [12.0, 5.0]


def test_multi_inference_runs_several_signatures_on_the_same_examples(stub):
    tasks = [task("serving_default", "classify"), task("regress", "regress")]
    request = inference_pb2.MultiInferenceRequest(tasks=tasks, input=in_context(example(offset=1.0), example(x=2.0)))
    first, second = stub.MultiInference(request, timeout=10).results
    assert [(one.label, one.score) for one in first.classification_result.classifications[0].classes] == [
        ("low", 2.0),
        ("high", 3.0),
    ]
    assert [one.value for one in second.regression_result.regressions] == [5.0]
    assert (second.model_spec.signature_name, second.model_spec.version.value) == ("regress", 5)


@pytest.mark.parametrize(
    ("method", "request_", "code", "details"),
    [
        ("Classify", classification("nothing"), INVALID, "No signature was found with the name: nothing"),
        ("Classify", classification(given=input_pb2.Input()), INVALID, "Input is empty."),
        ("Classify", classification(given=in_context(example())), INVALID, "Input is empty."),
        ("Classify", classification("elsewhere"), FAILED, "No classification inputs found in SignatureDef: examples"),
        ("Classify", classification("regress"), FAILED, "Expected classification signature outputs to contain"),
        (
            "Classify",
            classification("flat_scores"),
            INVALID,
            "Expected Tensor shape: [batch_size num_classes] but got [1]",
        ),
        ("Classify", classification("whole_scores"), INVALID, "Expected scores Tensor of DT_FLOAT. Got: DT_INT64"),
        (
            "Classify",
            classification("too_few", listed(example(), example())),
            INVALID,
            "Expected scores output batch size of 2. Got: 1",
        ),
        (
            "Classify",
            classification("uneven"),
            INVALID,
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
        ("Classify", classification("unusual"), INVALID, "Expected one input Tensor."),
        ("Classify", classification_pb2.ClassificationRequest(), INVALID, "Missing ModelSpec"),
        (
            "Classify",
            asked(classification_pb2.ClassificationRequest, model="nobody"),
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(nobody)",
        ),
        ("Regress", regression("nothing"), INVALID, "No signature was found with the name: nothing"),
        ("Regress", regression("elsewhere"), FAILED, "No regression inputs found in SignatureDef: examples"),
        ("Regress", regression("serving_default"), INVALID, "Expected one output Tensor."),
        ("Regress", regression("scores"), FAILED, "No regression outputs found in SignatureDef: scores"),
        (
            "Regress",
            regression("regress_wide"),
            INVALID,
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
        ),
    ],
)
def test_what_cannot_be_classified_or_regressed_is_refused_in_servings_words(stub, method, request_, code, details):
    found = refusal(getattr(stub, method), request_)
    assert found[0] is code
    assert found[1].startswith(details)


@pytest.mark.parametrize(
    ("tasks", "code", "details"),
    [
        ([], INVALID, "Missing ModelSpec"),
        ([task("regress", "regress", "")], INVALID, "ModelSpec has no name specified."),
        (
            [task("regress", "regress"), task("", "classify", "")],
            INVALID,
            "Found ModelSpec with an empty model name.",
        ),
        (
            [task("regress", "regress"), task("", "classify", "other")],
            INVALID,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [task("", "classify"), task("serving_default", "classify")],
            INVALID,
            "Duplicate evaluation of signature: serving_default",
        ),
        ([task("nothing", "classify")], INVALID, "Requested signature not found in model graph: nothing"),
        (
            [task("regress", "predict")],
            UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        ([task("regress", "classify")], FAILED, "Expected classification signature outputs to contain"),
    ],
)
def test_tasks_that_do_not_fit_are_refused_in_servings_words(stub, tasks, code, details):
    request = inference_pb2.MultiInferenceRequest(tasks=tasks, input=listed(example()))
    found = refusal(stub.MultiInference, request)
    assert found[0] is code
    assert found[1].startswith(details)


def test_bfloat16_complex_and_scalar_bytes_come_back_as_they_went(stub):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "judge", "unusual"
    sent = tf.constant([1.5, -2.0], tf.bfloat16)
    request.inputs["b"].CopyFrom(tf.make_tensor_proto(sent))
    request.inputs["c"].CopyFrom(tf.make_tensor_proto(np.complex64(1 - 2j)))
    outputs = {name: tf.make_ndarray(proto) for name, proto in stub.Predict(request, timeout=10).outputs.items()}
    assert outputs["b"].tobytes() == sent.numpy().tobytes()
    assert outputs["q"].astype(np.float32).tolist() == [2.25, 4.0]
    assert (outputs["c"], outputs["c"].dtype) == (1 - 2j, np.complex64)
    assert (outputs["d"], outputs["d"].dtype) == (1 - 2j, np.complex128)
    assert outputs["text_bytes"].item() == b"nul\x00"


def test_quantized_and_unsigned_values_come_back_as_they_went(stub):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "judge", "rare"
    for dtype in RARE:
        values = np.array([3, 100], dtype.as_numpy_dtype[0] if dtype in QUANTIZED else dtype.as_numpy_dtype)
        request.inputs[dtype.name].CopyFrom(tf.make_tensor_proto(values.view(dtype.as_numpy_dtype)))
    answer = stub.Predict(request, timeout=10)
    for dtype in RARE:
        assert answer.outputs[dtype.name].dtype == dtype.as_datatype_enum
        got = tf.io.parse_tensor(answer.outputs[dtype.name].SerializeToString(), dtype)
        assert got.numpy().tolist() == [3, 100], dtype.name


def test_rest_classifies_and_regresses(ask):
    # the shapes of TensorFlow Serving's documentation: results by example, [label, score] by class
    body = {"context": {"offset": 0.1}, "examples": [{"x": 1.5}, {"x": [2.0], "offset": [-1.0]}]}
    assert ask("POST", "/v1/models/judge:classify", body) == (
        200,
        '{"results": [[["low", 1.5], ["high", 1.6]], [["low", 2.0], ["high", 1.0]]]}',
    )
    body["signature_name"] = "regress"
    assert ask("POST", "/v1/models/judge/versions/5:regress", body) == (200, '{"results": [3.1, 3.0]}')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 5}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [[]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{}], "context": 1}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1.0]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"a": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1.0, 1]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e39}]}, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ({"examples": [{"x": {"b64": "*"}}]}, "Unable to base64 decode"),
        ({"examples": [{"\ud800": 1.0}]}, "is not Unicode"),
        ({"examples": [{"x": "\ud800"}]}, "is not Unicode"),
        ({"examples": [{"x": 1.0}], "signature_name": "nothing"}, "No signature was found with the name: nothing"),
        ({"examples": [{"x": 1}]}, "Data types don't match"),  # an int64 feature where the model wants floats
    ],
)
def test_examples_that_do_not_fit_are_refused_with_400_and_the_reason(ask, body, message):
    status, answer = ask("POST", "/v1/models/judge:classify", body)
    assert status == 400
    assert message in json.loads(answer)["error"]


def test_every_kind_of_json_value_finds_its_feature():
    content = {"examples": [{"f": [0.5, float("nan")], "i": [True, -3], "s": ["é", {"b64": "AP8="}], "none": []}]}
    features = json_examples.read(content).example_list.examples[0].features.feature
    assert features["f"].float_list.value[0] == 0.5
    assert np.isnan(features["f"].float_list.value[1])
    assert list(features["i"].int64_list.value) == [1, -3]
    assert list(features["s"].bytes_list.value) == ["é".encode(), b"\x00\xff"]
    assert features["none"].WhichOneof("kind") is None
    with pytest.raises(RequestError, match="expecting type: bytes"):
        json_examples.read({"examples": [{"s": ["é", 1]}]})


def test_dtypes_json_has_not_are_refused_with_their_name(ask):
    status, answer = ask(
        "POST", "/v1/models/judge:predict", {"signature_name": "unusual", "inputs": {"b": [1], "c": 1}}
    )
    assert (status, json.loads(answer)["error"]) == (501, "Conversion of JSON Value: [1] to type: bfloat16")


def value_of(page, name, **labels):
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    found = re.search(rf"^:tensorflow:serving:{name}{{{re.escape(wanted)}}} (.*)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_count_requests_under_tensorflow_servings_names(ask, stub):
    def read():
        status, page = ask("GET", "/own/metrics")
        assert status == 200
        latency = {"model_name": "judge", "API": "Regress"}
        return np.array(
            [
                value_of(page, "request_count", model_name="judge", status="OK"),
                value_of(page, "request_count", model_name="judge", status="INVALID_ARGUMENT"),
                value_of(page, "request_count", model_name="", status="NOT_FOUND"),
                value_of(page, "request_latency_count", **latency, entrypoint="GRPC"),
                value_of(page, "request_latency_count", **latency, entrypoint="REST"),
                value_of(page, "runtime_latency_count", **latency, runtime="TF2"),
                value_of(page, "request_example_count_total", model="judge"),
                value_of(page, "request_example_counts_sum", model="judge"),
            ]
        )

    before = read()
    stub.Regress(regression(given=listed(*[example()] * 3)), timeout=10)
    ask("POST", "/v1/models/judge:regress", {"signature_name": "regress", "examples": [{"x": 1.0}] * 4})
    refusal(stub.Classify, classification("nothing"))
    ask("POST", "/v1/models/made-up:predict", {})
    assert (read() - before).tolist() == [2, 1, 1, 1, 1, 2, 7, 7]
    page = ask("GET", "/own/metrics")[1]
    assert "# TYPE :tensorflow:serving:request_count counter" in page
    assert "# TYPE :tensorflow:serving:request_latency histogram" in page
    assert "made-up" not in page


def test_metrics_are_only_where_a_monitoring_config_puts_them(ask, folder):
    assert ask("GET", "/monitoring/prometheus/metrics")[0] == 404
    with start(str(folder), poll_seconds=0) as other:
        connection = http.client.HTTPConnection("127.0.0.1", other.rest_port, timeout=20)
        connection.request("GET", "/own/metrics")
        assert connection.getresponse().status == 404
        connection.close()


def test_readiness_waits_for_every_model_and_names_the_ones_it_waits_for(folder, tmp_path):
    shutil.copytree(folder / "judge", tmp_path / "judge")
    (tmp_path / "late" / "1").mkdir(parents=True)
    (tmp_path / "late" / "1" / "saved_model.pb").write_bytes(b"half a model")

    def look(path):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request("GET", path)
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response.status, content

    with start(str(tmp_path), poll_seconds=0) as server:
        assert look("/healthz")[0] == 200
        assert look("/readyz") == (503, {"ready": False, "waiting_for": ["late"]})
        shutil.rmtree(tmp_path / "late" / "1")
        shutil.copytree(folder / "judge" / "5", tmp_path / "late" / "1")
        server.models.refresh()
        assert look("/readyz") == (200, {"ready": True, "waiting_for": []})


def test_reflection_lists_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=10)
    assert {service.name for service in answer.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
    for service in ("PredictionService", "ModelService"):
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"tensorflow.serving.{service}")
        (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=10)
        assert answer.file_descriptor_response.file_descriptor_proto
