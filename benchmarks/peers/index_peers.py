"""FAISS and ScaNN on the vectors that `index.py` wrote; runs in the peers' own environment.

For each index the search parameter is the smallest of a list that reaches the recall asked for (else the largest).
Prints one JSON line an index: the measurement as `index.py` stores it.
"""

import argparse
import importlib.metadata
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import faiss
import numpy as np

Search = Callable[[np.ndarray, int], np.ndarray]
WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="npz of vectors, queries and true")
    parser.add_argument("--recall", type=float, required=True)
    options = parser.parse_args()
    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with np.load(options.data) as file:
        vectors, queries, true = (file[name] for name in ("vectors", "queries", "true"))
    for name, package, build in (("faiss_ivf", "faiss-cpu", _ivf), ("faiss_hnsw", "faiss-cpu", _hnsw)):
        started = time.perf_counter()
        index = build(vectors)
        seconds = time.perf_counter() - started
        size = faiss.serialize_index(index).nbytes
        parameter = "nprobe" if name == "faiss_ivf" else "efSearch"
        space = faiss.ParameterSpace()
        searches = _faiss_searches(index, space, parameter)
        _report(name, package, searches, queries, true, options.recall, {"build_seconds": seconds, "bytes": size})
    import scann  # here, for it takes some seconds

    leaves = round(4 * math.sqrt(len(vectors)))
    started = time.perf_counter()
    builder = scann.scann_ops_pybind.builder(vectors, true.shape[1], "dot_product").set_n_training_threads(1)
    index = builder.tree(leaves, 100).score_ah(2, anisotropic_quantization_threshold=0.2).reorder(400).build()
    about = {"build_seconds": time.perf_counter() - started}
    with tempfile.TemporaryDirectory() as folder:
        index.serialize(folder)
        about["bytes"] = sum(path.stat().st_size for path in Path(folder).iterdir())
    searches = (
        (width, lambda q, k, width=width: index.search_batched(q, k, leaves_to_search=width)[0]) for width in WIDTHS
    )
    _report("scann", "scann", searches, queries, true, options.recall, about)


def _ivf(vectors: np.ndarray) -> faiss.Index:
    cells = round(4 * math.sqrt(len(vectors)))
    index = faiss.index_factory(vectors.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[np.random.default_rng(0).permutation(len(vectors))[: 64 * cells]])
    index.add(vectors)
    return index


def _hnsw(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return index


def _faiss_searches(index: faiss.Index, space: faiss.ParameterSpace, parameter: str) -> Iterator[tuple[int, Search]]:
    for width in WIDTHS:
        space.set_index_parameter(index, parameter, width)
        yield width, lambda queries, k: index.search(queries, k)[1]


def _report(
    name: str,
    package: str,
    searches: Iterator[tuple[int, Search]],
    queries: np.ndarray,
    true: np.ndarray,
    wanted: float,
    about: dict[str, float],
) -> None:
    for tried, search in searches:
        found = search(queries, true.shape[1])
        recall = np.mean([len(np.intersect1d(f, t)) for f, t in zip(found, true, strict=True)]) / true.shape[1]
        width = tried
        if recall >= wanted:
            break
    single = [_seconds(lambda i=i: search(queries[i % len(queries)][None], true.shape[1])) for i in range(300)]
    batch = [_seconds(lambda: search(queries[:64], true.shape[1])) for _ in range(10)]
    times = {"single_ms": float(np.median(single)) * 1e3, "batch_ms": float(np.median(batch)) * 1e3}
    versions = {package: importlib.metadata.version(package)}
    row = {"model": name, "recall": float(recall), "width": width, **times, **about, "versions": versions}
    print(json.dumps(row), flush=True)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
