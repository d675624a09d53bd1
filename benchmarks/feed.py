"""What a feed costs in one call, by the size of the catalogue.

    python benchmarks/feed.py [--run runs/demo] [--sizes 1000 10000 100000] [--seconds 10]

The models are those that a run of `make demo` pushed. A catalogue of another size is the demo's, with every video as
often as need be under further ids and with noise on its content vectors; index, frames and tables are built of it as
`shortlist index` builds them, with the run's topic queues and the product's 600 candidates a request. Measured for one
user, in one process: the bare signature `raw` of retrieval, of the ranker over its candidates and of JIFR over the ten
videos shown, and the one call of the feed, in turns; and how many bytes are sent and answered. Then the feed over gRPC,
through a model server of its own, with 1 and 8 clients. Results: `results/feed.json`, `.md`, `.svg`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # before this folder, where `serving` would be a benchmark
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the models' ops)
from protocols import figure
from protocols.load import free_port, in_turn, latencies, percentile, together
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.feed_assembler.executor import served_stages
from components.impression_example_gen import asking, features
from components.world import tables
from pipeline.queue_store import by_topic
from pipeline.runs import artifact, learned_of_videos, load_run
from serving.client import Client
from serving.requests import to_examples, to_feed_example
from trainer import feed_export, jifr_export, retrieval_export
from trainer.layers.topic_index import IndexSettings
from transform.clips import VIDEO_ID
from transform.contract import Contract
from transform.feed import FeedSettings
from transform.schema import parse_spec

HERE = Path(__file__).parent
SHOWN, CANDIDATES, BAR = 10, 600, 1.3
CLIENTS = (1, 8)
VECTORS = {"visual_vector", "audio_vector", "text_vector", "look_vector"}
PACKAGES = ("tensorflow", "tensorflow-serving-api", "grpcio", "numpy")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs" / "demo", help="folder of a run of the demo")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "feed")
    options = parser.parse_args()
    run, rows = load_run(options.run), []
    for size in options.sizes:
        stages, feed = _built(run, size, options.work / str(size))
        rows.append({"videos": size, **_in_process(run, stages, feed, options.seconds)})
        rows[-1]["served"] = [_served(run, feed, number, options.seconds) for number in CLIENTS]
        print(rows[-1], flush=True)
        _write(rows)


def _built(run: dict[str, Any], size: int, work: Path) -> tuple[dict[str, str], str]:
    """Stages and feed of a catalogue of so many videos."""
    shutil.rmtree(work, ignore_errors=True)
    contract, learned, served = (
        Contract.from_json(run["contract"]),
        learned_of_videos(run),
        served_stages(run["models"]),
    )
    stages = {"ranker": served["ranker"], **{name: str(work / name) for name in ("retriever", "chooser")}}
    videos = _encoded(features.examples(*asking.read_catalogue(run["world"], contract, learned)))
    key = contract.video_key.name
    settings = IndexSettings(answers=CANDIDATES)
    queues = by_topic(run)
    retrieval_export.rebuild(served["retriever"], _copies(videos, key, size), stages["retriever"], settings, queues)
    paths = sorted(tf.io.gfile.glob(f"{artifact(run, 'frames')}/frames/*"))
    frames = list(tf.data.TFRecordDataset(paths, "GZIP").as_numpy_iterator())
    jifr_export.rebuild(served["chooser"], _copies(frames, VIDEO_ID, size), stages["chooser"])
    known = _encoded(asking.feed_catalogue(run["world"], contract, asking.clock(run["world"]), learned))
    feed = str(work / "feed" / "1")
    models = feed_export.Stages(**stages)
    feed_export.Feed(models, _copies(known, key, size), contract, FeedSettings(length=SHOWN), queues).save(feed)
    return stages, feed


def _encoded(batch: Any) -> list[bytes]:
    return list(RecordBatchToExamplesEncoder().encode(batch))


def _copies(records: list[bytes], key: str, size: int) -> Iterator[bytes]:
    """So many examples of videos, each under an id of its own; the first are the given ones, others look different."""
    random = np.random.default_rng(0)
    for number in range(size):
        copy, source = divmod(number, len(records))
        example = tf.train.Example.FromString(records[source])
        if copy:
            values = example.features.feature
            values[key].bytes_list.value[0] += f"-{copy}".encode()
            for name in VECTORS & set(values):
                vector = np.array(values[name].float_list.value)
                values[name].float_list.value[:] = vector + random.normal(0, vector.std(), len(vector))
        yield example.SerializeToString()


def _asked(run: dict[str, Any], number: int) -> list[tuple[str, bytes]]:
    """The world's busiest users and their requests."""
    contract, world = Contract.from_json(run["contract"]), run["world"]
    users = tables.read_table(world, "interactions", ["user_id"])["user_id"].value_counts().to_pylist()
    found = []
    for entry in sorted(users, key=lambda entry: -entry["counts"])[:number]:
        asked = asking.user_context(world, contract, entry["values"], asking.clock(world), learned_of_videos(run))
        found.append((entry["values"], to_feed_example(asked.features, contract, **asked.told)))
    return found


