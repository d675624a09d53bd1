"""TLS, client certificates, tokens and the limits of waiting, over real channels."""

import asyncio
import datetime
import http.client
import ipaddress
import json
import shutil
import ssl
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import AsyncClient, Client, ResourceExhausted, ServingError, Tls, Unauthenticated, Unavailable
from serving.model_server import backend, rest, security
from serving.model_server.configuration import read_ssl
from serving.model_server.options import TOKEN_VARIABLE, Options
from serving.model_server.server import Server
from transform.contract import ContractError

TOKEN = "correct-horse"
ONE = np.float32([1.0, 2.0])  # times factor 3 of the newest version


def options(saved, **flags) -> Options:
    return Options(models=str(saved), port=0, rest_api_port=0, file_system_poll_wait_seconds=0.0, **flags)


def certificate(name, issuer=None, issuer_key=None):
    """(key, certificate) as PEM text, and the objects to sign others with."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(issuer_key or key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return (key.private_bytes(*pem).decode(), made.public_bytes(pem[0]).decode()), (made, key)


@pytest.fixture(scope="module")
def authority():
    return certificate("authority")


@pytest.fixture(scope="module")
def ssl_config(authority, tmp_path_factory):
    """A function that writes an SSLConfig and gives its path."""
    (_, root), signer = authority
    (key, chain), _ = certificate("server", *signer)

    def write(client_verify: bool) -> str:
        path = tmp_path_factory.mktemp("ssl") / "ssl.config"
        texts = {"server_key": key, "server_cert": chain, "custom_ca": root}
        lines = [f"{name}: {json.dumps(text)}" for name, text in texts.items()]
        path.write_text("\n".join([*lines, f"client_verify: {str(client_verify).lower()}"]))
        return str(path)

    return write


def test_client_certificates_need_an_authority_to_be_checked_by(ssl_config, tmp_path):
    text = Path(ssl_config(client_verify=True)).read_text()
    path = tmp_path / "ssl.config"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("custom_ca")))
    with pytest.raises(ContractError, match="client_verify needs custom_ca"):
        read_ssl(str(path))


def fetch(server, path="/v1/models/scaler", context=None, headers=None) -> int:
    request = urllib.request.Request(
        f"http{'s' if context else ''}://127.0.0.1:{server.rest_port}{path}", headers=headers or {}
    )
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status
    except HTTPError as error:
        with error:
            return error.code if json.load(error)["error"] else 0


def test_tls_serves_who_trusts_the_certificate_and_nobody_in_clear(saved, ssl_config, authority):
    (_, root), _ = authority
    with Server(options(saved, ssl_config_file=ssl_config(client_verify=False))) as server:
        with Client(server.target, tls=Tls(root.encode())) as client:
            assert client.predict_tensors("scaler", {"x": ONE}, "one")["y"].tolist() == [3.0, 6.0]
        with Client(server.target, timeout_seconds=2, retries=0) as clear, pytest.raises(Unavailable):
            clear.status("scaler")
        with Client(server.target, timeout_seconds=2, retries=0, tls=Tls()) as distrusting, pytest.raises(Unavailable):
            distrusting.status("scaler")
        assert fetch(server, context=ssl.create_default_context(cadata=root)) == 200
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(server, context=ssl.create_default_context())
        with pytest.raises((URLError, ConnectionError, http.client.HTTPException)):
            fetch(server)


def test_a_client_certificate_is_asked_for_and_checked(saved, ssl_config, authority, tmp_path):
    (_, root), signer = authority
    (key, chain), _ = certificate("client", *signer)
    (stranger_key, stranger), _ = certificate("stranger")
    with Server(options(saved, ssl_config_file=ssl_config(client_verify=True))) as server:
        with Client(server.target, tls=Tls(root.encode(), key.encode(), chain.encode())) as client:
            assert client.status("scaler")[0].state == "AVAILABLE"
        for tls in (Tls(root.encode()), Tls(root.encode(), stranger_key.encode(), stranger.encode())):
            with Client(server.target, timeout_seconds=2, retries=0, tls=tls) as other, pytest.raises(Unavailable):
                other.status("scaler")
        context = ssl.create_default_context(cadata=root)
        with pytest.raises((URLError, ssl.SSLError, ConnectionError)):
            fetch(server, context=context)
        (tmp_path / "client.pem").write_text(key + chain)
        context.load_cert_chain(tmp_path / "client.pem")
        assert fetch(server, context=context) == 200


def test_a_key_that_does_not_fit_its_certificate_is_refused_before_anything_listens(saved, tmp_path):
    (key, _), _ = certificate("one")
    (_, chain), _ = certificate("other")
    path = tmp_path / "ssl.config"
    path.write_text(f"server_key: {json.dumps(key)} server_cert: {json.dumps(chain)}")
    with pytest.raises(ContractError, match="server_key and server_cert of --ssl_config_file do not fit") as raised:
        Server(options(saved, ssl_config_file=str(path)))
    assert "PRIVATE" not in str(raised.value)


@pytest.fixture(scope="module")
def guarded(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    with Server(options(saved, token_file=str(path))) as server:
        yield server


def test_the_token_opens_grpc(guarded):
    with Client(guarded.target, token=TOKEN) as client:
        assert client.predict_tensors("scaler", {"x": ONE}, "one")["y"].tolist() == [3.0, 6.0]
    with Client(guarded.target) as client:
        assert client.status("scaler", metadata=[("authorization", f"Bearer {TOKEN}")])[0].state == "AVAILABLE"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], f"{TOKEN} {TOKEN}"])
def test_any_other_token_is_refused_over_grpc_and_rest(guarded, token):
    with Client(guarded.target, token=token) as client:
        for ask in (lambda: client.status("scaler"), lambda: client.predict_tensors("nobody", {"x": ONE})):
            with pytest.raises(Unauthenticated, match="expected the header 'authorization: Bearer TOKEN'"):
                ask()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    assert fetch(guarded, headers=headers) == 401
    assert fetch(guarded, "/v1/models/../../etc", headers=headers) == 401


def test_the_token_opens_rest(guarded):
    assert fetch(guarded, headers={"Authorization": f"Bearer {TOKEN}"}) == 200


def test_probes_need_no_token(guarded):
    assert [fetch(guarded, path) for path in ("/healthz", "/readyz")] == [200, 200]
    with grpc.insecure_channel(guarded.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_token_in_the_environment_guards_as_well(saved, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with Server(options(saved)) as server, Client(server.target) as client, pytest.raises(Unauthenticated):
        client.status("scaler")


def test_what_waits_is_bounded_and_the_rest_refused_at_once(saved, monkeypatch):
    """One thread that is busy and 16 places to wait: of 60 calls 17 are answered in the end, the others right away."""
    entered, release = threading.Event(), threading.Event()
    with Server(options(saved, grpc_max_threads=1)) as server, Client(server.target, timeout_seconds=30) as client:
        client.wait_until_ready("scaler", 10)
        status = server.models.status
        monkeypatch.setattr(server.models, "status", lambda spec: (entered.set(), release.wait(20), status(spec))[2])

        def ask(_):
            try:
                return client.status("scaler")[0].state
            except ResourceExhausted:
                return "refused"

        with ThreadPoolExecutor(60) as pool:
            answers = [pool.submit(ask, number) for number in range(60)]
            assert entered.wait(10)
            while sum(answer.done() for answer in answers) < 60 - 17:
                threading.Event().wait(0.01)
            release.set()
            states = [answer.result() for answer in answers]
    assert (states.count("AVAILABLE"), states.count("refused")) == (17, 43)


def test_matching_takes_no_shortcut():
    assert security.matches("Bearer t", "t")
    assert security.matches(b"Bearer t", "t")
    assert not any(security.matches(header, "t") for header in ("", "t", "bearer t", "Bearer T", "Bearer ü", "Basic t"))


def test_the_async_client_shows_token_and_certificate_too(saved, ssl_config, authority, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (_, root), _ = authority

    async def ask(target, token):
        async with AsyncClient(target, tls=Tls(root.encode()), token=token) as client:
            return (await client.predict_tensors("scaler", {"x": ONE}, "one"))["y"].tolist()

    with Server(options(saved, ssl_config_file=ssl_config(client_verify=False))) as server:
        assert asyncio.run(ask(server.target, TOKEN)) == [3.0, 6.0]
        with pytest.raises(Unauthenticated):
            asyncio.run(ask(server.target, "wrong"))


def refusal(ask) -> tuple[str, str]:
    with pytest.raises(ServingError) as raised:
        ask()
    return raised.value.code.name, raised.value.details


def test_a_request_may_have_so_many_rows_without_batching_too(saved):
    """Three: of a batch, of a tensor of any shape, and of examples, over gRPC and REST."""
    too_many = "Task size 4 is larger than maximum input batch size 3"
    with Server(options(saved, max_request_rows=3)) as server, Client(server.target) as client:
        for ask in (
            lambda rows: client.predict_tensors("scaler", {"x": np.ones(rows, np.float32)}, "one")["y"],
            lambda rows: client.predict_tensors("scaler", {"x": np.ones([rows, 2], np.float32)}, "anything")["y"],
            lambda rows: client.predict_examples("scaler", [b""] * rows)["score"],
        ):
            assert len(ask(3)) == 3
            assert refusal(lambda ask=ask: ask(4)) == ("INVALID_ARGUMENT", too_many)
        for rows, expected in ((3, (200, {"predictions": [3.0] * 3})), (4, (400, {"error": too_many}))):
            body = json.dumps({"signature_name": "one", "instances": [1.0] * rows}).encode()
            status, answer = rest.respond(server._backend, "POST", "/v1/models/scaler:predict", body)
            assert (status, json.loads(answer)) == expected


def test_all_grpc_requests_together_may_hold_so_much_memory(saved, monkeypatch):
    with Server(options(saved)) as server, Client(server.target, retries=0) as client:
        monkeypatch.setattr(backend, "MAX_HELD_BYTES", 1000)
        for _ in range(2):  # what was held is given back
            refused = refusal(lambda: client.predict_tensors("scaler", {"x": np.zeros(300, np.float32)}, "one"))
            assert refused == ("UNAVAILABLE", "too many large requests at once: try again")
        assert client.predict_tensors("scaler", {"x": ONE}, "one")["y"].tolist() == [3.0, 6.0]


def test_a_message_may_be_so_large(saved):
    with Server(options(saved)) as server, Client(server.target) as client:
        too_large = np.zeros(backend.MAX_REQUEST_BYTES // 4 + 1, np.float32)
        with pytest.raises(ResourceExhausted, match="larger than max"):
            client.predict_tensors("scaler", {"x": too_large}, "one")


def test_the_folder_of_models_is_only_read(saved, tmp_path):
    """Nothing in it is made, changed or touched, from start to stop."""

    def listed():
        found = [folder, *sorted(folder.rglob("*"))]
        return [(path, path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in found]

    folder = tmp_path / "models"
    shutil.copytree(saved, folder)
    before = listed()
    with Server(Options(models=str(folder), port=0, rest_api_port=0, file_system_poll_wait_seconds=0.05)) as server:
        with Client(server.target) as client:
            assert client.predict_examples("scaler", [b""])["score"].tolist() == [3.0]
        server.models.refresh()
    assert listed() == before
