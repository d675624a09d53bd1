"""Data sets for retrieval as encoded arrays: whom to answer with what, from which videos, after which training clicks.

- movielens: the default time split of the MovieLens-1M prefix. A query is a positive rating of the test rows with the
  positive ratings before it (those of earlier splits, and the last 50); one video is sought, those are never answered.
- tiktok: users and videos without time; a query is a user with the videos of the train file, all of the validation file
  are sought. In training, each of a user's clicks is to be found from some of the others.
- movielens_cold, tiktok_cold: a tenth of the videos is taken out of training and histories; only they are sought, among
  only them. What is left to tell them apart is what is known of the video itself.

Video numbers are those of the vocabulary, from 1; validation queries choose settings of the peers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from protocols import movielens

from trainer.retrieval_export import candidate_features
from transform.contract import Contract, Kind, parse

SETS = ("movielens", "tiktok", "movielens_cold", "tiktok_cold")
QUERIES, LENGTH = 5000, 50
TIKTOK = """\
name: tiktok
vocabularies: {user_id: {}, video_id: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: history, kind: history, role: user, vocabulary: video_id, max_length: 50, source: derived.user_history}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: sight, kind: vector, role: video, dimension: 128, source: videos.sight}
  - {name: sound, kind: vector, role: video, dimension: 128, source: videos.sound}
  - {name: clicked, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}
"""
Columns = Mapping[str, np.ndarray]


class Queries(NamedTuple):
    """Features of the query tower, histories and what is sought, row by row."""

    columns: Columns
    history: list[np.ndarray]
    sought: list[np.ndarray]


class Task(NamedTuple):
    """One data set, ready for any method.

    Attributes:
        contract: Features.
        sizes: Rows by vocabulary.
        train: Columns of training clicks, the label among them.
        clicks: (user, video) pairs of them, as the peers take them.
        videos: Candidate features of all videos, by number - 1; the id of a cold one is out of vocabulary.
        allowed: Bool by number - 1: may be answered.
        sought_in_clicks: Bool by click: sought by the validation queries, and not to be learned from for them.
        valid: Queries by which settings are chosen.
        test: Queries that count.
    """

    contract: Contract
    sizes: dict[str, int]
    train: Columns
    clicks: np.ndarray
    videos: dict[str, np.ndarray]
    allowed: np.ndarray
    sought_in_clicks: np.ndarray
    valid: Queries
    test: Queries


def load(name: str, data: Path, work: Path, seed: int) -> Task:
    """The task of that name; `seed` decides which videos are cold, and TikTok's histories in training."""
    plain, _, cold = name.partition("_")
    random = np.random.default_rng(seed)
    task = _movielens(data, work) if plain == "movielens" else _tiktok(data, random)
    return _cold(task, random) if cold else task


def _movielens(data: Path, work: Path) -> Task:
    contract = movielens.contract("T")
    with np.load(movielens.prepare("T", data / "movielens-1m", work)) as file:
        arrays = {key: file[key] for key in file.files}
    sizes = json.loads(str(arrays["about"]))["vocabulary_sizes"]
    known = sizes["video_id"] - 2
    splits = {part: _rows(arrays, contract, part) for part in movielens.SPLITS}
    train = splits["train"]
    ids, first = np.unique(train["video_id"], return_index=True)
    videos = {f.name: np.zeros((known, *train[f.name].shape[1:]), np.int64) for f in candidate_features(contract)}
    for feature, column in videos.items():
        column[ids - 1] = train[feature][first]
    clicks = np.stack([train["user_id"], train["video_id"]], axis=1)
    allowed = np.isin(np.arange(1, known + 1), ids)
    valid = _next_videos(splits["valid"], sizes, [train])
    test = _next_videos(splits["test"], sizes, [train, splits["valid"]])
    return Task(contract, sizes, train, clicks, videos, allowed, np.zeros(len(clicks), bool), valid, test)


def _rows(arrays: Columns, contract: Contract, part: str) -> dict[str, np.ndarray]:
    """The positive rows."""
    positive = arrays[f"{part}/label"] > 0
    columns = {f.name: arrays[f"{part}/{f.name}"][positive] for f in contract.inputs}
    columns = {n: c.astype(np.int64) if c.dtype == np.int32 else c for n, c in columns.items()}
    return {**columns, contract.label.name: np.ones(positive.sum(), np.float32)}


def _next_videos(columns: Columns, sizes: Mapping[str, int], earlier: list[Columns]) -> Queries:
    """A sample of the rows whose video occurs in training, with all that the user clicked in earlier splits."""
    known, unknown_user = sizes["video_id"] - 2, sizes["user_id"] - 1
    of_user: dict[int, list[int]] = defaultdict(list)
    for split in earlier:
        for user, video in zip(split["user_id"].tolist(), split["video_id"].tolist(), strict=True):
            if user != unknown_user:
                of_user[user].append(video)
    rows = np.flatnonzero(columns["video_id"] <= known)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:QUERIES])
    columns = {name: column[rows] for name, column in columns.items()}
    people = zip(columns["user_id"].tolist(), columns["rating_history"], strict=True)
    history = [np.unique(np.concatenate([last, np.array(of_user[user], int)])) for user, last in people]
    history = [row[(row > 0) & (row <= known)] for row in history]
    return Queries(columns, history, [np.array([video]) for video in columns["video_id"]])


