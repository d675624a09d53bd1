"""Hostile requests against a server in a process of its own: each is answered, and none harms it.

Round for round the same cases by hand and other cases by hypothesis, over gRPC and REST, while slow senders hold
connections open, somebody asks properly, and versions come and go.
"""

import base64
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import tensors
from serving.client import Client
from transform import ops

VIDEOS = ("a", "b", "c")
MOST_ROWS = 64
MEGABYTE = 1024 * 1024
PREDICT = "/tensorflow.serving.PredictionService/"
STATUS = "/tensorflow.serving.ModelService/"
# What may be answered: never INTERNAL or UNKNOWN, which would be our mistake.
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"}
REFUSED_HTTP = {400, 404, 405, 408, 413, 414, 431, 501}


class History(tf.Module):
    """The number of each of the last five known videos (a 1, b 2, c 3), added up; a model with all a ranker has."""

    def __init__(self):
        super().__init__()
        keys = tf.constant(VIDEOS)
        numbers = tf.lookup.KeyValueTensorInitializer(keys, tf.range(1, 4, dtype=tf.int64))
        self.table = tf.lookup.StaticHashTable(numbers, 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(self, examples):
        spec = {"history": tf.io.VarLenFeature(tf.string), "age": tf.io.FixedLenFeature([], tf.int64, default_value=0)}
        features = tf.io.parse_example(examples, spec)
        numbers = tf.ragged.map_flat_values(self.table.lookup, ops.known_values(features["history"]))
        return {"score": tf.reduce_sum(ops.pad_history(numbers, 5), axis=1), "age": features["age"]}


def example(watched=(), **other) -> bytes:
    feature = {"history": tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in watched]))}
    return tf.train.Example(features=tf.train.Features(feature={**feature, **other})).SerializeToString()


@contextlib.contextmanager
def process(*flags, log):
    """The server's process, its gRPC address and its REST port."""
    command = [sys.executable, "-m", "serving.model_server", "--port=0", "--rest_api_port=0", *flags]
    with open(log, "w") as stderr, subprocess.Popen(command, stderr=stderr) as running:
        try:
            while "gRPC on " not in (text := log.read_text()):
                assert running.poll() is None, text
                time.sleep(0.1)
            target, rest = text.split("gRPC on ")[1].split()[0].rstrip(","), text.split("REST on ")[1].split()[0]
            yield running, target, int(rest.rpartition(":")[2])
        finally:
            running.kill()


