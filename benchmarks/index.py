"""The topic index against brute force, FAISS and ScaNN: latency, recall@100 and memory, on the same vectors.

    python benchmarks/index.py --peer-python PEERS/bin/python [--sizes 10000 100000 300000 1000000] [--threads 1]

PEERS has `peers/retrieval_requirements.txt`. Vectors are 64 wide, of length 1, around centres of which a few are large
and with a falling spectrum, as towers give; a query is the mean of three videos and noise. Each index searches as wide
as recall@100 of 0.98 needs: ours chooses that at the build, on queries of its own. `ours_topics` is the index as it is
served with topics: a partition for each of 200 topics, and every video in the four nearest to it. `ours_answer` and
`ours_topics_answer` are what the signature does with it: watched videos left out, ids for numbers; of topics 600
answers, 60 of them kept for as many candidates of queues. HNSW has FAISS's own efConstruction. `floor_call` is a call
that only adds 1 to a query; `pages_*` read as many rows as the index does, from pages stored in that type, and score
them, with the recall of brute force over what is stored. Every index runs alone, one after the other, with `--threads`
threads; times are medians of 300 single queries and of 10 batches of 64. Every index is added to `results/index.json`
as soon as it is measured, and `results/index.md` is written anew.
"""

import argparse
import gc
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from protocols import table

from trainer.layers.topic_index import PAGE, Catalogue, IndexSettings, TopicIndex
from trainer.layers.video_numbers import take

HERE = Path(__file__).parent
WIDTH, TOP, RECALL, BATCH = 64, 100, 0.98, 64
TOPICS, OF_VIDEO = 200, 4
PAGES_READ = 850  # about what the index reads a query of 300,000 videos
ACCOUNT = """\
A batch: for brute force 64 queries are one product of two matrices, which the processor does at its full rate, and
TensorFlow shares nothing between the queries that an index answers. The index with topics (`ours_topics`) holds every
video in four partitions and answers with 600: it reads about twice the rows that `ours` does, for the same recall of
the best 100. ScaNN stays below the recall asked for from 300,000 videos on, at the widest search that it was given.
Narrower storage does not pay: docs/decisions/0012."""
_SENT = (slice(0, 50), slice(100, 160))  # numbers of the watched videos, and of the queues' candidates


def main() -> None:
    options = _options()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    results = table.Results((options.work if options.quick else HERE / "results") / "index.json")
    for size in options.sizes:
        vectors, queries = make(size, 1024)
        data = options.work / f"index_{size}.npz"
        tested = queries[:256]
        true = np.concatenate([np.argsort(-(part @ vectors.T), axis=1)[:, :TOP] for part in np.split(tested, 16)])
        np.savez(data, vectors=vectors, queries=tested, true=true)
        for row in chain(_ours(vectors, tested, true, queries[256:]), _peers(data, options)):
            about = {"protocol": str(size), "side": f"{options.threads} threads", "seed": 0}
            results.add({**about, **row, "load": round(os.getloadavg()[0], 1)})
            _write(results, results.path.with_suffix(".md"))
        data.unlink()
        gc.collect()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, help="without it only ours and brute force run")
    parser.add_argument("--quick", action="store_true", help="results go to --work")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "index", help="folder for the vectors")
    return parser.parse_args()


