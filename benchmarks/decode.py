"""How fast clips come in: clips/s of ClipExampleGen with one and two workers, against a bare PyAV loop.

The bare loop decodes and resizes the same frames of the same files and keeps nothing: no JPEG, no sound, no limits, no
files, no Beam. Every measurement is a fresh process. Beam's and TensorFlow's start takes as long as hundreds of clips,
so the component runs over `--clips` and over a quarter of them, and the difference counts.

    python benchmarks/decode.py [--from DIR of class folders] [--clips 800] [--repeats 3] [--key-frames 0]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPLITS = '{"by": "hash", "train": 0.8, "valid": 0.1, "test": 0.1}'
PACKAGES = ("apache-beam", "av", "numpy", "opencv-python-headless", "tensorflow", "tensorflow-io", "tfx")
BARS = {"one worker / bare loop": 0.8, "two workers / one": 1.6}


def main() -> None:
    data = Path(os.environ.get("SHORTLIST_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default=str(data / "clips" / "surv-fight"))
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--key-frames", type=int, default=0, help="candidates for the cover; the bare loop has none")
    parser.add_argument("--measure", nargs=3, metavar=("WORKERS", "WORLD", "SETTINGS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_results(run(arguments, Path(folder)), arguments)


def run(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Clips/s of the bare loop (workers 0), one and two workers, in turn, so many times."""
    from transform.clip_settings import ClipSettings

    sizes = (arguments.clips // 4, arguments.clips)
    worlds = [make_world(arguments.source, size, folder / str(size)) for size in sizes]
    settings = ClipSettings(key_frames=arguments.key_frames).to_json()
    results = []
    for repeat in range(arguments.repeats):
        for workers in (0, 1, 2):
            short, long = (_in_own_process(workers, world, settings) for world in worlds)
            rate = round((long["clips"] - short["clips"]) / (long["seconds"] - short["seconds"]), 2)
            results.append(
                {"workers": workers, "repeat": repeat, "clips_per_second": rate, "short": short, "long": long}
            )
            print(f"{workers} workers {rate:>8.2f} clips/s", flush=True)
    return results


def make_world(source: str, size: int, out: Path) -> str:
    """The clips of a folder, again and again under other names, until there are `size`."""
    from components.importers.clips import import_clips
    from components.world import tables

    summary = import_clips(source, str(out))
    videos = tables.read_table(summary.world, "videos", ["media_path", "primary_category"])
    videos = videos.take([row % len(videos) for row in range(size)])
    tables.write_table(summary.world, "videos", videos.append_column("video_id", [[f"v{row}" for row in range(size)]]))
    return summary.world


def measure(workers: str, world: str, settings_json: str) -> dict[str, Any]:
    """One measurement, in this process."""
    from components.world import tables
    from transform.clip_settings import ClipSettings

    paths = tables.read_table(world, "videos", ["media_path"])["media_path"].to_pylist()
    decode_bare(paths[:2], ClipSettings.from_json(settings_json))  # imports, and nothing else
    start = time.perf_counter()
    if int(workers) == 0:
        decode_bare(paths, ClipSettings.from_json(settings_json))
    else:
        decode_component(world, settings_json, int(workers))
    return {"clips": len(paths), "seconds": round(time.perf_counter() - start, 3)}


def decode_component(world: str, settings_json: str, workers: int) -> None:
    """The component's executor on Beam's direct runner, a process a worker."""
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts

    from components.clip_example_gen.executor import Executor
    from transform.contract import load

    examples = standard_artifacts.Examples()
    arguments = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    properties = {"world": world, "settings_json": settings_json, "splits_json": SPLITS}
    with tempfile.TemporaryDirectory() as out:
        examples.uri = out
        context = BaseBeamExecutor.Context(beam_pipeline_args=arguments, tmp_dir=out, unique_id="1")
        contract = load("microvideo").to_json()
        Executor(context).Do({}, {"examples": [examples]}, {**properties, "contract_json": contract})
        if examples.get_int_custom_property("rejected"):
            raise RuntimeError("clips were rejected: the loops would not do the same")


def decode_bare(paths: list[str], settings: Any) -> None:
    """PyAV as fast as plain code gets: one scaler a file, its own threads off."""
    import av
    from av.video.reformatter import VideoReformatter

    from components.clip_example_gen.clip import segments

    for path in paths:
        with av.open(path) as container:
            stream, scaler = container.streams.video[0], VideoReformatter()
            bounds = segments(float(stream.duration * stream.time_base), settings)
            frames = container.decode(stream)
            shown, following = next(frames), next(frames, None)
            for time_wanted in [(low + high) / 2 for low, high in pairwise(bounds)]:
                while following is not None and following.time <= time_wanted:
                    shown, following = following, next(frames, None)
                scale = settings.size / min(shown.width, shown.height)
                width, height = round(shown.width * scale), round(shown.height * scale)
                picture = scaler.reformat(shown, width, height, "bgr24", threads=1).to_ndarray()
                top, left = (height - settings.size) // 2, (width - settings.size) // 2
                picture[top : top + settings.size, left : left + settings.size].copy()


def write_results(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON and the table that documents quote."""
    best = {w: max(r["clips_per_second"] for r in results if r["workers"] == w) for w in (0, 1, 2)}
    worst = {w: min(r["clips_per_second"] for r in results if r["workers"] == w) for w in (0, 1, 2)}
    ratios = dict(zip(BARS, (best[1] / best[0], best[2] / best[1]), strict=True))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system(), "cpu": _cpu()}
    record = {
        "machine": machine,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 1),
        "source": Path(arguments.source).name,
        "clips": arguments.clips,
        "key_frames": arguments.key_frames,
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "bars": BARS,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    names = ("bare PyAV loop", "ClipExampleGen, one worker", "ClipExampleGen, two workers")
    lines = ["| | clips/s (slowest) |", "|---|---:|"]
    lines += [f"| {name} | {best[workers]:.1f} ({worst[workers]:.1f}) |" for workers, name in enumerate(names)]
    lines += ["", *(f"- {name}: {ratios[name]:.2f} (bar {bar})" for name, bar in BARS.items())]
    lines.append(
        f"\n{record['source']}, {arguments.clips} clips, 32 frames of 224 x 224 and sound a clip, key frames "
        f"{arguments.key_frames}; {machine['cores']} cores ({machine['cpu']}), best of {arguments.repeats}, load "
        f"average {record['load_average']} at the end."
    )
    (RESULTS / "decode.md").write_text("\n".join(lines) + "\n")


def _in_own_process(workers: int, world: str, settings: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(workers), world, settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {workers} workers failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