@pytest.fixture(scope="module")
def models(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(saved / "scaler" / "1", folder / "scaler" / "1")
    history = History()
    tf.saved_model.save(history, str(folder / "history" / "1"), signatures={"serving_default": history.score})
    configs = [
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" '
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } }'
        for name in ("scaler", "history")
    ]
    (folder / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    (folder / "batching.config").write_text(
        f"max_batch_size {{ value: {MOST_ROWS} }} batch_timeout_micros {{ value: 500 }} "
        "max_enqueued_batches { value: 1000 } num_batch_threads { value: 2 }"
    )
    return folder


class Besieged:
    """A server, and what it answered."""

    def __init__(self, running, target, rest_port):
        self.process = psutil.Process(running.pid)
        self.rest_port = rest_port
        limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        self.channel = grpc.insecure_channel(target, options=limits)
        self.client = Client(target, timeout_seconds=30)
        self.answers = Counter()

    def call(self, method, message, allowed=REFUSED, timeout=30.0) -> None:
        """One gRPC call of a message, or of bytes that may be none; OK or a code that is allowed."""
        send = self.channel.unary_unary(method)
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        answer = send.future(payload, timeout=timeout)
        code, details = answer.code().name, answer.details()
        assert code == "OK" or (code in allowed and details), f"{method} {payload[:200]!r}: {code} {details}"
        self.answers[f"gRPC {code}"] += 1

    def send(self, data: bytes, complete=True) -> None:
        """Bytes to the REST port, which need not be HTTP; the answer is OK or a refusal, in JSON where it is ours."""
        with socket.create_connection(("127.0.0.1", self.rest_port), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):  # it may refuse before all is sent
                connection.sendall(data)
                if not complete:
                    connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method="HEAD" if data.startswith(b"HEAD") else None)
            try:
                response.begin()
                body = response.read()
            except ConnectionError:
                assert not complete or len(data) > 65536, data[:200]
                self.answers["REST hung up"] += 1
                return
        assert response.status == 200 or response.status in REFUSED_HTTP, (data[:200], response.status, body[:500])
        if response.status != 200 and body and response.headers.get_content_type() == "application/json":
            assert json.loads(body)["error"]
        self.answers[f"REST {response.status}"] += 1

    def post(self, path: str, body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        self.send(head.encode("latin-1") + body)

    def get(self, path: str) -> None:
        self.send(f"GET {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n".encode("latin-1"))

    def answers_right(self) -> None:
        """A good request to each model, over gRPC and REST."""
        rows = [example("abc"), example("cccccccaa"), example([]), example(["x", "b"])]
        # known videos of the last five: 1+2+3; 3+3+3+1+1; none; b
        assert self.client.predict_examples("history", rows)["score"].tolist() == [6, 11, 0, 2]
        assert self.client.predict_tensors("scaler", {"x": np.float32([1, 2])}, "one", version=1)["y"].tolist() == [
            2,
            4,
        ]
        rest = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=30)
        body = '{"signature_name": "one", "instances": [1.0, 2.0]}'
        with contextlib.closing(rest):
            rest.request("POST", "/v1/models/scaler/labels/stable:predict", body)
            assert json.load(rest.getresponse()) == {"predictions": [2.0, 4.0]}

    def memory(self) -> int:
        return self.process.memory_info().rss


def predict(signature="two", model="scaler", version=None, label=None, filters=(), **inputs):
    message = predict_pb2.PredictRequest(output_filter=filters)
    message.model_spec.name, message.model_spec.signature_name = model, signature
    if version is not None:
        message.model_spec.version.value = version
    if label is not None:
        message.model_spec.version_label = label
    for name, value in inputs.items():
        if isinstance(value, tf.make_tensor_proto(0).__class__):
            message.inputs[name].CopyFrom(value)
        else:
            tensors.fill(message.inputs[name], np.array(value, object) if isinstance(value, list) else value)
    return message


def tensor(dtype=1, sizes=(1,), unknown_rank=False, content=b"", **values):
    proto = tf.make_tensor_proto(0.0)
    proto.Clear()
    proto.dtype = dtype
    proto.tensor_shape.unknown_rank = unknown_rank
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    proto.tensor_content = content
    for field, value in values.items():
        getattr(proto, field).extend(value)
    return proto


A, N = np.ones((2, 2), np.float32), np.ones(2, np.int64)
ODD_NUMBERS = np.float32([np.nan, np.inf, -np.inf, 3e38, 1e-45])
BIG = b"x" * MEGABYTE
CORRUPT = [b"\xff" * 20, example("abc")[:-3], b"\x0a\xff\xff\xff\xff\x0f", BIG, b""]
MISTYPED = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))
TWICE = tf.train.Feature(int64_list=tf.train.Int64List(value=[2**63 - 1, -(2**63)]))
HISTORIES = [[], ["a"] * 100_000, ["unknown"] * 50, [""] * 9, ["\0", "ü", "a" * 100_000], VIDEOS * 3]
WRONG_TENSORS = [
    tensor(sizes=[-1]),
    tensor(sizes=[2**62]),
    tensor(sizes=[2**40, 2**40], float_val=[1.0]),
    tensor(sizes=[2**27], float_val=[1.0]),
    tensor(sizes=[1] * 300, float_val=[1.0]),
    tensor(unknown_rank=True),
    tensor(content=b"123"),
    tensor(sizes=[5], content=b"\0" * 8),
    tensor(dtype=0),
    tensor(dtype=99),
    tensor(dtype=20, sizes=[1]),  # DT_RESOURCE
    tensor(dtype=21, sizes=[1]),  # DT_VARIANT
    tensor(dtype=101, sizes=[1]),  # a reference
    tensor(dtype=7, sizes=[2**24], string_val=[b""]),
    tensor(dtype=7, sizes=[300], string_val=[BIG]),
]