def make(size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [size, 64] and queries [queries, 64], float32 of length 1."""
    random = np.random.default_rng(0)
    spectrum = (1 + np.arange(WIDTH)) ** -0.5
    centres = random.normal(size=(max(64, size // 200), WIDTH)) * spectrum
    share = random.zipf(1.3, size=len(centres)).clip(1, 50).astype(float)
    vectors = centres[random.choice(len(centres), size=size, p=share / share.sum())]
    vectors = _unit(vectors + 0.6 * random.normal(size=vectors.shape) * spectrum)
    taste = vectors[random.integers(0, size, size=(queries, 3))].mean(axis=1)
    noise = random.normal(size=taste.shape) * spectrum / np.linalg.norm(spectrum)
    return vectors.astype(np.float32), _unit(taste + 0.3 * noise).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _ours(vectors: np.ndarray, queries: np.ndarray, true: np.ndarray, sample: np.ndarray) -> Iterator[dict[str, Any]]:
    """Brute force, and the index with and without topics: the search, and the whole answer of the served signature."""
    versions = {"versions": {"tensorflow": tf.__version__}}
    corpus = tf.Variable(vectors, trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32)], autograph=False)
    def brute_force(queries: tf.Tensor) -> tf.Tensor:
        return tf.math.top_k(tf.matmul(queries, corpus, transpose_b=True), TOP).indices

    about = {"model": "tf_brute_force", "recall": 1.0, "bytes": vectors.nbytes, "build_seconds": 0.0, "width": 0}
    yield {**about, **_times(brute_force, queries), **versions}
    ids = [f"v{number:07d}" for number in range(len(vectors))]
    kinds = (
        ("ours", Catalogue(ids, vectors), IndexSettings(answers=TOP, queue_share=0)),
        ("ours_topics", Catalogue(ids, vectors, _topics(vectors)), IndexSettings(answers=600)),
    )
    for name, catalogue, settings in kinds:
        for row in _index(name, catalogue, settings, queries, true, sample):
            yield {**row, **versions}
        gc.collect()
    for row in _floors(vectors, queries, true):
        yield {**row, **versions}


def _floors(vectors: np.ndarray, queries: np.ndarray, true: np.ndarray) -> Iterator[dict[str, Any]]:
    """What a call takes at the least, and what it takes to read and score rows stored in fewer bits."""
    spec = tf.TensorSpec([None, WIDTH], tf.float32)
    call = tf.function(lambda queries: queries + 1, input_signature=[spec], autograph=False)
    about = {"recall": 0.0, "bytes": 0, "build_seconds": 0.0, "width": 0}
    yield {"model": "floor_call", **about, **_times(call, queries)}
    pages = min(PAGES_READ, len(vectors) // PAGE)
    chosen = np.sort(np.random.default_rng(2).choice(len(vectors) // PAGE, pages, replace=False)).astype(np.int32)
    for kind in (tf.float32, tf.bfloat16, tf.int8):
        step = np.abs(vectors).max() / 127 if kind == tf.int8 else 1.0
        stored = tf.cast(tf.round(vectors / step) if kind == tf.int8 else vectors, kind)
        scores = (tf.cast(stored, tf.float32) @ queries.T).numpy().T
        best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        laid_out = tf.Variable(tf.reshape(stored[: len(stored) // PAGE * PAGE], [-1, PAGE * WIDTH]), trainable=False)

        def score(query: tf.Tensor, table: tf.Variable = laid_out) -> tf.Tensor:
            return tf.linalg.matvec(tf.cast(tf.reshape(take(table, chosen), [-1, WIDTH]), tf.float32), query)

        each = tf.function(lambda queries, one=score: tf.map_fn(one, queries), input_signature=[spec], autograph=False)
        about = {"recall": _recall(best, true), "bytes": stored.dtype.size * vectors.size, "width": pages}
        yield {"model": f"pages_{kind.name}", **about, "build_seconds": 0.0, **_times(each, queries)}


def _topics(vectors: np.ndarray) -> list[list[str]]:
    """Of each video the four nearest of the topics, whose centres are videos."""
    centres = vectors[np.random.default_rng(1).choice(len(vectors), TOPICS, replace=False)]
    nearest = [np.argpartition(-(part @ centres.T), OF_VIDEO, axis=1)[:, :OF_VIDEO] for part in np.split(vectors, 10)]
    return [[f"t{topic:03d}" for topic in row] for row in np.concatenate(nearest)]


def _index(
    name: str, catalogue: Catalogue, settings: IndexSettings, queries: np.ndarray, true: np.ndarray, sample: np.ndarray
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    index = TopicIndex(catalogue, settings, sample)
    seconds = time.perf_counter() - started
    spec = tf.TensorSpec([None, WIDTH], tf.float32)
    number = np.array([int(given[1:]) for given in index.ids.numpy()])
    copies = int(index.video_topics.shape[1])

    @tf.function(input_signature=[spec], autograph=False)
    def search(queries: tf.Tensor) -> tf.Tensor:
        return index.search(queries, TOP * copies).numbers  # a video may come once for each of its topics

    @tf.function(input_signature=[spec], autograph=False)
    def answer(queries: tf.Tensor) -> tf.Tensor:
        watched, live = (tf.repeat(index.ids[tf.newaxis, part], tf.shape(queries)[0], axis=0) for part in _SENT)
        live = live[:, : int(settings.answers * settings.queue_share)]
        return index.answer(queries, watched, watched, live)["video_ids"]

    size = sum(len(v.numpy().tobytes()) for v in index.variables if v.dtype != tf.string)
    size += sum(map(len, catalogue.ids)) + 24 * len(catalogue.ids)  # a string of TensorFlow takes 24 bytes and its own
    found = [_distinct(row[row >= 0])[:TOP] for row in search(queries).numpy()]
    about = {"bytes": size, "build_seconds": seconds, "width": index.probes}
    about["recall"] = _recall([number[row] for row in found], true)
    yield {"model": name, **about, **_times(search, queries)}
    yield {"model": f"{name}_answer", **about, **_times(answer, queries)}


def _distinct(row: np.ndarray) -> np.ndarray:
    return row[np.sort(np.unique(row, return_index=True)[1])]


def _recall(found: Sequence[np.ndarray], true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(f, t)) for f, t in zip(found, true, strict=True)]) / TOP)


def _times(call: Callable[[tf.Tensor], tf.Tensor], queries: np.ndarray) -> dict[str, float]:
    alone, together = [tf.constant(query[None]) for query in queries], tf.constant(queries[:BATCH])
    call(alone[0]), call(together)
    single = [_seconds(call, alone[i % len(alone)]) for i in range(300)]
    batch = [_seconds(call, together) for _ in range(10)]
    return {"single_ms": float(np.median(single)) * 1e3, "batch_ms": float(np.median(batch)) * 1e3}


def _seconds(call: Callable[[tf.Tensor], tf.Tensor], queries: tf.Tensor) -> float:
    started = time.perf_counter()
    call(queries).numpy()
    return time.perf_counter() - started


def _peers(data: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.peer_python is None:
        return
    command = [str(options.peer_python), "-m", "peers.index_peers", "--data", str(data.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command += ["--recall", str(RECALL)]
    with subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True) as run:
        yield from (json.loads(line) for line in run.stdout or () if line.startswith("{"))
    if run.returncode:
        raise SystemExit(f"{command[0]}: the peers ended with exit code {run.returncode}")


def _write(results: table.Results, path: Path) -> None:
    """The table by size, and the bars."""
    rows = sorted(results.rows.values(), key=lambda row: (row["side"], int(row["protocol"]), row["single_ms"]))
    machines = sorted({row["machine"] for row in rows})
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    lines = ["# Index benchmark", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    lines += [f"Machine: {'; '.join(machines)}. Versions: {', '.join(versions)}.", ""]
    lines += [
        "| videos | threads | index | recall@100 | ms, one query | ms, batch of 64 | MiB | build s | width | load |"
    ]
    lines += ["|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = [f"{int(row['protocol']):,}", row["side"].split()[0], row["model"], f"{row['recall']:.4f}"]
        cells += [f"{row['single_ms']:.3f}", f"{row['batch_ms']:.1f}", f"{row['bytes'] / 2**20:.0f}"]
        cells += [f"{row['build_seconds']:.0f}", str(row["width"]), str(row["load"])]
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join([*lines, "", "## Bars", "", *_bars(results), "", ACCOUNT, ""]))


def _bars(results: table.Results) -> list[str]:
    lines = []
    for side in sorted({row["side"] for row in results.rows.values()}):
        by = {(row["protocol"], row["model"]): row for row in results.rows.values() if row["side"] == side}
        ours, brute, faiss = (by.get(("300000", name)) for name in ("ours", "tf_brute_force", "faiss_ivf"))
        if ours and brute:
            lines.append(_bar(ours["recall"] >= RECALL, f"300k: recall@100 {ours['recall']:.4f}, at least {RECALL}"))
            for kind in ("single_ms", "batch_ms"):
                ratio = brute[kind] / ours[kind]
                lines.append(
                    _bar(ratio >= 8, f"300k, {side}, {kind}: {ratio:.1f} times as fast as brute force, at least 8")
                )
        if ours and faiss:
            for kind in ("single_ms", "batch_ms"):
                ratio = ours[kind] / faiss[kind]
                lines.append(_bar(ratio <= 3, f"300k, {side}, {kind}: {ratio:.2f} times FAISS IVF-Flat's, at most 3"))
        if brute and faiss:
            ratio = brute["batch_ms"] / faiss["batch_ms"]
            lines.append(f"- 300k, {side}, batch_ms: FAISS IVF-Flat is {ratio:.1f} times as fast as brute force")
        whole = by.get(("300000", "pages_float32"))
        for narrow in (by.get(("300000", f"pages_{kind}")) for kind in ("bfloat16", "int8")):
            if narrow and whole:
                ratio = narrow["single_ms"] / whole["single_ms"]
                text = f"takes {ratio:.2f} times as long as float32, with a recall@100 of {narrow['recall']:.3f}"
                lines.append(f"- 300k, {side}: reading and scoring {narrow['model'].removeprefix('pages_')} {text}")
        small, large = by.get(("100000", "ours")), by.get(("1000000", "ours"))
        if small and large:
            growth = large["single_ms"] / small["single_ms"]
            lines.append(
                _bar(growth < 10, f"{side}: 100k to 1M, ten times the videos, takes {growth:.1f} times as long")
            )
    return lines


def _bar(holds: bool, text: str) -> str:
    return f"- {'holds' if holds else 'MISSED'}: {text}"


if __name__ == "__main__":
    main()
