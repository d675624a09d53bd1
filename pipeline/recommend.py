"""A feed for one user: the catalogue's unseen videos, ranked by a served model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from components.impression_example_gen import impressions
from components.world import tables
from serving.client import Client
from transform.contract import Contract, Kind, Role

MODEL = "ranker"
BATCH_SIZE = 1000  # rows of one request; serving/configs/batching.config allows 1,024


@dataclass(frozen=True)
class FeedEntry:
    """One video of a feed."""

    video_id: str
    title: str
    category: str
    score: float
    modality_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Feed:
    """The answer to one user.

    Attributes:
        user_id: Who asked.
        known_user: False gives a cold-start feed: ranked by everything but the user.
        seen: How many videos were left out because the user has seen them.
        entries: Best first.
    """

    user_id: str
    known_user: bool
    seen: int
    entries: list[FeedEntry]


def recommend(run: dict[str, Any], user_id: str, n: int, client: Client) -> Feed:
    """The n best videos for a user, among those the user has not seen.

    The clock is the world's: the moment after its last event.

    Args:
        run: A record of `pipeline.runs.load_run`.
        user_id: May be unknown: the feed is then a cold-start one.
        n: Length of the feed, at least 1.
        client: Where the model answers.
    """
    contract = Contract.from_json(run["contract"])
    world = run["world"]
    videos = tables.read_table(world, "videos")
    known = user_id in set(tables.read_table(world, "users", ["user_id"])["user_id"].to_pylist())
    seen = impressions.watched(world, user_id)
    candidates = [video for video in videos["video_id"].to_pylist() if video not in seen]
    now = pc.max(tables.read_table(world, "interactions", ["at"])["at"]).as_py() + 1
    content = run.get("artifacts", {}).get(MODEL, {}).get("content")
    rows = impressions.serving_rows(world, contract, user_id, candidates, now, content)
    answer = client.predict(MODEL, rows, contract, batch_size=BATCH_SIZE)
    best = np.argsort(-answer["score"], kind="stable")[:n]
    shown = [name for name in ("video_id", "title", "primary_category") if name in videos.column_names]
    details = {row["video_id"]: row for row in videos.select(shown).to_pylist()}
    entries = [_entry(details[candidates[i]], answer, int(i), contract) for i in best]
    return Feed(user_id=user_id, known_user=known, seen=len(seen), entries=entries)


def _entry(video: dict[str, Any], answer: dict[str, np.ndarray], index: int, contract: Contract) -> FeedEntry:
    weights: dict[str, float] = {}
    if "modality_weights" in answer:
        names = [feature.name for feature in contract.select(kinds=(Kind.VECTOR,), roles=(Role.VIDEO,))]
        weights = {name: float(w) for name, w in zip(names, answer["modality_weights"][index], strict=True)}
    return FeedEntry(
        video_id=video["video_id"],
        title=video.get("title") or "",
        category=video.get("primary_category") or "",
        score=float(answer["score"][index]),
        modality_weights=weights,
    )


@contextmanager
def served(models: str, target: str | None, timeout_seconds: float = 30.0) -> Iterator[Client]:
    """A client of the server at `target`, or of a local server of this run's models that is stopped afterwards."""
    if target is not None:
        with Client(target, timeout_seconds=timeout_seconds) as client:
            yield client
        return
    from serving.model_server import server

    with server.start(models) as local, Client(f"127.0.0.1:{local.port}", timeout_seconds=timeout_seconds) as client:
        client.wait_until_ready(MODEL, timeout_seconds=timeout_seconds)
        yield client
