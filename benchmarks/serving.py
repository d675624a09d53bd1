"""What the model server costs: latency, requests/s, batching, swaps under load, and memory over many swaps.

    python benchmarks/serving.py [--run runs/demo] [--seconds 5] [--swaps 20]

The ranker of a run answers requests made of the run's own world. Everything is held against a floor of the same run of
this script: the bare call of the signature, in the process of the client. The server is a process of its own
(`python -m serving.model_server`), as a user starts it. Results go to `results/serving.{json,md}`.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from protocols.load import free_port, latencies, percentile, together

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, where `serving` would be this very file
RESULTS = ROOT / "benchmarks" / "results"
MODEL = "ranker"
BATCHES = (1, 100, 600)
CLIENTS = (1, 8, 32)
SWAPPED_UNDER = (1, 2, 8)  # clients: with a core to spare for loading, without, and more than the cores can answer
PARTS = ("batches", "clients", "swaps", "memory")
PACKAGES = ("tensorflow", "tensorflow-serving-api", "grpcio", "starlette", "uvicorn", "numpy")
Measure = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="folder of a run that pushed a ranker")
    parser.add_argument("--seconds", type=float, default=5.0, help="of every measurement")
    parser.add_argument("--swaps", type=int, default=20, help="under load")
    parser.add_argument("--memory-swaps", type=int, default=50, help="without load")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the others stay as they are recorded")
    options = parser.parse_args()
    examples = _examples(options.run)
    with tempfile.TemporaryDirectory() as folder:
        first, second = _two_versions(options.run, Path(folder))
        measures: dict[str, Callable[[], Any]] = {
            "batches": lambda: batches(first, examples, options.seconds),
            "clients": lambda: [
                row for batching in (False, True) for row in clients(first, examples, options.seconds, batching)
            ],
            "swaps": lambda: [swaps(first, second, examples[:100], options.swaps, n) for n in SWAPPED_UNDER],
            "memory": lambda: memory(first, second, examples[:100], options.memory_swaps),
        }
        recorded = RESULTS / "serving.json"
        results = json.loads(recorded.read_text()) if set(options.parts) < set(measures) else {}
        results |= {part: measures[part]() for part in options.parts}
    write(results)


def batches(model: Path, examples: list[bytes], seconds: float) -> list[Measure]:
    """One client, by batch size: the bare call, gRPC and REST in turn, so that all meet the same machine."""
    from serving.client import Client

    bare = _bare(model)
    rows = []
    with _server({1: model}) as (grpc_port, rest_port, _), Client(f"127.0.0.1:{grpc_port}") as client:
        url = f"http://127.0.0.1:{rest_port}/v1/models/{MODEL}:predict"
        with httpx.Client() as http:
            for size in BATCHES:
                batch = (examples * (size // len(examples) + 1))[:size]
                body = json.dumps({"inputs": [{"b64": base64.b64encode(e).decode()} for e in batch]})
                calls: dict[str, Callable[[], Any]] = {
                    "bare": lambda batch=batch: bare(batch),
                    "grpc": lambda batch=batch: client.predict_examples(MODEL, batch)["score"],
                    "rest": lambda body=body: np.array(http.post(url, content=body).json()["outputs"]["score"]),
                }
                measured = {name: latencies(call, seconds) for name, call in calls.items()}
                answers = {name: call() for name, call in calls.items()}
                for name, times in measured.items():
                    assert np.allclose(answers[name], answers["bare"], atol=1e-6), f"{name} answers something else"
                    rows.append({"batch": size, "how": name, **_summary(times, measured["bare"])})
                    print(rows[-1], flush=True)
    return rows


def clients(model: Path, examples: list[bytes], seconds: float, batching: bool) -> list[Measure]:
    """Many clients that each ask for one row at a time, with or without joining their requests."""
    from serving.client import Client

    call = _bare(model)
    bare = latencies(lambda: call(examples[:1]), seconds)
    rows = []
    flags = ["--enable_batching", f"--batching_parameters_file={ROOT}/serving/configs/batching.config"]
    with _server({1: model}, flags if batching else []) as (port, _, _):
        for number in CLIENTS:
            connections = [Client(f"127.0.0.1:{port}", timeout_seconds=30) for _ in range(number)]
            calls = [lambda c=c: c.predict_examples(MODEL, examples[:1]) for c in connections]
            times = together(calls, seconds)
            for connection in connections:
                connection.close()
            rows.append({"clients": number, "batching": batching, **_summary(times, bare, seconds)})
            print(rows[-1], flush=True)
    return rows


def swaps(first: Path, second: Path, examples: list[bytes], number: int, clients: int) -> Measure:
    """Versions with different answers take turns under the load of some clients; every answer is one of the two."""
    from serving.client import Client

    expected = [_bare(model)(examples) for model in (first, second)]
    wrong: list[str] = []

    def ask(client: Client) -> None:
        try:
            scores = client.predict_examples(MODEL, examples)["score"]
            if not any(np.allclose(scores, answer, atol=1e-6) for answer in expected):
                wrong.append("another answer")
        except Exception as error:
            wrong.append(repr(error))

    with _server({1: first}) as (port, _, models):
        for version in range(2, number + 2):  # now, so that copying does not take the clients' time
            shutil.copytree(second if version % 2 == 0 else first, models / f"tmp-{version}")
        connections = [Client(f"127.0.0.1:{port}", timeout_seconds=30, retries=0) for _ in range(clients)]
        calls = [lambda c=c: ask(c) for c in connections]
        together(calls, 2.0)
        steady = together(calls, 10.0)
        stop = threading.Event()
        times: list[float] = []
        load = threading.Thread(target=lambda: times.extend(together(calls, 3600, stop)))
        load.start()
        for version in range(2, number + 2):
            (models / f"tmp-{version}").rename(models / str(version))
            _wait_for(connections[0], version)
        stop.set()
        load.join()
    p99 = [percentile(part, 99) for part in (steady, times)]
    return {
        "swaps": number,
        "clients": clients,
        "requests": len(times),
        "failed_or_wrong": len(wrong),
        "what": sorted(set(wrong))[:5],
        "steady_p99_ms": p99[0],
        "swaps_p99_ms": p99[1],
        "ratio": p99[1] / p99[0],
    }


def memory(first: Path, second: Path, examples: list[bytes], number: int) -> Measure:
    """Resident memory of the server after 5 swaps and after all; a request is answered by every version."""
    from serving.client import Client

    after: dict[int, float] = {}
    with _server({1: first}) as (port, _, models), Client(f"127.0.0.1:{port}", timeout_seconds=30) as client:
        process = next(p for p in psutil.process_iter(["cmdline"]) if f"--port={port}" in (p.info["cmdline"] or ()))
        for swap in range(1, number + 1):
            _push(second if swap % 2 else first, models, swap + 1)
            _wait_for(client, swap + 1)
            client.predict_examples(MODEL, examples)
            after[swap] = process.memory_info().rss / 2**20
    return {"swaps": number, "after_5_mib": after[5], "after_all_mib": after[number], "ratio": after[number] / after[5]}


def _examples(run: Path) -> list[bytes]:
    """600 request rows of the run's world: the catalogue for its first users."""
    from components.impression_example_gen.asking import serving_rows
    from components.world.tables import read_table
    from serving.requests import to_examples
    from transform.contract import Contract

    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    contract = Contract.from_json(record["contract"])
    at = max(read_table(record["world"], "interactions", ["at"])["at"].to_pylist()) + 1
    user = read_table(record["world"], "users", ["user_id"])["user_id"][0].as_py()
    return to_examples(serving_rows(record["world"], contract, user, None, at)[:600], contract)


