"""`shortlist submit` against a server that speaks the API of Kubeflow Pipelines.

The stub knows the paths and messages of `kfp_server_api`, which is generated from the published OpenAPI: what it is
sent must be one of those messages, field by field.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import pytest
from google.protobuf.json_format import ParseDict
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from pipeline import config, kubeflow, submit
from pipeline.errors import RunFailedError
from transform.contract import ContractError

MODELS = {
    "/apis/v2beta1/experiments": kfp_server_api.V2beta1Experiment,
    "/apis/v2beta1/runs": kfp_server_api.V2beta1Run,
    "/apis/v2beta1/recurringruns": kfp_server_api.V2beta1RecurringRun,
}
IDS = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}


class Stub(BaseHTTPRequestHandler):
    """Remembers what was made; an experiment exists once it was made."""

    def do_GET(self) -> None:
        if self.path.startswith("/apis/v2beta1/healthz"):
            self.answer(200, {"multi_user": False})
        elif self.path.startswith("/apis/v2beta1/experiments"):
            asked = parse_qs(urlsplit(self.path).query).get("namespace", [None])[0]
            experiments = [body for path, body, _ in self.server.made if path.endswith("experiments")]
            found = [body for body in experiments if body.get("namespace") == asked]
            self.answer(200, {"experiments": found})
        else:
            self.answer(404, {"error": self.path})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuses:
            return self.answer(409, {"error": "there is one already"})
        known = set(MODELS[path].attribute_map.values())
        if not set(body) <= known:
            return self.answer(400, {"error": f"unknown fields {set(body) - known}"})
        kind = path.rpartition("/")[2]
        body |= {IDS[kind]: f"{kind}-{len(self.server.made)}"}
        self.server.made.append((path, body, self.headers.get("authorization")))
        return self.answer(200, body)

    def answer(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as stub:
        stub.made, stub.refuses = [], False
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        monkeypatch.setenv(submit.HOST, f"http://127.0.0.1:{stub.server_port}")
        monkeypatch.delenv(submit.TOKEN, raising=False)
        yield stub
        stub.shutdown()


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "movielens.json"
    job = kubeflow.compile_spec(
        config.load("movielens"), "s3://b/world", "s3://b/runs", "s3://b/models", "shortlist@sha256:0"
    )
    kubeflow.write_spec(job, path)
    return path


def made(server, kind: str) -> dict:
    (body,) = [body for path, body, _ in server.made if path.endswith(f"/{kind}")]
    return body


def test_a_run_has_the_spec_its_root_and_its_parameters(server, spec):
    kind, number = submit.submit(spec, "feeds", {"world": "s3://b/today"})
    assert (kind, number) == ("run", made(server, "runs")["run_id"])
    run = made(server, "runs")
    assert made(server, "experiments")["display_name"] == "feeds"
    assert run["experiment_id"] == made(server, "experiments")["experiment_id"]
    assert run["runtime_config"]["parameters"] == {
        "world": "s3://b/today",
        "models": "s3://b/models",
        "run_id": "unnamed",
    }
    assert run["runtime_config"]["pipeline_root"] == "s3://b/runs/artifacts"
    sent, compiled = run["pipeline_spec"], json.loads(spec.read_text())["pipelineSpec"]
    assert ParseDict(sent, PipelineSpec()) == ParseDict(compiled, PipelineSpec())


def test_secrets_and_volumes_of_the_steps_are_sent_too(server, tmp_path):
    settings = config.load("movielens").model_dump(mode="json")
    settings["kubeflow"] = {"secrets": {"bucket": {"id": "AWS_ACCESS_KEY_ID"}}, "volumes": {"models": "/models"}}
    job = kubeflow.compile_spec(
        config.RunConfig.model_validate(settings), "s3://b/w", "s3://b/r", "/models", "i@sha256:0"
    )
    kubeflow.write_spec(job, tmp_path / "spec.json")
    submit.submit(tmp_path / "spec.json", "feeds")
    sent = made(server, "runs")["pipeline_spec"]
    told = sent["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    keys = [{"secretKey": "id", "envVar": "AWS_ACCESS_KEY_ID"}]
    assert told["Trainer_executor"] == {
        "secretAsEnv": [{"secretName": "bucket", "keyToEnv": keys}],
        "pvcMount": [{"constant": "models", "mountPath": "/models"}],
    }
    assert set(told) == set(kubeflow.executors({"pipelineSpec": sent["pipeline_spec"]}))  # all are containers


def test_a_recurring_run_is_never_two_at_a_time_and_catches_nothing_up(server, spec):
    kind, number = submit.submit(spec, "feeds", cron="0 0 3 * * *")
    recurring = made(server, "recurringruns")
    assert (kind, number) == ("recurring run", recurring["recurring_run_id"])
    assert int(recurring["max_concurrency"]) == 1
    assert recurring["no_catchup"] is True
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert recurring["runtime_config"]["parameters"] == {
        "world": "s3://b/world",
        "models": "s3://b/models",
        "run_id": "unnamed",
    }  # the defaults


def test_folders_have_no_slash_at_the_end_and_models_are_not_pushed_into_the_world(server, spec):
    submit.submit(spec, "feeds", {"models": "s3://b/others/"})
    assert made(server, "runs")["runtime_config"]["parameters"]["models"] == "s3://b/others"
    for taken in ("s3://b/world/", "s3://b/runs"):
        with pytest.raises(ContractError, match="expected a world, a pipeline root and a push destination of their"):
            submit.submit(spec, "feeds", {"models": taken})


@pytest.mark.parametrize("cron", [None, "0 0 3 * * *"])
def test_a_server_of_many_users_is_told_the_namespace_and_the_service_account(server, spec, cron):
    for namespace in ("ours", "theirs", "ours"):
        submit.submit(spec, "feeds", cron=cron, namespace=namespace, service_account="runner")
    experiments = [body for path, body, _ in server.made if path.endswith("experiments")]
    ours, theirs = (body["experiment_id"] for body in experiments)
    assert [body["namespace"] for body in experiments] == ["ours", "theirs"]  # one each, found again
    runs = [body for path, body, _ in server.made if not path.endswith("experiments")]
    assert [body["experiment_id"] for body in runs] == [ours, theirs, ours]
    assert {body["service_account"] for body in runs} == {"runner"}


def test_the_token_of_the_environment_is_shown(server, spec, monkeypatch):
    monkeypatch.setenv(submit.TOKEN, "secret")
    submit.submit(spec, "feeds")
    assert {token for _, _, token in server.made} == {"Bearer secret"}


def test_a_refusal_says_what_the_server_said(server, spec):
    server.refuses = True
    with pytest.raises(ContractError, match=r"refused .*movielens.json: 409 .*there is one already"):
        submit.submit(spec, "feeds")


def test_a_server_that_is_not_there_is_no_mistake_of_the_user(spec, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    monkeypatch.setenv(submit.HOST, "http://127.0.0.1:9")
    with pytest.raises(RunFailedError, match=r"127.0.0.1:9 cannot be reached"):
        submit.submit(spec, "feeds")


def test_mistakes_are_told_before_anything_is_sent(server, spec, tmp_path, monkeypatch):
    with pytest.raises(ContractError, match="has no parameter 'wrld': expected one of models, run_id, world"):
        submit.submit(spec, "feeds", {"wrld": "x"})
    with pytest.raises(ContractError, match=r"no spec .*none.json: `shortlist compile --out"):
        submit.submit(tmp_path / "none.json", "feeds")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ContractError, match="expected what `shortlist compile` writes"):
        submit.submit(tmp_path / "other.json", "feeds")
    monkeypatch.delenv(submit.HOST)
    with pytest.raises(ContractError, match="KFP_HOST is not set"):
        submit.submit(spec, "feeds")
    assert server.made == []