def grpc_cases():
    yield from ((PREDICT + "Predict", message) for message in _predictions())
    for method in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata", "Nothing"):
        yield PREDICT + method, b""
    yield STATUS + "GetModelStatus", get_model_status_pb2.GetModelStatusRequest()
    spec = predict("", "../../etc/passwd").model_spec
    yield STATUS + "GetModelStatus", get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
    for field in ("signature_def", "../variables", "\0", ""):
        known = predict().model_spec
        yield (
            PREDICT + "GetModelMetadata",
            get_model_metadata_pb2.GetModelMetadataRequest(model_spec=known, metadata_field=[field] * 3),
        )
    for path in ("../../etc", "/etc", "relative", "", "/proc/self", "\0"):
        reload = model_management_pb2.ReloadConfigRequest()
        reload.config.model_config_list.config.add(name="../x", base_path=path, model_platform="tensorflow")
        yield STATUS + "HandleReloadConfigRequest", reload
        reload.config.model_config_list.config[0].name = "scaler"
        reload.config.model_config_list.config[0].base_path = f"{path}/.." if path else "nowhere"
        yield STATUS + "HandleReloadConfigRequest", reload
    yield STATUS + "HandleReloadConfigRequest", model_management_pb2.ReloadConfigRequest()
    for data in [*CORRUPT, *map(example, HISTORIES)]:
        for message, method in (
            (classification_pb2.ClassificationRequest(), "Classify"),
            (regression_pb2.RegressionRequest(), "Regress"),
        ):
            message.model_spec.name = "history"
            with contextlib.suppress(Exception):  # what is no example stays out: its bytes go to Predict
                message.input.example_list.examples.add().ParseFromString(data)
            yield PREDICT + method, message
    many = inference_pb2.MultiInferenceRequest()
    for name in ("history", "scaler", "", "nobody"):
        many.tasks.add(method_name="tensorflow/serving/nonsense").model_spec.name = name
    yield PREDICT + "MultiInference", many


def _predictions():
    yield from (predict(model=name, a=A, n=N) for name in ("nobody", "", "../scaler", "scaler/1", "ü\0", "s" * 100_000))
    yield from (predict(version=version, a=A, n=N) for version in (7, 0, -1, 2**63 - 1, -(2**63)))
    yield from (predict(label=label, a=A, n=N) for label in ("", "canary", "../1", "ü" * 9999))
    yield from (predict(name, a=A, n=N) for name in ("nothing", "__saved_model_init_op", "Ü", "t" * 100_000))
    yield from (predict(filters=names, a=A, n=N) for names in (["x"], ["n", "n"], ["sum"] * 9, ["\0"]))
    yield from (predict(a=A), predict(), predict(a=A, n=N, z=N), predict(a=A, z=N), predict(a=N, n=A))
    yield from (predict(a=A[0], n=N), predict(a=A[None], n=N), predict(a=A, n=N[0]), predict(a=A[:, :1], n=N))
    yield from (predict(a=A[:0], n=N[:0]), predict(a=A, n=N[:1]), predict("one", x=np.zeros(MOST_ROWS + 1, np.float32)))
    yield from (predict("one", x=ODD_NUMBERS), predict("anything", x=ODD_NUMBERS.reshape(1, 1, 5)))
    yield predict("pick", indices=np.int32([2**31 - 1, -(2**31), 3]))
    for wrong in WRONG_TENSORS:
        yield predict("anything", x=wrong)
        yield predict("serving_default", examples=wrong)
    for text in (b"\xff\xfe\x80", BIG, b"\0", "ü".encode()):
        yield predict("serving_default", examples=[text])
        yield predict("echo", text=[text], float=A)
    for data in CORRUPT:
        yield predict("", "history", examples=[example("abc"), data])
    for history in HISTORIES:
        yield predict("", "history", examples=[example(history)])
    yield predict("", "history", examples=[example(["a"], age=MISTYPED), example(["a"], age=TWICE)])
    yield predict("", "history", examples=[example(["a"], history=MISTYPED)])


