"""From folders of videos by class to a pushed classifier: no users, no interactions."""

import av
import numpy as np
import pytest
from rich.console import Console

from components.importers.clips import import_clips
from pipeline import local_runner
from pipeline import runs as run_records
from pipeline.config import ModelConfig, load
from pipeline.report.page import render
from pipeline.report.records import load as load_records
from transform.clip_settings import ClipSettings

pytestmark = [pytest.mark.e2e]
CLASSES = {"left": -2, "right": 2}


def write_video(path, speed, seed):
    """A square that moves to one side, in front of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 32, 32
        for number in range(8):
            picture = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            at = (seed + speed * number) % 24
            picture[12:20, at : at + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def test_folders_by_class_become_a_pushed_classifier(tmp_path):
    for name, speed in CLASSES.items():
        for number in range(20):
            write_video(tmp_path / "source" / name / f"{name}{number}.mp4", speed, number)
    (tmp_path / "source" / "left" / "broken.mp4").write_bytes(b"")
    import_clips(str(tmp_path / "source"), str(tmp_path / "world"))
    model = ModelConfig.model_validate(
        {
            "model": {"filters": [4], "sound_filters": None, "title_width": None, "width": 16, "clusters": 2},
            "training": {"epochs": 1, "batch_size": 8},
            "gates": [{"metric": "accuracy", "at_least": 0.0}],
        }
    )
    settings = load("clips").model_copy(
        update={"clips": ClipSettings(frames=4, size=16), "models": {"video_classifier": model}}
    )
    record = local_runner.run(
        settings, str(tmp_path / "world"), tmp_path / "run", Console(quiet=True), tmp_path / "log"
    )
    assert record.outcome == "pushed"
    assert record.served_version["video_classifier"]
    rows = {step.name: step.rows for step in record.steps}
    assert rows["ClipExampleGen"] == 40  # and the broken one is told of:
    page = render(load_records(run_records.newest_run(tmp_path, with_models=True)))
    assert "left" in page
    assert "right" in page
    assert "empty file" in page
