"""The REST API over real sockets, and its JSON mapping."""

import base64
import http.client
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serving import http_server
from serving.model_server import backend, json_tensors, rest
from serving.model_server.configuration import Monitoring
from serving.model_server.errors import RequestError
from serving.model_server.metrics import Metrics
from serving.model_server.models import Models
from serving.model_server.server import start


@pytest.fixture(scope="module")
def ask(server):
    def send(method, path, body=b"", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.getheader("Content-Type") == "application/json"
        connection.close()
        return response.status, content

    return send


@pytest.fixture(scope="module")
def predict(ask):
    return lambda body, choice="": ask("POST", f"/v1/models/scaler{choice}:predict", body)


def example(x: float) -> dict:
    features = tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[x]))})
    return {"b64": base64.b64encode(tf.train.Example(features=features).SerializeToString()).decode()}


def test_rows_of_one_unnamed_input_give_a_plain_list(predict):
    assert predict({"signature_name": "one", "instances": [1, 2.5]}) == (200, {"predictions": [3.0, 7.5]})


def test_rows_of_named_inputs_give_objects(predict):
    instances = [{"a": [1, 2], "n": 5}, {"a": [3, 4], "n": 6}]
    answer = predict({"signature_name": "two", "instances": instances})
    assert answer == (200, {"predictions": [{"n": 5, "sum": 9.0}, {"n": 6, "sum": 21.0}]})


def test_columns_give_columns(predict):
    answer = predict({"signature_name": "two", "inputs": {"a": [[1, 2], [3, 4]], "n": [5, 6]}})
    assert answer == (200, {"outputs": {"n": [5, 6], "sum": [9.0, 21.0]}})
    assert predict({"signature_name": "one", "inputs": [1.0]}) == (200, {"outputs": [3.0]})
    assert predict({"signature_name": "one", "inputs": {"x": [1.0]}}) == (200, {"outputs": [3.0]})


def test_serialized_examples_come_as_base64_to_the_default_signature(predict):
    expected = {"predictions": [{"score": 6.0, "x": 2.0}, {"score": 1.5, "x": 0.5}]}
    assert predict({"instances": [example(2.0), example(0.5)]}) == (200, expected)
    named = [{"examples": example(2.0)}, {"examples": example(0.5)}]
    assert predict({"instances": named}) == (200, expected)
    assert predict({"inputs": [example(2.0)]}) == (200, {"outputs": {"score": [6.0], "x": [2.0]}})


def test_a_version_in_the_path_is_asked(predict):
    body = {"signature_name": "one", "instances": [1.0]}
    assert predict(body, "/versions/1") == (200, {"predictions": [2.0]})
    assert predict(body, "/versions/2") == (200, {"predictions": [3.0]})


def test_every_dtype_maps_both_ways(predict):
    inputs = {
        "float": [0.1, math.nan, -math.inf],
        "double": [1e300, math.inf],
        "half": [0.5],
        "int32": [-(2**31)],
        "int64": [2**63 - 1, -(2**63)],
        "uint8": [255],
        "int8": [-128],
        "uint64": [2**64 - 1],
        "bool": [True, False],
        "text": ["é", "\x00"],
        "raw_bytes": [{"b64": "AP8="}, {"b64": "AP8"}, ""],
    }
    status, answer = predict({"signature_name": "echo", "inputs": inputs})
    assert status == 200
    outputs = answer["outputs"]
    assert math.isnan(outputs["float"].pop(1))
    inputs["float"].pop(1)
    # padding may be left out, and what ends in _bytes comes back as base64
    inputs["raw_bytes"] = [{"b64": "AP8="}, {"b64": "AP8="}, {"b64": ""}]
    assert outputs == inputs


def test_nan_and_infinity_are_written_as_tensorflow_serving_writes_them(server):
    body = b'{"signature_name": "one", "instances": [NaN, Infinity, -Infinity]}'
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    connection.request("POST", "/v1/models/scaler:predict", body)
    assert connection.getresponse().read() == b'{"predictions": [NaN, Infinity, -Infinity]}'
    connection.close()