def _two_versions(run: Path, folder: Path) -> tuple[Path, Path]:
    """The run's newest ranker, and the same with other weights."""
    import tensorflow as tf

    from trainer.captured import save

    pushed = max((run / "models" / MODEL).iterdir(), key=lambda path: int(path.name))
    model = tf.saved_model.load(str(pushed))
    for variable in tf.train.TrackableView(model).descendants():
        if isinstance(variable, tf.Variable) and variable.dtype.is_floating:
            variable.assign(variable * 0.9)
    save(model, dict(model.signatures), str(folder / "second"))  # as it is exported
    if (pushed / "assets.extra").is_dir():  # warm-up requests, which a SavedModel's own saving leaves behind
        shutil.copytree(pushed / "assets.extra", folder / "second" / "assets.extra")
    return pushed, folder / "second"


def _bare(model: Path) -> Callable[[list[bytes]], Any]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(model))
    signature = loaded.signatures["serving_default"]

    def call(batch: list[bytes], _alive: Any = loaded) -> Any:
        return signature(examples=tf.constant(batch))["score"].numpy()

    return call


@contextmanager
def _server(versions: dict[int, Path], flags: list[str] | None = None) -> Iterator[tuple[int, int, Path]]:
    """A server over a folder of its own; gives gRPC port, REST port and the model's folder."""
    from serving.client import Client

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / MODEL
        for version, path in versions.items():
            _push(path, models, version)
        grpc_port, rest_port = free_port(), free_port()
        command = [sys.executable, "-m", "serving.model_server", f"--models={folder}", f"--port={grpc_port}"]
        command += [f"--rest_api_port={rest_port}", "--file_system_poll_wait_seconds=0.2", *(flags or [])]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            with Client(f"127.0.0.1:{grpc_port}", timeout_seconds=60, retries=100) as client:
                client.wait_until_ready(MODEL, 60)
            yield grpc_port, rest_port, models
        finally:
            process.terminate()
            process.wait(30)


