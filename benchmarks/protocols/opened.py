"""Who opened what, and the frames of videos, for `jifr.py`: in time or, where none is known, in the file's order.

- demo: a demo world; eight frames a video, and which of them users liked.
- tiktok: the train and validation pairs of the set; one vector of a video's images is its only frame. A twentieth of
  the train pairs, drawn by the seed, chooses the epoch; the validation pairs are the test.
- movielens: the MovieLens-1M prefix, 80/10/10 by time, ratings above 3 are opened; the poster is the only frame, and
  3,000 opened films of the test rows are judged.
"""

from __future__ import annotations

import gzip
import tempfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq

from components.frame_embedder.encoders import colours
from components.importers.demo import import_demo
from components.importers.demo_media import FRAMES, SCENES
from trainer.data import Split
from transform.contract import parse
from transform.frames import Frames

SETS = ("demo", "tiktok", "movielens")
HISTORY, JUDGED, CHOOSING = 50, 3000, 0.05
CONTRACT = parse(f"""
name: opened
vocabularies: {{user: {{}}, video: {{}}}}
features:
  - {{name: user, kind: id, role: user, vocabulary: user, source: users.user_id}}
  - {{name: video, kind: id, role: video, vocabulary: video, source: videos.video_id}}
  - {{name: history, kind: history, role: user, vocabulary: video, max_length: {HISTORY}, source: derived.user_history}}
  - {{name: label, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}}
""")


class Data:
    """One world, encoded: rows of users and videos from 1.

    Args:
        user: Of each event, in order.
        video: Likewise.
        label: 1 where the video was opened.
        cut: How many events are train, and how many train or valid.
        frames: Of videos 1, 2, ...
        users: How many there are.
        judged: Rows of the test that count; None: all of them.

    Attributes:
        history: What the user of each event had opened before it, and before the test: [events, HISTORY].
        liked: Indices of liked frames, by user and video.
    """

    def __init__(
        self,
        user: np.ndarray,
        video: np.ndarray,
        label: np.ndarray,
        cut: tuple[int, int],
        frames: Frames,
        users: int,
        judged: np.ndarray | None = None,
    ) -> None:
        self.user, self.video, self.label, self.cut = user, video, label.astype(np.float32), cut
        self.frames, self.judged = frames, judged
        self.sizes = {"user": users + 2, "video": len(frames.ids) + 2}
        self.history = self._histories()
        self.liked: dict[tuple[int, int], list[int]] = {}
        self._opened: dict[int, set[int]] = {}
        for row in np.flatnonzero(self.label):
            self._opened.setdefault(int(user[row]), set()).add(int(video[row]))

    def _histories(self) -> np.ndarray:
        history = np.zeros((len(self.user), HISTORY), np.int64)
        past: dict[int, list[int]] = {}
        for row, (user, video, label) in enumerate(zip(self.user, self.video, self.label, strict=True)):
            recent = past.get(user, [])[-HISTORY:]
            history[row, : len(recent)] = recent
            if label > 0 and row < self.cut[1]:
                past.setdefault(user, []).append(video)
        return history

    def opened(self, user: int) -> set[int]:
        """What a user has opened, whether before the test rows or in them."""
        return self._opened.get(user, set())

    def split(self, first: int | None, last: int | None) -> Split:
        """The clicks among some of the events."""
        return self._rows(np.arange(len(self.user))[first:last], f"{first}-{last}")

    def test(self) -> Split:
        """The clicks that are judged."""
        rows = np.arange(self.cut[1], len(self.user)) if self.judged is None else self.judged
        return self._rows(rows, "test")

    def _rows(self, rows: np.ndarray, name: str) -> Split:
        rows = rows[self.label[rows] > 0]
        columns = {"user": self.user, "video": self.video, "history": self.history, "label": self.label}
        return Split(CONTRACT, (name,), {}, len(rows), {name: value[rows] for name, value in columns.items()})


def load(name: str, data: Path, seed: int) -> Data:
    """The world of that name."""
    if name == "tiktok":
        return _tiktok(data / "tiktok-multimodal", seed)
    if name == "movielens":
        return _movielens(data / "movielens-1m")
    with tempfile.TemporaryDirectory() as world:
        import_demo(None, world, seed=seed)
        return _demo(Path(world))