def _in_process(run: dict[str, Any], stages: dict[str, str], feed: str, seconds: float) -> Row:
    """Milliseconds of each stage's bare signature and of the one call."""
    ((user, request),) = _asked(run, 1)
    whole, example = tf.saved_model.load(feed), tf.constant([request])
    loaded = {name: tf.saved_model.load(path) for name, path in stages.items()}
    inputs = _bare_inputs(run, user, loaded["retriever"], example)
    calls = [lambda n=n: loaded[n].signatures["raw"](**inputs[n]) for n in stages]
    calls.append(lambda: whole.signatures["recommend"](examples=example))
    times = dict(zip([*stages, "one call"], in_turn(calls, 4 * seconds), strict=True))
    medians = {name: percentile(taken, 50) for name, taken in times.items()}
    size = sum(path.stat().st_size for path in Path(feed).rglob("*") if path.is_file())
    bare = sum(medians[name] for name in stages)
    answer = whole.signatures["recommend"](examples=example).values()
    answered = sum(tf.make_tensor_proto(value).ByteSize() for value in answer)
    traffic = {"request_bytes": len(request), "answer_bytes": answered}
    measured = {"p50_ms": medians, "bare_ms": bare, "ratio": medians["one call"] / bare, "megabytes": size / 1e6}
    return {**measured, **traffic}


def _bare_inputs(run: dict[str, Any], user: str, retriever: Any, example: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
    """What each stage is asked with, as tensors, so that nothing is parsed in the time that is measured."""
    contract, world = Contract.from_json(run["contract"]), run["world"]
    seen = tf.constant([asking.user_context(world, contract, user, asking.clock(world)).seen])
    more = {"exclude": seen, "queue": tf.zeros([1, 0], tf.string)}
    found = retriever.signatures["retrieve"](examples=example, **more)["video_ids"].numpy()[0]
    ids = [video.decode().partition("-")[0] for video in found if video]
    rows = asking.serving_rows(world, contract, user, ids, asking.clock(world), learned_of_videos(run))
    parsed = tf.io.parse_example(tf.constant(to_examples(rows, contract)), parse_spec(contract))
    dense = {n: tf.sparse.to_dense(v) if isinstance(v, tf.SparseTensor) else v for n, v in parsed.items()}
    of_query = [f.name for f in retrieval_export.query_features(contract)]
    of_pair = [f.name for f in jifr_export.asked_features(contract)]
    return {
        "retriever": {**{name: dense[name][:1] for name in of_query}, **more},
        "ranker": dense,
        "chooser": {name: dense[name][:SHOWN] for name in of_pair},
    }


def _served(run: dict[str, Any], feed: str, clients: int, seconds: float) -> Row:
    """Through a model server of its own: milliseconds at p50 and p99, and requests a second."""
    requests = [request for _, request in _asked(run, clients)]
    port = free_port()
    command = [sys.executable, "-m", "serving.model_server", f"--model_base_path={Path(feed).parent}"]
    command += ["--model_name=feed", f"--port={port}", "--rest_api_port=0"]
    process = subprocess.Popen(command, cwd=HERE.parent, stderr=subprocess.DEVNULL)
    try:
        connections = [Client(f"127.0.0.1:{port}", timeout_seconds=60) for _ in requests]
        connections[0].wait_until_ready("feed", timeout_seconds=300)
        calls = [
            lambda c=c, r=r: c.predict_tensors("feed", {"examples": np.array([r], object)}, "recommend")
            for c, r in zip(connections, requests, strict=True)
        ]
        latencies(calls[0], 0.0)
        times = together(calls, seconds)
        for connection in connections:
            connection.close()
    finally:
        process.terminate()
        process.wait(60)
    p50, p99 = (percentile(times, q) for q in (50, 99))
    return {"clients": clients, "p50_ms": p50, "p99_ms": p99, "requests_per_second": len(times) / seconds}


def _write(rows: list[Row]) -> None:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    results = HERE / "results"
    record = {"machine": machine, "versions": versions, "sizes": rows}
    (results / "feed.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# The feed in one call",
        "",
        "Written by `benchmarks/feed.py`, whose docstring says how it is measured.",
        "",
    ]
    lines += [f"Machine: {machine}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]
    lines += ["## One user, one process: milliseconds (p50)", ""]
    lines += [
        "| videos | retrieval | ranker | covers | sum | one call | ratio | MB on disk | bytes sent | bytes answered |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = [row["p50_ms"][name] for name in ("retriever", "ranker", "chooser")]
        cells = [*stages, row["bare_ms"], row["p50_ms"]["one call"]]
        numbers = [*(f"{cell:.2f}" for cell in cells), f"{row['ratio']:.2f}", f"{row['megabytes']:.0f}"]
        numbers += [f"{row[name]:,}" for name in ("request_bytes", "answer_bytes")]
        lines.append(f"| {row['videos']:,} | {' | '.join(numbers)} |")
    lines += [
        "",
        "## Through the model server",
        "",
        "| videos | clients | p50 ms | p99 ms | requests/s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for served in row["served"]:
            numbers = [f"{served[name]:.1f}" for name in ("p50_ms", "p99_ms", "requests_per_second")]
            lines.append(f"| {row['videos']:,} | {served['clients']} | {' | '.join(numbers)} |")
    holds = max(row["ratio"] for row in rows) <= BAR
    lines += ["", "![Latency by size of the catalogue](feed.svg)", "", "## Bars", ""]
    lines += [f"- {'holds' if holds else '**does not hold**'}: one call takes at most {BAR} times its stages alone", ""]
    (results / "feed.md").write_text("\n".join(lines))
    (results / "feed.svg").write_text(_figure(rows))


def _figure(rows: list[Row]) -> str:
    """Milliseconds over the size of the catalogue, both on logarithmic axes."""
    series = {
        "one call, one process": [row["p50_ms"]["one call"] for row in rows],
        "sum of the stages": [row["bare_ms"] for row in rows],
        **{
            f"p{q}, {number} client(s)": [row["served"][i][f"p{q}_ms"] for row in rows]
            for i, number in enumerate(CLIENTS)
            for q in (50, 99)
        },
    }
    return figure.growth([row["videos"] for row in rows], series, "videos", "milliseconds")


if __name__ == "__main__":
    main()