ODD_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe{}",
    b"\0" * 1000,
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"instances": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    b'{"instances": [{"b64": "YWJj"',
    b'{"instances": [{"b64": "YWJ"}]}',
    b'{"instances": [{"b64": 7}]}',
    b'{"instances": [{"b64": "!!"}, {"b64": null, "x": 1}]}',
    b'{"instances": [1], "instances": [2]}',
    b'{"instances": [1], "inputs": [1]}',
    b'{"signature_name": 7, "instances": [1]}',
    b'{"signature_name": "nothing", "instances": [1]}',
    b'{"signature_name": "one", "instances": [NaN, Infinity, -Infinity, 1e999, -1e999]}',
    b'{"signature_name": "one", "instances": [99999999999999999999999999999999]}',
    b'{"signature_name": "pick", "instances": [2147483648]}',
    b'{"signature_name": "pick", "instances": [1.5, -1]}',
    b'{"signature_name": "pick", "instances": [' + b"9" * 5000 + b"]}",
    b'{"signature_name": "two", "instances": [{"a": [1, 2], "n": 1}, {"a": [1], "n": 1}]}',
    b'{"signature_name": "two", "instances": [{"a": [1, 2], "a": [1, 2], "n": 1}]}',
    b'{"signature_name": "two", "inputs": {"a": [[1, 2]], "n": [1, 2]}}',
    b'{"signature_name": "two", "inputs": {"a": {"b": {}}, "n": "x"}}',
    b'{"signature_name": "one", "instances": [' + b"1," * 100 + b"1]}",
    b'{"signature_name": "anything", "inputs": []}',
    b'{"instances": []}',
    b'{"instances": ["\\ud800"]}',
    b'{"instances": ["' + BIG + b'"]}',
]


def rest_cases(server):
    yield from (lambda body=body: server.post("/v1/models/scaler:predict", body) for body in ODD_BODIES)
    for data in [*CORRUPT, *map(example, HISTORIES)]:
        body = json.dumps({"instances": [{"b64": base64.b64encode(data).decode()}]}).encode()
        yield lambda body=body: server.post("/v1/models/history:predict", body)
        yield lambda body=body: server.post("/v1/models/history:classify", body)
        yield lambda body=body: server.post("/v1/models/history:regress", body.replace(b"instances", b"examples"))
    for path in (
        "/v1/models/nobody",
        "/v1/models/scaler/versions/9",
        "/v1/models/scaler/versions/" + "9" * 5000,
        "/v1/models/scaler/labels/canary",
        "/v1/models/scaler/labels/%00",
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/metadata",
        "/v1/models/scaler/../../metadata",
        "/v1/models//etc/passwd",
        "/../../../../etc/passwd",
        "/v1/models/%ff%fe",
        "/v1/models/scaler%0d%0aX:1",
        "/v1/models/" + "s" * 30_000,
        "/",
        "*",
    ):
        yield lambda path=path: server.get(path)
        yield lambda path=path: server.post(path + ":predict", b'{"instances": [1]}')
    start, path = b" /v1/models/scaler:predict HTTP/1.1\r\nHost: s\r\n", b"/v1/models/scaler:predict"
    for data in (
        b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET " + path + b" HTTP/9.9\r\n\r\n",
        b"BREW" + start + b"Connection: close\r\n\r\n",
        b"HEAD" + start + b"Connection: close\r\n\r\n",
        b"DELETE" + start + b"Connection: close\r\n\r\n",
        b"GET" + start + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET" + start + b"X: 1\r\n" * 50_000 + b"\r\n",
        b"POST" + start + b"Content-Length: -1\r\n\r\n",
        b"POST" + start + b"Content-Length: 1e3\r\n\r\n",
        b"POST" + start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST" + start + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST" + start + b"Transfer-Encoding: gzip\r\n\r\n",
        b"POST" + start + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST" + start + b"Content-Length: 104857600\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        yield lambda data=data: server.send(data)
    for data in (
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/mod",
        b"POST" + start + b"Content-Length: 10\r\n\r\n12",
    ):
        yield lambda data=data: server.send(data, complete=False)


PROTOS = st.builds(
    tensor,
    dtype=st.one_of(st.sampled_from([1, 3, 7, 9, 10]), st.integers(0, 120)),
    sizes=st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, -(2**63), 2**31, 2**40, 2**62])), max_size=4),
    unknown_rank=st.booleans(),
    content=st.binary(max_size=40),
    float_val=st.lists(st.floats(width=32), max_size=5),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    string_val=st.lists(st.binary(max_size=40), max_size=5),
)
PREDICTIONS = st.builds(
    lambda model, signature, version, inputs: predict(signature, model, version, **inputs),
    st.sampled_from(["scaler", "history"]),
    st.sampled_from(["", "one", "two", "anything", "echo", "pick"]),
    st.sampled_from([None, 1]),
    st.dictionaries(st.sampled_from(["x", "a", "n", "examples", "indices", "text"]), PROTOS, max_size=3),
)
EXAMPLES = st.lists(
    st.binary(max_size=60)
    | st.builds(example, st.lists(st.sampled_from(VIDEOS) | st.text(max_size=9), max_size=9))
    | st.builds(lambda history, age: example(history, age=age), st.just("ab"), st.sampled_from([MISTYPED, TWICE])),
    max_size=4,
).map(lambda examples: predict("", "history", examples=np.array(examples, object)))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just({"b64": "YQ=="})
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from(["one", "two", "pick", "echo", "anything"]) | SCALARS,
        "instances": st.lists(VALUES, max_size=4) | VALUES,
        "inputs": st.dictionaries(st.sampled_from(["x", "a", "n", "examples"]), VALUES, max_size=3) | VALUES,
    },
).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=100)


