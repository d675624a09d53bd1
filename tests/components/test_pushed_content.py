"""What one pipeline learned of videos is what another takes up: whole, and the newest."""

import json
from pathlib import Path

import pytest

from components.content_embedder.artifact import ContentVectors
from components.content_pusher import executor as pusher
from components.content_pusher.executor import KEPT, WHOLE
from components.frame_embedder.artifact import FrameVectors
from components.pushed_content.executor import Executor as PushedContent
from components.topic_learner.artifact import Topics
from transform.contract import ContractError

KINDS = {"content": ContentVectors, "topics": Topics, "frames": FrameVectors}


def artifact(name: str, folder: Path):
    made = KINDS[name]()
    made.uri = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [made]


def push(folder: Path, learned: str, *names: str) -> str:
    inputs = {}
    for name in names:
        inputs[name] = artifact(name, folder / "learned" / name)
        (folder / "learned" / name / "videos").mkdir(exist_ok=True)
        (folder / "learned" / name / "videos" / "part").write_text(f"{learned} {name}")
    pusher.Executor().Do(inputs, {}, {"push_destination": str(folder / "pushed")})
    return pusher.newest(str(folder / "pushed"))


def take(folder: Path, *parts: str) -> dict[str, str]:
    outputs = {name: artifact(name, folder / "taken" / name) for name in KINDS}
    given = {"push_destination": str(folder / "pushed"), "parts_json": json.dumps(parts)}
    PushedContent().Do({}, outputs, given)
    return {
        str(path.relative_to(folder / "taken")): path.read_text()
        for path in (folder / "taken").rglob("*")
        if path.is_file()
    }


def test_the_newest_version_is_taken_with_the_parts_that_are_wanted(tmp_path):
    first = push(tmp_path, "old", *KINDS)
    second = push(tmp_path, "new", *KINDS)  # within the same second
    assert int(first) < int(second)
    assert take(tmp_path, "topics", "frames") == {
        "topics/videos/part": "new topics",
        "frames/videos/part": "new frames",
    }


def test_a_version_that_is_not_whole_is_not_taken(tmp_path):
    version = push(tmp_path, "whole", "topics")
    later = tmp_path / "pushed" / str(int(version) + 100) / "topics"
    later.mkdir(parents=True)
    (later / "part").write_text("half")
    assert take(tmp_path, "topics") == {"topics/videos/part": "whole topics"}
    # And the next push comes after it all the same.
    assert int(push(tmp_path, "next", "topics")) == int(version) + 101
    assert take(tmp_path, "topics") == {"topics/videos/part": "next topics"}


def test_only_the_last_versions_are_kept(tmp_path):
    pushed = [push(tmp_path, str(number), "topics") for number in range(KEPT + 2)]
    assert pusher.versions(str(tmp_path / "pushed")) == pushed[-KEPT:]
    assert all((tmp_path / "pushed" / version / WHOLE).is_file() for version in pushed[-KEPT:])


def test_what_nobody_pushed_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ContractError, match="expected a version with topics, got none: run the content stream"):
        take(tmp_path, "topics")
    version = push(tmp_path, "few", "topics")
    with pytest.raises(ContractError, match=f"got {version} without frames"):
        take(tmp_path, "topics", "frames")