def _tiktok(data: Path, random: np.random.Generator) -> Task:
    contract = parse(TIKTOK)
    with np.load(data / "tiktok-multimodal" / "interactions.npz") as file:
        clicks, sought, (users, known) = file["train"].astype(np.int64) + 1, file["valid"] + 1, file["shape"]
    columns = {"user_id": clicks[:, 0], "video_id": clicks[:, 1], "clicked": np.ones(len(clicks), np.float32)}
    content = {
        n: np.load(data / "tiktok-multimodal" / f"{p}_feat.npy") for n, p in (("sight", "image"), ("sound", "audio"))
    }
    content = {name: _unit(vectors.astype(np.float32)) for name, vectors in content.items()}
    own = _by_user(clicks, users)
    others = [random.permutation(own[user][own[user] != video])[:LENGTH] for user, video in clicks]
    train = {**columns, "history": _padded(others), **{n: v[clicks[:, 1] - 1] for n, v in content.items()}}
    wanted = _by_user(sought, users)
    asked = np.flatnonzero([len(row) > 0 for row in wanted])
    histories = [random.permutation(own[user]) for user in asked]
    queries = {"user_id": asked, "history": _padded([row[:LENGTH] for row in histories])}
    test = Queries(queries, histories, [wanted[user] for user in asked])
    # Settings are chosen by one click of each of 2,000 users, found from the others by who has not learned from it.
    chosen = random.permutation(np.flatnonzero([len(row) > 1 for row in own]))[:2000]
    sought_in_clicks = np.isin(clicks[:, 0], chosen) & (
        clicks[:, 1] == np.array([(*r, 0)[0] for r in own])[clicks[:, 0]]
    )
    valid = Queries({"user_id": chosen}, [own[u][1:] for u in chosen], [own[u][:1] for u in chosen])
    sizes = {"user_id": int(users) + 2, "video_id": int(known) + 2}
    videos = {"video_id": np.arange(1, known + 1), **content}
    return Task(contract, sizes, train, clicks, videos, np.ones(known, bool), sought_in_clicks, valid, test)


def _by_user(pairs: np.ndarray, users: int) -> list[np.ndarray]:
    """Videos of the users 0 to `users`."""
    order = np.argsort(pairs[:, 0], kind="stable")
    return np.split(pairs[order, 1], np.searchsorted(pairs[order, 0], np.arange(1, users + 1)))


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    table = np.zeros((len(rows), LENGTH), np.int64)
    for row, values in enumerate(rows):
        table[row, : len(values)] = values
    return table


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _cold(task: Task, random: np.random.Generator) -> Task:
    numbers = np.flatnonzero(task.allowed) + 1
    cold = np.zeros(len(task.allowed) + 2, bool)
    cold[random.permutation(numbers)[: len(numbers) // 10]] = True
    kept = ~cold[task.train[task.contract.video_key.name]]
    train = {name: column[kept] for name, column in _without(task.contract, task.train, cold).items()}
    videos = {**task.videos, "video_id": np.where(cold[1:-1], len(cold) - 1, task.videos["video_id"])}
    valid, test = (_warm_history(task.contract, queries, cold) for queries in (task.valid, task.test))
    warm = ~cold[task.clicks[:, 1]]
    clicks = {"clicks": task.clicks[warm], "sought_in_clicks": task.sought_in_clicks[warm]}
    return task._replace(**clicks, train=train, videos=videos, allowed=cold[1:-1], valid=valid, test=test)


def _without(contract: Contract, columns: Columns, cold: np.ndarray) -> dict[str, np.ndarray]:
    """The columns with histories that know nothing of cold videos, closed up."""
    changed = dict(columns)
    for feature in contract.select(kinds=(Kind.HISTORY,)):
        if feature.name in columns:
            history = np.where(cold[columns[feature.name]], 0, columns[feature.name])
            order = np.argsort(history == 0, axis=1, kind="stable")
            changed[feature.name] = np.take_along_axis(history, order, axis=1)
    return changed


def _warm_history(contract: Contract, queries: Queries, cold: np.ndarray) -> Queries:
    """Queries that seek a cold video, and only those."""
    sought = [row[cold[row]] for row in queries.sought]
    rows = np.flatnonzero([len(row) > 0 for row in sought])
    columns = {name: column[rows] for name, column in _without(contract, queries.columns, cold).items()}
    history = [queries.history[row][~cold[queries.history[row]]] for row in rows]
    return Queries(columns, history, [sought[row] for row in rows])


def measure(found: np.ndarray, queries: Queries, allowed: np.ndarray) -> dict[str, Any]:
    """Recall@20, 100 and 600, NDCG@20, hit rate@20 and coverage@20 of answers, and the recall@20 of a random order.

    Args:
        found: [queries, up to 600] video numbers, best first; 0 is nothing.
        queries: What was sought; recall is the mean over queries of the share found.
        allowed: Which videos might have been answered.
    """
    hits = np.stack([np.isin(row, sought) for row, sought in zip(found, queries.sought, strict=True)])
    sought = np.array([len(row) for row in queries.sought])
    gains = 1 / np.log2(2 + np.arange(20))
    ideal = np.cumsum(gains)[np.minimum(sought, 20) - 1]
    first = hits[:, :20]
    return {
        **{f"recall_{k}": float((hits[:, :k].sum(axis=1) / sought).mean()) for k in (20, 100, 600)},
        "ndcg_20": float((first @ gains[: first.shape[1]] / ideal).mean()),
        "hit_rate_20": float(first.any(axis=1).mean()),
        "coverage_20": float(len(np.setdiff1d(found[:, :20], [0])) / allowed.sum()),
        "chance": float(min(1.0, 20 / allowed.sum())),
    }
