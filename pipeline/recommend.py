"""A feed for one user: what a client of the served feed does, with what a world knows of the user."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.impression_example_gen import asking
from components.impression_example_gen.asking import UserContext
from components.serving_baseline.executor import served_version
from components.world import files, tables
from pipeline import queue_store
from pipeline.models import FEED
from pipeline.runs import artifact, learned_of_videos
from serving.client import Client
from serving.feed_answer import Cover, Shown, chosen_cover, shown_videos
from serving.model_server.options import TOKEN_VARIABLE, Options
from serving.requests import to_feed_example
from transform.contract import Contract, ContractError, Kind, Role

SOURCES = {
    "topic": "found in the index, by the user's topics",
    "queue": "clicked most in the user's topics",
    "popular": "popular, as the user has no history",
    "explore": "drawn by lot, as the user has no history",
    "catalogue": "of all videos",
}


@dataclass(frozen=True)
class FeedEntry:
    """One video of a feed.

    Attributes:
        video_id: Its id.
        title: "" where it has none.
        category: Its primary one; "" where it has none.
        score: Of the ranker.
        topics: By name, best first.
        source: Where the candidate comes from, one of `SOURCES`; `catalogue` without a retrieval model.
        modality_weights: How much each content vector counted.
        cover: The frame this user is most likely to open it by; None where no model chooses, or it has no frame.
    """

    video_id: str
    title: str
    category: str
    score: float
    topics: list[str] = field(default_factory=list)
    source: str = ""
    modality_weights: dict[str, float] = field(default_factory=dict)
    cover: Cover | None = None


@dataclass(frozen=True)
class Feed:
    """The answer to one user.

    Attributes:
        user_id: Who asked.
        known_user: False gives a cold-start feed: ranked by everything but the user.
        seen: How many videos were left out because the user has seen them.
        candidates: How many videos were ranked.
        entries: Best first.
    """

    user_id: str
    known_user: bool
    seen: int
    candidates: int
    entries: list[FeedEntry]

    @property
    def legend(self) -> str:
        """What the sources of its videos mean."""
        return " ".join(f"{source}: {SOURCES[source]}." for source in sorted({entry.source for entry in self.entries}))


@dataclass(frozen=True)
class _Asked:
    """Whom a feed is for, and all that is known at that moment."""

    run: Mapping[str, Any]
    contract: Contract
    context: UserContext

    def request(self, n: int | None = None, queue: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """What the served feed is asked with."""
        context = self.context
        example = to_feed_example(context.features, self.contract, length=n, queue=queue, **context.told)
        return {"examples": np.array([example], dtype=object)}


def recommend(run: Mapping[str, Any], user_id: str, n: int, client: Client) -> Feed:
    """The n best videos for a user, among those the user has not seen: one call of the served feed.

    The clock is the world's: the moment after its last event.

    Args:
        run: A record of `pipeline.runs.load_run`.
        user_id: May be unknown: the feed is then a cold-start one.
        n: Length of the feed, at least 1.
        client: Where the feed answers.

    Raises:
        ContractError: The run assembles no feed, or n is more than its settings allow.
    """
    most = _settings(run)["most"]
    if n > most:
        raise ContractError(f"a feed of at most {most} videos was expected, got {n}: raise `feed.most`")
    world = run["world"]
    known = user_id in set(tables.read_table(world, "users", ["user_id"])["user_id"].to_pylist())
    asked = _asked(run, user_id)
    answer = client.predict_tensors(FEED, asked.request(n, _queued(asked)), "recommend")
    entries = _entries(shown_videos(answer), asked, topic_names(artifact(run, "topics")))
    return Feed(user_id, known, len(asked.context.seen), int(answer["candidates"][0]), entries)


def covers(run: Mapping[str, Any], user_id: str, video_ids: Sequence[str], client: Client) -> dict[str, Cover]:
    """The covers a user would be shown for some videos; a video without frames is left out.

    Args:
        run: A record of `pipeline.runs.load_run`.
        user_id: May be unknown.
        video_ids: Of the world.
        client: Where the feed answers.
    """
    request = {**_asked(run, user_id).request(), "video_ids": np.array([list(video_ids)], dtype=object)}
    answer = {name: value[0] for name, value in client.predict_tensors(FEED, request, "cover").items()}
    found = {video: chosen_cover({n: v[i] for n, v in answer.items()}) for i, video in enumerate(video_ids)}
    return {video: cover for video, cover in found.items() if cover is not None}


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] | None = run["config"].get("feed")
    if not settings:
        raise ContractError(
            f"run {run['id']} assembles no feed: add `feed: {{}}` to its configuration and run it again"
        )
    return settings


def _asked(run: Mapping[str, Any], user_id: str) -> _Asked:
    contract, world = Contract.from_json(run["contract"]), run["world"]
    context = asking.user_context(world, contract, user_id, asking.clock(world), learned_of_videos(run))
    return _Asked(run, contract, context)


def _queued(asked: _Asked) -> list[str]:
    """Videos from the queues of the user's topics."""
    return queue_store.candidates(asked.run, asked.context.clicked, asked.context.seen)


def _entries(shown: Sequence[Shown], asked: _Asked, names: Mapping[str, str]) -> list[FeedEntry]:
    """What the served feed answered, with what people want to read of each video."""
    videos = tables.read_table(asked.run["world"], "videos")
    columns = [name for name in ("video_id", "title", "primary_category") if name in videos.column_names]
    ids = pa.array([video.video_id for video in shown], pa.string())
    chosen = videos.filter(pc.is_in(videos["video_id"], value_set=ids)).select(columns)
    details = {row["video_id"]: row for row in chosen.to_pylist()}
    vectors = [f.name for f in asked.contract.select(kinds=(Kind.VECTOR,), roles=(Role.VIDEO,))]
    return [
        FeedEntry(
            video_id=video.video_id,
            title=details.get(video.video_id, {}).get("title") or "",
            category=details.get(video.video_id, {}).get("primary_category") or "",
            score=video.score,
            topics=[names.get(topic, topic) for topic in video.topics] if names else [],
            source=video.source,
            modality_weights=dict(zip(vectors, video.modality_weights, strict=False)),
            cover=video.cover,
        )
        for video in shown
    ]


def topic_names(topics: str | None) -> dict[str, str]:
    """The name of each topic, by id, given the folder that TopicLearner wrote; none without one."""
    if topics is None:
        return {}
    with files.reading(f"{topics}/topics.json") as file:
        return {topic["id"]: topic["name"] for topic in json.loads(file.read())}


@contextmanager
def served(run: Mapping[str, Any], target: str | None, timeout_seconds: float = 120.0) -> Iterator[Client]:
    """A client of the server at `target`, or of a local one of this run's feed that is stopped afterwards.

    Raises:
        ContractError: The run assembles no feed, or has pushed none yet.
    """
    _settings(run)
    if target is None and not served_version(f"{run['models']}/{FEED}"):
        raise ContractError(
            f"run {run['id']} has pushed no feed (outcome: {run['outcome']}): run it to its end, or give another with "
            "--run"
        )
    token = os.environ.get(TOKEN_VARIABLE)  # which a local server asks for too
    if target is not None:
        with Client(target, timeout_seconds=timeout_seconds, token=token) as client:
            yield client
        return
    from serving.model_server.server import Server

    options = Options(model_base_path=f"{run['models']}/{FEED}", model_name=FEED, port=0, rest_api_port=0)
    with Server(options) as local, Client(local.target, timeout_seconds, token=token) as client:
        client.wait_until_ready(FEED, timeout_seconds=timeout_seconds)
        yield client
