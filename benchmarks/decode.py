"""How fast clips come in: clips/s of ClipExampleGen with one and two workers, against bare PyAV loops.

The first loop decodes and resizes the same frames of the same files and keeps nothing: no JPEG, no sound, no limits, no
files, no Beam. Against it the bars are held. The second also encodes the frames and decodes and resamples the sound,
as the component does before it makes and writes examples; it is there to tell what the component itself costs.

Every measurement is a fresh process. Beam's and TensorFlow's start takes as long as hundreds of clips, so everything
runs over `--clips` and over a quarter of them, and the difference counts. A worker decodes in one process and makes
examples in another, so that one worker uses more than one core: it is also measured kept on one, and the processor time
of a clip stands beside the rates.

    python benchmarks/decode.py [--from DIR of class folders] [--clips 800] [--repeats 3] [--key-frames 0] [--quick]

With `--growth` the component alone is measured instead, over an eighth, a quarter, half and all of `--clips`, starts
included; results go to `results/decode_growth.{json,md}`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPLITS = '{"by": "hash", "train": 0.4, "valid": 0.3, "test": 0.3}'
PACKAGES = ("apache-beam", "av", "numpy", "opencv-python-headless", "tensorflow", "tensorflow-io", "tfx")
LOOP, FULL_LOOP, ONE_CORE = "loop", "full-loop", "one-core"
MEASURED = {  # as --measure names it
    LOOP: "bare PyAV loop: decode, resize",
    FULL_LOOP: "bare PyAV loop: decode, resize, JPEG, sound",
    ONE_CORE: "ClipExampleGen, one worker kept on one core",
    "1": "ClipExampleGen, one worker",
    "2": "ClipExampleGen, two workers",
}
BARS = {"one worker / bare loop that decodes and resizes": 0.8, "two workers / one": 1.6}


def main() -> None:
    data = Path(os.environ.get("SHORTLIST_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default=str(data / "clips" / "surv-fight"))
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--key-frames", type=int, default=0, help="candidates for the cover; the bare loops have none")
    parser.add_argument("--growth", action="store_true", help="four sizes of the component instead")
    parser.add_argument("--quick", action="store_true", help="64 clips once, to try the script; nothing is written")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "WORLD", "SETTINGS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if arguments.quick:
        arguments.clips, arguments.repeats = 64, 1
    with tempfile.TemporaryDirectory() as folder:
        results = (grow if arguments.growth else run)(arguments, Path(folder))
    if not arguments.quick:
        (write_growth if arguments.growth else write_results)(results, arguments)


def run(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Clips/s of everything in MEASURED, in turn, so many times."""
    from transform.clip_settings import ClipSettings

    sizes = (arguments.clips // 4, arguments.clips)
    worlds = [make_world(arguments.source, size, folder / str(size)) for size in sizes]
    settings = ClipSettings(key_frames=arguments.key_frames).to_json()
    results = []
    for repeat in range(arguments.repeats):
        for what, title in MEASURED.items():
            short, long = (_in_own_process(what, world, settings) for world in worlds)
            more = {name: long[name] - short[name] for name in long}
            result = {
                "clips_per_second": round(more["clips"] / more["seconds"], 2),
                "cpu_ms_per_clip": round(1000 * more["cpu_seconds"] / more["clips"], 1),
            }
            results.append({"what": what, "repeat": repeat, **result, "short": short, "long": long})
            print(f"{result['clips_per_second']:>8.2f} clips/s {result['cpu_ms_per_clip']:>6} ms  {title}", flush=True)
    return results


def grow(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What four sizes take, by one worker and by two: the fastest of the repeats."""
    from transform.clip_settings import ClipSettings

    settings, results = ClipSettings(key_frames=arguments.key_frames).to_json(), []
    for part in (8, 4, 2, 1):
        world = make_world(arguments.source, arguments.clips // part, folder / str(part))
        for what in ("1", "2"):
            tried = [_in_own_process(what, world, settings) for _ in range(arguments.repeats)]
            results.append({"what": what, **min(tried, key=lambda one: float(one["seconds"]))})
            print(results[-1], flush=True)
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


def measure(what: str, world: str, settings_json: str) -> dict[str, Any]:
    """One measurement, in this process."""
    from components.world import tables
    from transform.clip_settings import ClipSettings

    paths = tables.read_table(world, "videos", ["media_path"])["media_path"].to_pylist()
    settings = ClipSettings.from_json(settings_json)
    decode_bare(paths[:2], settings, True)  # imports, and nothing else
    if what == ONE_CORE:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # and with it all that this process starts
    start, cpu = time.perf_counter(), _cpu_seconds()
    if what in (LOOP, FULL_LOOP):
        decode_bare(paths, settings, what == FULL_LOOP)
    else:
        decode_component(world, settings_json, 1 if what == ONE_CORE else int(what))
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
    measured = {"clips": len(paths), "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}
    return {**measured, "peak_mib": peak}  # of the largest of the processes


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


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


def decode_bare(paths: list[str], settings: Any, full: bool) -> None:
    """PyAV as fast as plain code gets: one scaler a file, its own threads off; `full`: with JPEG and sound."""
    import av
    import cv2
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
                picture = picture[top : top + settings.size, left : left + settings.size].copy()
                if full:
                    cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality])
            if full and container.streams.audio:
                container.seek(0)
                resampler = av.AudioResampler(format="s16", layout="mono", rate=settings.sound_rate)
                for heard in container.decode(audio=0):
                    for piece in resampler.resample(heard):
                        piece.to_ndarray()


def write_results(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON and the table that documents quote."""
    best, worst = (
        {what: of(r["clips_per_second"] for r in results if r["what"] == what) for what in MEASURED}
        for of in (max, min)
    )
    ratios = dict(zip(BARS, (best["1"] / best[LOOP], best["2"] / best["1"]), strict=True))
    shown = {"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, "bars": BARS}
    record = {**_circumstances(arguments), **shown, "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    cpu = {what: min(r["cpu_ms_per_clip"] for r in results if r["what"] == what) for what in MEASURED}
    lines = ["| | clips/s (slowest) | processor time, ms a clip |", "|---|---:|---:|"]
    lines += [
        f"| {title} | {best[what]:.1f} ({worst[what]:.1f}) | {cpu[what]:.0f} |" for what, title in MEASURED.items()
    ]
    lines += ["", *(f"- {name}: {ratios[name]:.2f} (bar {bar})" for name, bar in BARS.items())]
    lines.append(f"- two workers / one worker kept on one core: {best['2'] / best[ONE_CORE]:.2f} (no bar)")
    lines.append(f"- one worker / bare loop with JPEG and sound: {best['1'] / best[FULL_LOOP]:.2f} (no bar)")
    lines.append(_told(record, arguments))
    (RESULTS / "decode.md").write_text("\n".join(lines) + "\n")


def write_growth(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON and the table of four sizes."""
    record = {**_circumstances(arguments), "results": results}
    (RESULTS / "decode_growth.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| | clips | seconds | clips/s | processor seconds | MiB of the largest process |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in sorted(results, key=lambda row: (row["what"], row["clips"])):
        cells = [f"{row['clips']}", f"{row['seconds']:.1f}", f"{row['clips'] / row['seconds']:.1f}"]
        cells += [f"{row['cpu_seconds']:.1f}", f"{row['peak_mib']:,}"]
        lines.append(f"| {MEASURED[row['what']]} | {' | '.join(cells)} |")
    (RESULTS / "decode_growth.md").write_text("\n".join([*lines, _told(record, arguments)]) + "\n")


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system(), "cpu": _cpu()}
    return {
        "machine": machine,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 1),
        "source": Path(arguments.source).name,
        "clips": arguments.clips,
        "key_frames": arguments.key_frames,
    }


def _told(record: dict[str, Any], arguments: argparse.Namespace) -> str:
    machine = record["machine"]
    return (
        f"\n{record['source']}, {arguments.clips} clips, 32 frames of 224 x 224 and sound a clip, key frames "
        f"{arguments.key_frames}; {machine['cores']} cores ({machine['cpu']}), best of {arguments.repeats}, load "
        f"average {record['load_average']} at the end."
    )


def _in_own_process(what: str, world: str, settings: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, world, settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {what} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
