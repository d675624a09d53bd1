"""How fast impressions are built: rows/s and peak memory at four sizes of the MovieLens-1M prefix.

Every measurement is a fresh process, so that its peak memory is its own; it counts from the start of the Beam pipeline
to the last file, without imports. By one worker, in that process, and by two processes of Beam's own, whose start and
imports count, as they do with any runner. Beside each, in the same run, a floor: the same ratings read from Parquet and
encoded as tf.Examples into the same kind of files, with no join, no history, no counter and no Beam.

    python benchmarks/impressions.py [--sizes 20000 100000 250000 487650] [--repeats 3]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPLITS = '{"by": "time", "train": 0.8, "valid": 0.1, "test": 0.1}'
PACKAGES = ("apache-beam", "pyarrow", "numpy", "pandas", "tensorflow", "tfx", "tfx-bsl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000, 250_000, 487_650])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "WORLD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_results(run(arguments.sizes, arguments.repeats, Path(folder)))


def run(sizes: list[int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """All measurements, the best of the repeats by wall time and how far they spread."""
    from components.importers.movielens import import_movielens

    source = Path(os.environ.get("SHORTLIST_DATA", ROOT.parent / "shared" / "data")) / "movielens-1m"
    full = import_movielens(str(source), str(folder / "full")).world
    results = []
    for size in sizes:
        world = first_ratings(full, size, str(folder / str(size)))
        for what in BUILDS:
            runs = sorted((_in_own_process(what, world) for _ in range(repeats)), key=lambda r: r["seconds"])
            results.append({**runs[0], "slowest_seconds": runs[-1]["seconds"], "runs": repeats})
            print(f"{what:<24} {size:>8,} rows {runs[0]['rows_per_second']:>10,} rows/s", flush=True)
    return results


def first_ratings(world: str, size: int, out: str) -> str:
    """The world with only its first `size` interactions."""
    from components.world import tables

    for name in ("users", "videos"):
        tables.write_table(out, name, tables.read_table(world, name))
    tables.write_table(out, "interactions", tables.read_table(world, "interactions").slice(0, size))
    return out


def measure(what: str, world: str) -> dict[str, Any]:
    """One measurement, in this process."""
    from components.world import tables

    build = BUILDS[what]
    build(world, None)  # imports, and nothing else
    rows = sum(shard.rows for shard in tables.shards(world, "interactions"))
    before, cpu, start = _peak_mib(), _cpu_seconds(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        build(world, out)
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    return {
        "what": what,
        "rows": rows,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "rows_per_second": round(rows / seconds),
        "rows_per_cpu_second": round(rows / cpu),
        "peak_mib": round(_peak_mib()),
        "peak_mib_of_imports": round(before),
    }


def build_impressions(world: str, out: str | None, beam: Sequence[str] = ()) -> None:
    """The component's executor on Beam's direct runner."""
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts

    from components.impression_example_gen.executor import Executor
    from transform.contract import load

    if out is None:
        return
    examples = standard_artifacts.Examples()
    examples.uri = out
    context = BaseBeamExecutor.Context(beam_pipeline_args=["--runner=DirectRunner", *beam], tmp_dir=out, unique_id="1")
    properties = {"world": world, "contract_json": load("movielens").to_json(), "splits_json": SPLITS}
    Executor(context).Do({}, {"examples": [examples]}, properties)


def build_floor(world: str, out: str | None) -> None:
    """Read, encode the interactions' own columns, write."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import tensorflow as tf
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

    from components.world import tables

    if out is None:
        return
    options = tf.io.TFRecordOptions("GZIP", compression_level=1)
    for index, shard in enumerate(tables.shards(world, "interactions")):
        data = tables.read_shard(shard, "interactions", ["user_id", "video_id", "at", "rating"]).combine_chunks()
        flat = [data[name].chunk(0) for name in data.column_names]
        flat = [pc.cast(a, pa.binary() if pa.types.is_string(a.type) else pa.float32(), safe=False) for a in flat]
        ones = pa.array(range(len(data) + 1), pa.int32())
        batch = pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(ones, a) for a in flat], data.column_names)
        with tf.io.TFRecordWriter(f"{out}/{index}.gz", options) as writer:
            for example in RecordBatchToExamplesEncoder().encode(batch):
                writer.write(example)


TWO = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
BUILDS: dict[str, Callable[[str, str | None], None]] = {
    "impressions": build_impressions,
    "impressions, two workers": partial(build_impressions, beam=TWO),
    "floor": build_floor,
}


def write_results(results: list[dict[str, Any]]) -> None:
    """The JSON and the table that documents quote."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system(), "cpu": _cpu()}
    record = {"machine": machine, "python": platform.python_version(), "versions": versions, "results": results}
    load = os.getloadavg()[0]
    record |= {"load_average": round(load, 1)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "impressions.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "| | rows | rows/s | rows/s of CPU time | seconds (slowest) | peak MiB (of it imports) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['what']} | {r['rows']:,} | {r['rows_per_second']:,} | {r['rows_per_cpu_second']:,} | "
        f"{r['seconds']:.1f} ({r['slowest_seconds']:.1f}) | {r['peak_mib']:,} ({r['peak_mib_of_imports']:,}) |"
        for r in results
    ]
    lines.append(
        f"\n{machine['cores']} cores ({machine['cpu']}), best of {results[0]['runs']}, load average "
        f"{load:.1f} at the end. The floor joins nothing and has no Beam; two workers are started and import first."
    )
    # Of two workers the start, and how much it varies, is more than what sizes differ by.
    alone = [what for what in BUILDS if "two" not in what]
    lines += ["", *(_beyond_the_start(what, [r for r in results if r["what"] == what]) for what in alone)]
    (RESULTS / "impressions.md").write_text("\n".join(lines) + "\n")


def _beyond_the_start(what: str, rows: list[dict[str, Any]]) -> str:
    """What a row costs, without what a run costs however small it is."""
    parts = []
    for less, more in itertools.pairwise(rows):
        rate = (more["rows"] - less["rows"]) / (more["seconds"] - less["seconds"])
        parts.append(f"{rate:,.0f} rows/s from {less['rows']:,} to {more['rows']:,}")
    return f"- {what}: {', '.join(parts)}"


def _in_own_process(what: str, world: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, world]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {what} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak_mib() -> float:
    """Of the largest process: this one, or one that it started."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def _cpu_seconds() -> float:
    """Of this process and of those that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
