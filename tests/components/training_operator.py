"""A stand-in for Kubernetes and Kubeflow's training operator: TFJobs over the API server's REST interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes
import pytest

from components.trainer import workers


class TrainingOperator:
    """Serves on 127.0.0.1; `play` is called with a new job in a thread of its own, and says whether it succeeded."""

    def __init__(self, play: Callable[[dict[str, Any]], bool]) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.busy = 0  # so many questions for the state are answered by 503
        operator, self._play = self, play

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body["metadata"]["name"]
                if name in operator.jobs:
                    return self.answer(409, {"reason": "AlreadyExists"})
                operator.start(body)
                return self.answer(201, body)

            def do_GET(self) -> None:
                if operator.busy and self.path.endswith("/status"):
                    operator.busy -= 1
                    return self.answer(503, {"reason": "ServiceUnavailable"})
                job = operator.jobs.get(self.path.removesuffix("/status").rpartition("/")[2])
                return self.answer(200 if job else 404, job or {"reason": "NotFound"})

            def do_DELETE(self) -> None:
                operator.jobs.pop(self.path.rpartition("/")[2])
                self.answer(200, {"status": "Success"})

            def answer(self, code: int, content: dict[str, Any]) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def start(self, body: dict[str, Any]) -> None:
        """As if the job had been posted."""
        self.jobs[body["metadata"]["name"]] = job = dict(body)
        self.created.append(body)

        def run() -> None:
            kind = "Succeeded" if self._play(body) else "Failed"
            message = "worker 1 ran out of memory" if kind == "Failed" else ""
            job["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

        threading.Thread(target=run, daemon=True).start()

    def redirect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the step find this server where it would find the cluster's."""

        def configure() -> None:
            configuration = kubernetes.client.Configuration()
            configuration.host = f"http://127.0.0.1:{self._server.server_port}"
            kubernetes.client.Configuration.set_default(configuration)

        monkeypatch.setattr(kubernetes.config, "load_incluster_config", configure)
        monkeypatch.setattr(workers, "_POLL_SECONDS", 0.05)

    def __enter__(self) -> TrainingOperator:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
