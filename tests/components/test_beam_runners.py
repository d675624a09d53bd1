"""Beam code on other runners: several processes, and a job server with workers that share no memory with the driver."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.clip_example_gen.executor import Executor as ClipExecutor
from components.content_embedder.artifact import ContentVectors
from components.content_embedder.executor import Executor as ContentExecutor
from components.frame_embedder.artifact import FrameVectors
from components.frame_embedder.executor import Executor as FrameExecutor
from components.frame_embedder.settings import FrameSettings
from components.importers.demo import import_demo
from components.impression_example_gen.executor import Executor as ImpressionExecutor
from components.topic_learner.artifact import Topics
from components.topic_learner.executor import Executor as TopicExecutor
from components.topic_learner.settings import TopicSettings
from components.topic_queues.artifact import QueueSnapshot
from components.topic_queues.executor import Executor as QueueExecutor
from components.video_example_gen.executor import Executor as VideoExecutor
from transform import contract as contracts
from transform.clip_settings import SHAPE_FILE, ClipSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONTRACT = contracts.load("microvideo").to_json()
SPLITS = '{"by": "time", "train": 0.8, "valid": 0.1, "test": 0.1}'
CLIPS = ClipSettings(frames=4, size=16, sound_steps=2, mels=4, key_frames=2)
PLAIN = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
SEVERAL = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("world")
    import_demo(None, str(out), users=20, videos=12, interactions=400, seed=6)
    return str(out)


@pytest.fixture(scope="module")
def job_server(tmp_path_factory) -> Iterator[list[str]]:
    """The arguments by which a pipeline goes to a job server of Beam, which starts a process for each worker."""
    folder = tmp_path_factory.mktemp("server")
    ready = folder / "port"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", "0"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--port_file", str(ready)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while not (ready.is_file() and ready.read_text().strip()):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    worker = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"
    yield [
        "--runner=PortableRunner",
        f"--job_endpoint=127.0.0.1:{ready.read_text().strip()}",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config={worker}",
    ]
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.fixture(params=["several processes", "job server"])
def runner(request) -> list[str]:
    return SEVERAL if request.param == "several processes" else request.getfixturevalue("job_server")


class ByTitle(tf.Module):
    """Stands for a classifier and for a representation: what it says of a video is how long its title is."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(0.1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def embed(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {name: tf.io.FixedLenFeature([], tf.string, "") for name in ("video_id", "title")}
        parsed = tf.io.parse_example(examples, spec)
        length = self.factor * tf.cast(tf.strings.length(parsed["title"]), tf.float32)[:, tf.newaxis]
        z = tf.concat([tf.cos(length), tf.sin(length)], axis=1)
        frames = tf.repeat(length, CLIPS.frames, axis=1)
        return {
            "video_id": parsed["video_id"],
            "visual": z,
            "audio": 0 * z,
            "text": z,
            "fused": z,
            "z": z,
            "frame_vectors": frames[:, :, tf.newaxis],
            "frame_attention": frames,
            "frame_times": frames,
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> str:
    """A folder of served models, of which that of clips says what it reads."""
    folder, model = tmp_path_factory.mktemp("served"), ByTitle()
    for name in ("clips", "videos"):
        tf.saved_model.save(model, f"{folder}/{name}/1", signatures={"embed": model.embed})
    (folder / "clips" / "1" / SHAPE_FILE).parent.mkdir()
    (folder / "clips" / "1" / SHAPE_FILE).write_text(CLIPS.shape)
    return str(folder)


def execute(
    executor: type,
    outputs: dict[str, Any],
    properties: dict[str, Any],
    folder: Path,
    beam: list[str],
    inputs: dict[str, Any] | None = None,
) -> None:
    context = BaseBeamExecutor.Context(beam_pipeline_args=beam, tmp_dir=str(folder / "temporary"), unique_id="1")
    for name, artifact in outputs.items():
        artifact.uri = str(folder / name)
    given = {name: [artifact] for name, artifact in (inputs or {}).items()}
    executor(context).Do(given, {name: [artifact] for name, artifact in outputs.items()}, properties)


def records(pattern: str) -> list[bytes]:
    """Every record of the files, with its features in order, sorted."""
    found = tf.data.TFRecordDataset(sorted(glob.glob(pattern)), "GZIP").as_numpy_iterator()
    return sorted(tf.train.Example.FromString(r).SerializeToString(deterministic=True) for r in found)


def rows(*files: Path) -> list[str]:
    """Every row of a table in parts, sorted."""
    return sorted(map(repr, pa.concat_tables(map(pq.read_table, files)).to_pylist()))


def impressions(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[bytes]]:
    properties = {"world": world, "contract_json": CONTRACT, "splits_json": SPLITS, "rows_per_partition": 50}
    execute(ImpressionExecutor, {"examples": standard_artifacts.Examples()}, properties, folder, beam)
    return {split: records(f"{folder}/examples/Split-{split}/*") for split in ("train", "valid", "test")}


def clips(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[bytes]]:
    splits = '{"by": "hash", "train": 0.5, "valid": 0.25, "test": 0.25}'
    given = {"world": world, "contract_json": CONTRACT, "splits_json": splits, "settings_json": CLIPS.to_json()}
    execute(ClipExecutor, {"examples": standard_artifacts.Examples()}, given, folder, beam)
    return {"all": records(f"{folder}/examples/Split-*/*")}


def frames(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[bytes]]:
    properties = {"world": world, "settings_json": FrameSettings().model_dump_json()}
    execute(FrameExecutor, {"frames": FrameVectors()}, properties, folder, beam)
    return {"all": records(f"{folder}/frames/frames/*")}


def videos(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[bytes]]:
    splits = '{"by": "hash", "train": 0.5, "valid": 0.25, "test": 0.25}'
    properties = {"world": world, "contract_json": CONTRACT, "splits_json": splits, "cover_size": 16}
    execute(VideoExecutor, {"examples": standard_artifacts.Examples()}, properties, folder, beam)
    return {"all": records(f"{folder}/examples/Split-*/*")}


def described(world: str, folder: Path, served: str) -> standard_artifacts.Examples:
    """Examples of videos as another step left them."""
    videos(world, folder / "before", PLAIN, served)
    examples = standard_artifacts.Examples()
    examples.uri = f"{folder}/before/examples"
    return examples


def topics(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[str]]:
    settings = TopicSettings(topics=3, tag_width=4, walks=5, walk_length=20, cover_size=16)
    properties = {"push_destination": f"{served}/videos", "settings_json": settings.model_dump_json()}
    properties["store"] = f"{folder}/store"
    inputs = {"examples": described(world, folder, served)}
    execute(TopicExecutor, {"topics": Topics()}, properties, folder, beam, inputs)
    summary = json.loads((folder / "topics" / "summary.json").read_text())
    learned = {name: rows(folder / "topics" / f"{name}.parquet") for name in ("video_topics", "tag_pairs")}
    parts = rows(*(folder / "topics" / "videos").glob("*.parquet"))
    return {**learned, "videos": parts, "summary": sorted(map(repr, summary.items()))}


def content(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[str]]:
    properties = {"push_destination": f"{served}/clips", "clip_shape": CLIPS.shape, "store": f"{folder}/store"}
    inputs = {"examples": described(world, folder, served)}
    execute(ContentExecutor, {"content": ContentVectors()}, properties, folder, beam, inputs)
    return {name: rows(*(folder / "content" / name).glob("*.parquet")) for name in ("content", "frames")}


def queues(world: str, folder: Path, beam: list[str], served: str) -> dict[str, list[str]]:
    properties = {"world": world, "contract_json": CONTRACT, "queues_json": "{}"}
    execute(QueueExecutor, {"snapshot": QueueSnapshot()}, properties, folder, beam)
    return {
        "videos": rows(*(folder / "snapshot" / "videos").glob("*.parquet")),
        "counts": [(folder / "snapshot" / "snapshot.json").read_text()],
    }


@pytest.mark.parametrize("made", [impressions, clips, frames, videos, topics, content, queues])
def test_another_runner_makes_the_same(world, served, runner, tmp_path, made):
    expected = made(world, tmp_path / "plain", PLAIN, served)
    assert all(expected.values())
    assert made(world, tmp_path / "other", runner, served) == expected