def made_up(server, number):
    """`number` requests of each kind by hypothesis, the same ones in every run."""
    same = settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    garbled = {*REFUSED, "INTERNAL"}  # what is no message at all, gRPC itself answers so
    same(given(PREDICTIONS | EXAMPLES)(lambda message: server.call(PREDICT + "Predict", message)))()
    same(given(st.binary(max_size=60))(lambda data: server.call(PREDICT + "Predict", data, garbled)))()
    models = st.sampled_from(["scaler", "history", "nobody"])
    methods = st.sampled_from(["predict", "classify", "regress", "delete"])
    same(
        given(models, methods, BODIES)(lambda model, method, body: server.post(f"/v1/models/{model}:{method}", body))
    )()


def by_hand(server):
    """Every case once, several at a time."""
    with ThreadPoolExecutor(4) as pool:
        for work in [
            *[pool.submit(server.call, method, message) for method, message in grpc_cases()],
            *[pool.submit(case) for case in rest_cases(server)],
        ]:
            work.result()


def hurried(server):
    """Deadlines that are over at once, and calls that are cancelled."""
    for timeout in (0.0, 1e-6, 0.001):
        server.call(PREDICT + "Predict", predict("one", x=A[0]), {"DEADLINE_EXCEEDED"}, timeout)
    for call in at_once(server):
        call.cancel()
        server.answers["gRPC cancelled"] += 1


def at_once(server):
    """Twenty calls with the longest history, begun."""
    long = predict("", "history", examples=[example(HISTORIES[1])]).SerializeToString()
    send = server.channel.unary_unary(PREDICT + "Predict")
    return [send.future(long) for _ in range(20)]