def _demo(world: Path) -> Data:
    events = pq.read_table(world / "interactions.parquet").sort_by("at").to_pydict()
    feedback = pq.read_table(world / "frame_feedback.parquet").to_pydict()
    videos = pq.read_table(world / "videos.parquet").to_pydict()
    users = np.unique(pq.read_table(world / "users.parquet")["user_id"].to_pylist())
    order = np.unique(videos["video_id"])
    media = dict(zip(videos["video_id"], videos["media_path"], strict=True))
    looks = [_scenes(world / media[name]) if media[name] else np.zeros((0, 88)) for name in order]
    vectors = np.zeros((len(order), SCENES, 88), np.float32)
    for row, found in enumerate(looks):
        vectors[row, : len(found)] = found
    user, video = (np.searchsorted(known, events[key]) + 1 for known, key in ((users, "user_id"), (order, "video_id")))
    cut = int(len(user) * 0.8), int(len(user) * 0.9)
    data = Data(user, video, np.array(events["clicked"]), cut, _frames(list(order), vectors), len(users))
    of_user = np.searchsorted(users, feedback["user_id"]) + 1
    of_video = np.searchsorted(order, feedback["video_id"]) + 1
    for pair in zip(of_user, of_video, feedback["frame_index"], strict=True):
        data.liked.setdefault(pair[:2], []).append(pair[2])
    return data


def _tiktok(folder: Path, seed: int) -> Data:
    with np.load(folder / "interactions.npz") as file:
        train, test, (users, videos) = file["train"].astype(np.int64), file["valid"].astype(np.int64), file["shape"]
    train = train[np.random.default_rng(seed).permutation(len(train))]
    pairs = np.concatenate([train, test]) + 1
    vectors = np.load(folder / "image_feat.npy").astype(np.float32)[:, np.newaxis]
    cut = int(len(train) * (1 - CHOOSING)), len(train)
    frames = _frames([str(number) for number in range(1, videos + 1)], vectors)
    return Data(pairs[:, 0], pairs[:, 1], np.ones(len(pairs)), cut, frames, int(users))


def _movielens(folder: Path) -> Data:
    with gzip.open(folder / "ratings_first_487650.dat.gz", "rt") as file:
        rows = np.array([[int(value) for value in line.split("::")] for line in file])
    rows = rows[np.argsort(rows[:, 3], kind="stable")]
    rows = rows[rows[:, 2] != 3]
    films = np.unique(rows[:, 1])
    vectors = np.zeros((len(films), 1, 88), np.float32)
    with zipfile.ZipFile(folder / "posters_w150.zip") as archive:
        names = {int(Path(name).stem): name for name in archive.namelist() if name.endswith(".jpg")}
        for row, film in enumerate(films):
            if film in names:
                picture = cv2.imdecode(np.frombuffer(archive.read(names[film]), np.uint8), cv2.IMREAD_COLOR)
                vectors[row] = colours([picture])
    users = int(rows[:, 0].max())
    cut = int(len(rows) * 0.8), int(len(rows) * 0.9)
    liked = np.flatnonzero(rows[:, 2] > 3)
    judged = np.sort(np.random.default_rng(0).permutation(liked[liked >= cut[1]])[:JUDGED])
    video = np.searchsorted(films, rows[:, 1]) + 1
    return Data(rows[:, 0], video, rows[:, 2] > 3, cut, _frames([str(f) for f in films], vectors), users, judged)


def _frames(ids: list[str], vectors: np.ndarray) -> Frames:
    mask = vectors.any(axis=2).astype(np.float32)
    return Frames(ids, vectors, mask, np.full(mask.shape, ""), np.full(mask.shape, np.nan, np.float32))


def _scenes(path: Path) -> np.ndarray:
    """The middle picture of each scene, described: [SCENES, 88]."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return colours([pictures[scene * FRAMES // SCENES + FRAMES // SCENES // 2] for scene in range(SCENES)])
