"""What one pipeline learned of videos is what another takes up: whole, the newest, and learned as it should be."""

import json
import shutil
from pathlib import Path

import pytest

from components.content_embedder.artifact import ContentVectors
from components.content_pusher import executor as pusher
from components.content_pusher.executor import KEPT
from components.frame_embedder.artifact import FrameVectors
from components.pushed_content import executor as taker
from components.topic_learner.artifact import Topics
from components.world import files
from transform.contract import ContractError

KINDS = {"content": ContentVectors, "topics": Topics, "frames": FrameVectors}
SETTINGS = {name: {"of": name} for name in KINDS}


class Streams:
    """Pushes and takes, the pushed versions in a folder or a bucket."""

    def __init__(self, folder: Path, pushed: str) -> None:
        self.folder, self.pushed = folder, pushed

    def artifact(self, name: str, uri: Path) -> list:
        made = KINDS[name]()
        made.uri = str(uri)
        uri.mkdir(parents=True, exist_ok=True)
        return [made]

    def push(self, learned: str, *names: str) -> str:
        inputs = {name: self.artifact(name, self.folder / "learned" / name) for name in names}
        for name in names:
            (self.folder / "learned" / name / "videos").mkdir(exist_ok=True)
            (self.folder / "learned" / name / "videos" / "part").write_text(f"{learned} {name}")
        given = {"push_destination": self.pushed, "settings_json": json.dumps(SETTINGS)}
        pusher.Executor().Do(inputs, {}, given)
        return pusher.whole_versions(self.pushed)[-1]

    def take(self, *names: str, **settings: dict) -> dict[str, str]:
        shutil.rmtree(self.folder / "taken", ignore_errors=True)
        outputs = {name: self.artifact(name, self.folder / "taken" / name) for name in KINDS}
        wanted = {name: settings.get(name, SETTINGS[name]) for name in names}
        given = {"push_destination": self.pushed, "settings_json": json.dumps(wanted)}
        taker.Executor().Do({}, outputs, given)
        found = filter(Path.is_file, (self.folder / "taken").rglob("*"))
        return {str(path.relative_to(self.folder / "taken")): path.read_text() for path in found}


@pytest.fixture
def streams(tmp_path: Path) -> Streams:
    return Streams(tmp_path, str(tmp_path / "pushed"))


def test_the_newest_version_is_taken_with_the_parts_that_are_wanted(streams):
    first = streams.push("old", *KINDS)
    second = streams.push("new", *KINDS)  # within the same second
    assert int(first) < int(second)
    taken = streams.take("topics", "frames")
    assert taken == {"topics/videos/part": "new topics", "frames/videos/part": "new frames"}


def test_a_bucket_keeps_what_a_folder_does(bucket, tmp_path):
    streams = Streams(tmp_path, "s3://shortlist/models/content")
    for number in range(KEPT + 1):
        last = streams.push(f"{number}", *KINDS)
    assert streams.take("topics") == {"topics/videos/part": f"{KEPT} topics"}
    kept = {entry.key.split("/")[2] for entry in bucket.objects.filter(Prefix="models/content/")}
    assert len(kept) == KEPT
    assert max(kept, key=int) == last


def test_a_version_that_is_not_whole_is_not_taken_and_makes_no_other_go(streams):
    versions = [streams.push("whole", "topics")]
    for number in range(KEPT + 1):  # tries that came to no end
        later = Path(streams.pushed, str(int(versions[0]) + 100 + number), "topics")
        later.mkdir(parents=True)
        (later / "part").write_text("half")
    assert streams.take("topics") == {"topics/videos/part": "whole topics"}
    versions.append(streams.push("next", "topics"))
    assert int(versions[-1]) == int(versions[0]) + 101 + KEPT
    assert streams.take("topics") == {"topics/videos/part": "next topics"}
    assert files.versions(streams.pushed) == versions


def test_only_the_last_versions_are_kept(streams):
    pushed = [streams.push(str(number), "topics") for number in range(KEPT + 2)]
    assert files.versions(streams.pushed) == pusher.whole_versions(streams.pushed) == pushed[-KEPT:]


def test_a_version_that_goes_while_it_is_copied_is_left_for_a_newer_one(streams, monkeypatch):
    first, copied, copy = streams.push("old", "topics", "frames"), [], taker.copy

    def slow(source: str, to: str) -> int:
        if not copied:  # meanwhile another pipeline pushes, and removes this version
            streams.push("new", "topics", "frames")
            shutil.rmtree(Path(streams.pushed, first))
        copied.append(source)
        return copy(source, to)

    monkeypatch.setattr(taker, "copy", slow)
    taken = streams.take("topics", "frames")
    assert taken == {"topics/videos/part": "new topics", "frames/videos/part": "new frames"}
    assert copied[0].split("/")[-2] == first


def test_files_that_are_gone_are_no_copy(streams):
    version = streams.push("old", "topics")
    (Path(streams.pushed, version) / "topics" / "videos" / "part").unlink()
    with pytest.raises(FileNotFoundError, match="expected some files, got 0: they were removed"):
        streams.take("topics")
    shutil.rmtree(streams.folder / "learned" / "topics")
    topics = streams.artifact("topics", streams.folder / "learned" / "topics")  # a cached step whose files have gone
    given = {"push_destination": streams.pushed, "settings_json": json.dumps(SETTINGS)}
    with pytest.raises(FileNotFoundError, match="expected some files, got 0"):
        pusher.Executor().Do({"topics": topics}, {}, given)


def test_what_nobody_pushed_and_what_was_learned_otherwise_is_refused_with_the_remedy(streams):
    with pytest.raises(ContractError, match="expected topics, got no version: run the content stream"):
        streams.take("topics")
    version = streams.push("few", "topics")
    with pytest.raises(ContractError, match=f"expected frames, got version {version} without it: run the content"):
        streams.take("topics", "frames")
    with pytest.raises(ContractError, match=r'topics by the settings \{"of": "other"\}, got \{"of": "topics"\}: run'):
        streams.take("topics", topics={"of": "other"})


def test_an_empty_file_is_written_to_a_bucket_too(bucket):
    with files.writing("s3://shortlist/empty") as file:
        file.write(b"")
    assert files.is_file("s3://shortlist/empty")
    with files.reading("s3://shortlist/empty") as file:
        assert file.read() == b""