def oversized(server):
    """Bodies of 100 MB."""
    path, size = "/v1/models/scaler:predict", 100 * MEGABYTE
    server.post(path, b"[" * size)
    chunk = b"%x\r\n%s\r\n" % (MEGABYTE, BIG)
    head = f"POST {path} HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    server.send(head + chunk * 100 + b"0\r\n\r\n")
    server.call(PREDICT + "Predict", b"\xff" * size, {"RESOURCE_EXHAUSTED"})
    server.call(PREDICT + "Predict", predict("one", x=np.zeros(15 * MEGABYTE, np.float32)))
    for value in (b"0.1,", b'"",', b"[],", b'{"":1},', b'"b64":"",'):
        server.post(path, b'{"instances": [' + value * (60 * MEGABYTE // len(value)))


@contextlib.contextmanager
def slow_senders(server, number=20):
    """Connections on which a request arrives byte by byte, and never ends."""
    begun = f"POST /v1/models/scaler:predict HTTP/1.1\r\nHost: s\r\nContent-Length: {MEGABYTE}\r\n"
    done = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(done.set)
        address = ("127.0.0.1", server.rest_port)
        open_ones = [stack.enter_context(socket.create_connection(address)) for _ in range(number)]

        def trickle():
            while not done.wait(0.2):
                for index, connection in enumerate(open_ones):
                    with contextlib.suppress(OSError):
                        connection.send(begun[index:][:1].encode() if index % 2 else b"x")

        for index, connection in enumerate(open_ones):
            connection.send((begun + "\r\n" * (index % 2)).encode())
        threading.Thread(target=trickle, daemon=True).start()
        yield


def version_comes(models):
    shutil.copytree(models / "history" / "1", models / "history" / ".2")
    (models / "history" / ".2").rename(models / "history" / "2")


def version_goes(models):
    (models / "history" / "2").rename(models / "history" / ".gone")
    shutil.rmtree(models / "history" / ".gone")


@contextlib.contextmanager
def versions_come_and_go(server, models):
    """While the block runs, version 2 of `history` appears and vanishes; each answer meanwhile is right."""
    done = threading.Event()

    def change():
        while not done.is_set():
            version_comes(models)
            done.wait(1)
            version_goes(models)
            done.wait(1)

    def ask():
        while not done.wait(0.01):
            server.answers_right()

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(change), pool.submit(ask)]
        try:
            yield
        finally:
            done.set()
    assert [each.result() for each in work] == [None, None]


def settled(server, models) -> int:
    """Megabytes after a version has been unloaded, when the server has given back what nobody uses."""
    for change, state in ((version_comes, "AVAILABLE"), (version_goes, "END")):
        change(models)
        while (2, state) not in [(one.version, one.state) for one in server.client.status("history")]:
            time.sleep(0.1)
    return server.memory() // MEGABYTE


@pytest.mark.parametrize("batching", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "batched"])
@pytest.mark.parametrize(
    ("least", "rounds", "number"),
    [pytest.param(300, 2, 20, id="short"), pytest.param(2000, 6, 120, id="full", marks=pytest.mark.slow)],
)
def test_hostile_requests_are_refused_and_harm_nobody(models, tmp_path, batching, least, rounds, number):
    flags = [f"--model_config_file={models / 'models.config'}", "--file_system_poll_wait_seconds=0.3"]
    if batching:
        flags += ["--enable_batching", f"--batching_parameters_file={models / 'batching.config'}"]
    with process(*flags, log=tmp_path / "log") as (running, target, rest_port):
        server = Besieged(running, target, rest_port)
        server.answers_right()
        # Warms up. TensorFlow never frees the message of an op that failed, and this one quotes what it refuses.
        server.call(PREDICT + "Predict", predict("", examples=[b"\xff" * (60 * MEGABYTE)]))
        oversized(server)
        with slow_senders(server), versions_come_and_go(server, models):
            for state in ("AVAILABLE", "END"):
                while (2, state) not in [(one.version, one.state) for one in server.client.status("history")]:
                    by_hand(server)
        made_up(server, number)
        for call in at_once(server):  # in a round they may be cancelled before they are worked at together, or not
            assert call.code() is grpc.StatusCode.OK
        memory = []
        for _ in range(rounds):
            hurried(server)
            with slow_senders(server):
                by_hand(server)
            if least >= 2000:
                oversized(server)
            server.answers_right()
            memory.append(settled(server, models))
        print(server.answers, "MB after each round:", memory)
        assert memory[-1] < 1.05 * memory[0]  # the first round warms up
        assert sum(server.answers.values()) >= least
        server.answers_right()
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert "a request failed" not in (tmp_path / "log").read_text()  # what answers INTERNAL logs