def _push(model: Path, models: Path, version: int) -> None:
    """A version appears whole, as Pusher's rename makes it, and the one before the last goes."""
    models.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, models / f"tmp-{version}")
    (models / f"tmp-{version}").rename(models / str(version))
    shutil.rmtree(models / str(version - 2), ignore_errors=True)


def _wait_for(client: Any, version: int) -> None:
    deadline = time.monotonic() + 300  # under load, to which loading gives way
    while time.monotonic() < deadline:
        states = {status.version: status.state for status in client.status(MODEL)}
        if states.get(version) == "AVAILABLE" and states.get(version - 1, "END") == "END":
            return
        time.sleep(0.2)
    raise TimeoutError(f"version {version} is not served: {states}")


def _summary(times: list[float], bare: list[float], seconds: float | None = None) -> Measure:
    p50, p99 = (percentile(times, q) for q in (50, 99))
    elapsed = seconds or sum(times)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "requests_per_second": len(times) / elapsed,
        "p50_to_bare": p50 / percentile(bare, 50),
        "p99_to_bare": p99 / percentile(bare, 99),
    }


def write(results: dict[str, Any]) -> None:
    """`results/serving.json`, and the tables as markdown."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    RESULTS.mkdir(exist_ok=True)
    record = {**results, "machine": machine, "versions": versions}
    (RESULTS / "serving.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# The model server",
        "",
        "Written by `benchmarks/serving.py`, whose docstring says how it is measured.",
        "",
    ]
    lines += [f"Machine: {machine}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]
    lines += ["## One client", "", "| rows | how | p50 ms | p99 ms | requests/s | p50 to bare | p99 to bare |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_line((r["batch"], r["how"]), r) for r in results["batches"]]
    lines += ["", "## Clients that ask for one row each", ""]
    lines += [
        "| clients | batching | p50 ms | p99 ms | requests/s | p50 to bare | p99 to bare |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line((r["clients"], "yes" if r["batching"] else "no"), r) for r in results["clients"]]
    lines += ["", "## Swaps", "", *_swaps(results["swaps"], results["memory"]), ""]
    lines += [
        "## Bars",
        "",
        *(
            f"- {'holds' if ok else '**does not hold**'}: {bar}"
            for bar, ok in _bars(results["swaps"], results["memory"]).items()
        ),
    ]
    (RESULTS / "serving.md").write_text("\n".join(lines) + "\n")


def _line(first: tuple[Any, ...], row: Measure) -> str:
    values = [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['requests_per_second']:,.0f}"]
    values += [f"{row['p50_to_bare']:.2f}", f"{row['p99_to_bare']:.2f}"]
    return f"| {' | '.join([*map(str, first), *values])} |"


def _swaps(under_load: list[Measure], m: Measure) -> list[str]:
    return [
        *(
            f"- {s['swaps']} swaps under load of {s['clients']} client(s): {s['requests']:,} requests, "
            f"{s['failed_or_wrong']} failed or wrong. p99 {s['swaps_p99_ms']:.1f} ms, {s['ratio']:.2f} times the "
            f"steady {s['steady_p99_ms']:.1f} ms."
            for s in under_load
        ),
        f"- Memory after {m['swaps']} swaps {m['after_all_mib']:.0f} MiB, {m['ratio']:.3f} times that after 5 "
        f"({m['after_5_mib']:.0f} MiB).",
    ]


def _bars(swapped: list[Measure], memory_used: Measure) -> dict[str, bool]:
    return {
        "at least 20 swaps under load, no request failed or answered wrong": all(
            s["swaps"] >= 20 and s["failed_or_wrong"] == 0 for s in swapped
        ),
        **{
            f"p99 during swaps at most twice the steady one, {s['clients']} client(s) on {os.cpu_count()} cores": (
                s["ratio"] <= 2
            )
            for s in swapped
        },
        "memory after 50 swaps within 10 % of that after 5": memory_used["swaps"] >= 50 and memory_used["ratio"] <= 1.1,
    }


if __name__ == "__main__":
    main()