def test_scalars_cannot_be_rows_but_can_be_columns(predict):
    assert predict({"signature_name": "anything", "inputs": 2.0}) == (200, {"outputs": {"total": 2.0, "y": 2.0}})
    status, answer = predict({"signature_name": "anything", "instances": [1.0, 2.0]})
    assert (status, answer) == (400, {"error": "Tensor name: total has no shape information"})


TWO, ONE = '{"signature_name": "two", ', '{"signature_name": "one", '
ELEMENT = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"not json", "JSON Parse error: "),
        (b'{"instances": [1', "JSON Parse error: "),
        (b"\xff\xfe{", "JSON Parse error: 'utf-8' codec can't decode"),
        (b'{"instances": ' + b"[" * 100_000, "JSON Parse error: nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "JSON Parse error: nested deeper than 64 levels"),
        (b'{"instances": [' + b"9" * 10_000 + b"]}", "JSON Parse error: Exceeds the limit"),
        (b'{"instances": [1], "instances": [2]}', "JSON Parse error: duplicate key 'instances'"),
        (TWO + '"instances": [{"n": 1, "a": [1, 2], "n": 2}]}', "JSON Parse error: duplicate key 'n'"),
        (b'{"signature_name": "\\ud800", "instances": [1]}', "is not Unicode"),
        (b"[1]", "JSON Value: [1] Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"inputs": [], "instances": []}', "expecting only one of 'inputs' or 'instances' keys to exist"),
        (b'{"signature_name": 100, "instances": []}', "'signature_name' key must be a string value."),
        (b'{"signature_name": "z", "instances": [1]}', 'Serving signature name: "z" not found in signature def'),
        (b'{"instances": 5}', "JSON Value: 5 Expecting 'instances' to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": [{"b64": "*"}]}', "Unable to base64 decode"),
        (b'{"instances": [{"examples": {"b64": 5}}]}', "not formatted correctly for base64 data"),
        (b'{"instances": ["\\ud800"]}', "is not Unicode"),
        (b'{"instances": ["~"]}', "Could not parse example input"),
        (TWO + '"instances": [1]}', "instances is a plain list, but expecting list of objects"),
        (TWO + '"inputs": [1]}', "inputs is a plain value/list, but expecting an object"),
        (TWO + '"inputs": {"a": [[1, 2]]}}', "Missing named input: n in 'inputs' object."),
        (TWO + '"inputs": {"a": [[1, 2]], "n": [1], "z": 1}}', "JSON object: does not have named input: z"),
        (TWO + '"instances": [{"a": [1, 2]}]}', "keys must be equal to: a,n"),
        (TWO + '"instances": [{"z": 1}]}', ELEMENT.format(0, "z", "JSON object: does not have named input: z")),
        (TWO + '"instances": [{"a": [1, 2], "n": 1}, 5]}', "Expecting object but got list at item 1 of input list"),
        (
            TWO + '"instances": [{"a": [1, 2], "n": 1}, {"a": [1, 2, 3], "n": 1}]}',
            ELEMENT.format(1, "a", "Expecting shape [2] but got: [3]"),
        ),
        (TWO + '"inputs": {"a": [[1, 2, 3]], "n": [1]}}', "input a has incompatible shape [1,3]: expected [-1,2]"),
        (
            TWO + '"inputs": {"a": [[1, 2], [3]], "n": [1]}}',
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (TWO + '"inputs": {"a": [[1, 2], 3], "n": [1]}}', "JSON Value: 3 found at incorrect level: 2"),
        (TWO + '"inputs": {"a": [1, [2]], "n": [1]}}', "Encountered list at unexpected level: 1 expected < 1"),
        (TWO + '"inputs": {"a": [[1, 2]], "n": [1.0]}}', "JSON Value: 1.0 Type: Number is not of expected type: int64"),
        (TWO + '"inputs": {"a": [[1, 2]], "n": [9223372036854775808]}}', "is not of expected type: int64"),
        (TWO + '"inputs": {"a": [[1, 2]], "n": [true]}}', "JSON Value: true Type: True is not of expected type: int64"),
        (ONE + '"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list"),
        (
            ONE + '"instances": ["1"]}',
            ELEMENT.format(0, "x", 'JSON Value: "1" Type: String is not of expected type: float'),
        ),
        (ONE + '"instances": [null]}', "JSON Value: null Type: Null is not of expected type: float"),
        (ONE + '"instances": [16777217]}', "Cannot convert JSON value: 16777217 to float without loss of precision."),
        (ONE + '"instances": [1e39]}', "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (ONE + '"instances": [3.40282357e38]}', "Cannot convert JSON value: 3.40282357e+38 to float without loss"),
        (ONE + '"instances": [[1]]}', "input x has incompatible shape [1,1]: expected [-1]"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_400_and_the_reason(predict, body, message):
    status, answer = predict(body.encode() if isinstance(body, str) else body)
    assert status == 400
    assert list(answer) == ["error"]
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("GET", "/v1/models/scaler/versions/9", 404, "Could not find version 9 of model scaler"),
        ("GET", "/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
        (
            "GET",
            "/v1/models/scaler/versions/99999999999999999999",
            400,
            "Failed to convert version: 99999999999999999999",
        ),
        ("GET", "/v1/models/scaler/labels/canary", 400, "Unrecognized servable version label: canary"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/scaler:predict", 400, "Malformed request: GET /v1/models/scaler:predict"),
        ("POST", "/v1/models/scaler", 400, "Malformed request: POST /v1/models/scaler"),
        ("POST", "/v1/models/scaler:delete", 400, "Malformed request: POST /v1/models/scaler:delete"),
        ("POST", "/v1/models/nobody:predict", 404, "Servable not found for request: Latest(nobody)"),
        ("POST", "/v1/models/scaler/versions/9:predict", 404, "Servable not found for request: Specific(scaler, 9)"),
        ("POST", "/v1/models/scaler/labels/x:predict", 400, "Unrecognized servable version label: x"),
        ("GET", "/v1/models/../../etc/passwd", 400, "Malformed request: GET /v1/models/../../etc/passwd"),
        ("GET", "/v1/models/..", 404, "Could not find any versions of model .."),
        ("GET", "/", 404, "Not found: /"),
        ("DELETE", "/v1/models/scaler", 400, "Malformed request: DELETE /v1/models/scaler"),
    ],
)
def test_a_path_that_is_none_is_refused(ask, method, path, status, message):
    answer = ask(method, path, {"instances": [1]} if method == "POST" else b"")
    assert answer[0] == status
    assert message in answer[1]["error"]


def test_status_reads_as_tensorflow_servings(ask):
    good = {"error_code": "OK", "error_message": ""}
    expected = {"version": "1", "state": "AVAILABLE", "status": good}
    assert ask("GET", "/v1/models/scaler/versions/1") == (200, {"model_version_status": [expected]})
    status, answer = ask("GET", "/v1/models/scaler?verbose=1")
    assert (status, [entry["version"] for entry in answer["model_version_status"]]) == (200, ["2", "1"])


def test_metadata_holds_the_signatures(ask):
    status, answer = ask("GET", "/v1/models/scaler/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "scaler", "signature_name": "", "version": "1"}
    two = answer["metadata"]["signature_def"]["signature_def"]["two"]
    assert two["inputs"]["a"]["dtype"] == "DT_FLOAT"
    sizes = [dimension["size"] for dimension in two["inputs"]["a"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "2"]
    assert two["method_name"] == "tensorflow/serving/predict"


def raw(server, request: bytes) -> tuple[int, str]:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read().decode()


@pytest.mark.parametrize(
    ("header", "status", "message"),
    [
        (f"Content-Length: {backend.MAX_REQUEST_BYTES + 1}", 413, "send smaller batches"),
        ("Content-Length: " + "9" * 400, 400, "Invalid HTTP request"),
        ("Content-Length: -5", 400, "Invalid HTTP request"),
        ("Content-Length: two", 400, "Invalid HTTP request"),
    ],
)
def test_a_length_that_will_not_do_is_refused_before_the_body_is_read(server, header, status, message):
    answer = raw(server, f"POST /v1/models/scaler:predict HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
    assert answer[0] == status
    assert message in answer[1]


def test_a_body_may_come_in_chunks_but_not_in_too_many(server, monkeypatch):
    head = b"POST /v1/models/scaler:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"signature_name": "one", "instances": [2]}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:], b""))
    assert raw(server, head + chunks) == (200, '{"predictions": [6.0]}')
    monkeypatch.setattr(rest, "MAX_REQUEST_BYTES", 20)
    assert raw(server, head + chunks)[0] == 413


def test_all_bodies_together_may_hold_so_much_memory(server, ask, monkeypatch):
    monkeypatch.setattr(backend, "MAX_HELD_BYTES", 100)
    big = {"signature_name": "one", "instances": [1.0] * 100}
    for _ in range(2):  # what was held is given back
        status, answer = ask("POST", "/v1/models/scaler:predict", big)
        assert (status, answer["error"]) == (503, "too many large requests at once: try again")
    assert ask("POST", "/v1/models/scaler:predict", {"signature_name": "one", "instances": [1.0]})[0] == 200


@pytest.mark.parametrize(
    ("begun", "answer"),
    [
        (b"POST /v1/models/scaler:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 408 "),
        (b"POST /v1/models/scaler:predict HTTP/1.1\r\nHos", b""),  # not even a request to answer
        (b"", b""),
    ],
)
def test_a_sender_that_stalls_is_let_go(begun, answer, saved, monkeypatch):
    monkeypatch.setattr(http_server, "SLOWEST_SECONDS", 0.6)
    with start(str(saved), poll_seconds=0) as server, socket.create_connection(("127.0.0.1", server.rest_port)) as slow:
        slow.settimeout(5)
        before = time.monotonic()
        for byte in begun[:2]:  # what trickles in does not prolong it
            slow.sendall(bytes([byte]))
            time.sleep(0.1)
        slow.sendall(begun[2:])
        assert slow.recv(1000).startswith(answer)
        assert 0.4 < time.monotonic() - before < 3


def test_a_request_that_takes_too_long_is_answered_504(saved, monkeypatch):
    finish = threading.Event()
    monkeypatch.setattr(rest, "respond", lambda *_: finish.wait(60))
    nobodys = backend.Backend(Models(str(saved)), Metrics())
    answering = http_server.HttpServer(rest.application(nobodys, Monitoring(), 0.1), "127.0.0.1", 0)
    answering.start()
    asked = b"POST /v1/models/scaler:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"
    assert raw(SimpleNamespace(rest_port=answering.port), asked) == (504, '{"error":"it took longer than 0.1 s"}')
    assert not nobodys.hold(backend.MAX_HELD_BYTES)  # what goes on in its thread counts until it is done
    finish.set()
    deadline = time.monotonic() + 30
    while not nobodys.hold(0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert nobodys.hold(0)
    answering.stop(5)


def test_stopping_answers_what_runs_and_frees_the_port(saved):
    server = start(str(saved), poll_seconds=0)
    entered, finish = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        finish.wait(5)
        return 200, b'{"slow": true}'

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(rest, "respond", slow)
        answer = pool.submit(raw, server, b"GET /v1/models/scaler HTTP/1.1\r\nHost: x\r\n\r\n")
        assert entered.wait(5)
        stopped = pool.submit(server.stop)
        time.sleep(0.3)
        assert not stopped.done()
        finish.set()
        assert answer.result(5) == (200, '{"slow": true}')
        stopped.result(5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.rest_port), timeout=1)


@pytest.mark.parametrize("nonsense", [b"NONSENSE\r\n\r\n", b"NON SENSE HTTP/1\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n"])
def test_what_is_no_http_is_refused(server, nonsense):
    assert raw(server, nonsense) == (400, "Invalid HTTP request received.")


def test_one_connection_carries_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    for value in range(5):
        for body, status in ((b"{", 400), (json.dumps({"signature_name": "one", "instances": [value]}).encode(), 200)):
            connection.request("POST", "/v1/models/scaler:predict", body)
            response = connection.getresponse()
            content = json.loads(response.read())
            assert response.status == status
        assert content == {"predictions": [3.0 * value]}
    connection.close()


def test_eight_threads_get_each_their_own_answers(predict):
    def work(thread: int) -> bool:
        values = [thread * 100 + index for index in range(25)]
        answers = [predict({"signature_name": "one", "instances": [value, 0]}) for value in values]
        return answers == [(200, {"predictions": [3.0 * value, 0.0]}) for value in values]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "n", "b64", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name"]), JSON | st.sampled_from(["one", "two"])
)


@given(BODIES.map(json.dumps).map(str.encode) | st.binary(max_size=40))
@settings(max_examples=150)
def test_any_body_is_answered_or_refused_but_never_an_internal_error(server, body):
    status, answer = rest.respond(backend.Backend(server.models, Metrics()), "POST", "/v1/models/scaler:predict", body)
    assert status in (200, 400)
    assert json.loads(answer)


SPECS = {"x": tf.TensorSpec(None, tf.float32)}


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=4))
@hypothesis.example([[np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]])
def test_floats_survive_json_to_the_last_bit(rows):
    array = np.array(rows, np.float32)
    body = json_tensors.write({"x": array}, as_rows=False)
    arrays, _ = json_tensors.read({"inputs": json.loads(body)["outputs"]}, SPECS)
    np.testing.assert_array_equal(arrays["x"], array)


def test_a_float32_is_written_with_its_shortest_digits():
    assert (
        json_tensors.write({"x": np.array([0.1, 1e-8, 2], np.float32)}, as_rows=True)
        == b'{"predictions": [0.1, 1e-08, 2.0]}'
    )


@given(npst.arrays(st.sampled_from([np.float32, np.float16]), st.integers(0, 9)))
@hypothesis.example(np.array([1e-30, 1.17549435e-38, 3.4028235e38, 8.5e-42, 16777216, -0.0], np.float32))
@hypothesis.example(np.random.default_rng(0).lognormal(0, 20, 5000).astype(np.float32))
@hypothesis.example(np.arange(31744, dtype=np.uint16).view(np.float16))
@hypothesis.example(np.ldexp(np.float32(1), np.arange(-149, 128)))
@hypothesis.example(np.nextafter(np.ldexp(np.float32(1), np.arange(-126, 128)), np.float32(0)))
def test_the_shortest_digits_are_numpys_own(array):
    with np.errstate(over="ignore"):
        expected = np.array([float(str(value)) for value in array])
    np.testing.assert_array_equal(json_tensors.shortest(array), expected)


@pytest.mark.parametrize(
    ("body", "most"),
    [
        # Brackets that open, and commas: an object of 2, an object of 2, a list of 3, 3 lists of 2, and a list of 3.
        ('{"signature_name": "two", "inputs": {"a": [[1, 2], [1, 2], [1, 2]], "n": [1, 1, 1]}}', 2 + 2 + 3 + 6 + 3),
        ('{"inputs": "%s"}' % (r"[,\\\\\\\"," * 20), 1),  # inside a string they do not count
    ],
)
def test_there_may_be_so_many_values(monkeypatch, body, most):
    monkeypatch.setattr(json_tensors, "MAX_VALUES", most)
    assert json_tensors.parse(body.encode()) == json.loads(body)
    monkeypatch.setattr(json_tensors, "MAX_VALUES", most - 1)
    with pytest.raises(RequestError, match=f"more than {most - 1} values: send smaller batches"):
        json_tensors.parse(body.encode())


@pytest.mark.parametrize("body", [b"]" * 13, b'"' * 49, b'""' * 25, b"[" * 13, b"1," * 13])
def test_what_is_no_json_is_not_parsed_either_where_it_is_too_much(monkeypatch, body):
    monkeypatch.setattr(json_tensors, "MAX_VALUES", 12)
    with pytest.raises(RequestError, match="more than 12 values"):
        json_tensors.parse(body)


def test_brackets_inside_strings_do_not_count_as_nesting():
    content = {"instances": ["[" * 1000, '"[{' * 100, "\\" * 3 + "[" * 100]}
    assert json_tensors.parse(json.dumps(content).encode()) == content


def test_bytes_that_are_not_text_need_the_suffix():
    with pytest.raises(RequestError, match="JSON can carry it if its name ends in _bytes"):
        json_tensors.write({"text": np.array([b"\xff"], object)}, as_rows=True)


def test_outputs_of_different_batch_sizes_cannot_be_rows():
    with pytest.raises(RequestError, match="Tensor name: b has inconsistent batch size: 3 expecting: 2"):
        json_tensors.write({"a": np.zeros(2), "b": np.zeros(3)}, as_rows=True)
