"""A feed for one user: candidates of the served retrieval model and of topic queues, ranked, each with a cover."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.impression_example_gen import impressions
from components.world import files, tables
from pipeline.models import COVER_CHOOSER, RETRIEVER
from pipeline.runs import artifact, learned_of_videos
from serving.client import Client, ModelNotFound
from serving.requests import to_examples
from serving.topic_queues.queues import TopicQueues, open_store
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Snapshot
from transform.contract import TOPICS, Contract, Kind, Role

MODEL = "ranker"
BATCH_SIZE = 1000  # rows of one request; serving/configs/batching.config allows 1,024
STORE = "topic_queues.db"  # of a run's folder


@dataclass(frozen=True)
class Cover:
    """The frame that a video is shown by.

    Attributes:
        frame: Its index.
        path: Of the picture, within the world.
        score: Of the model that chose it.
        at_seconds: When it is shown; None where that is not known.
    """

    frame: int
    path: str
    score: float
    at_seconds: float | None


@dataclass(frozen=True)
class FeedEntry:
    """One video of a feed.

    Attributes:
        video_id: Its id.
        title: "" where it has none.
        category: Its primary one; "" where it has none.
        score: Of the ranker.
        topics: By name, best first.
        source: Where the candidate comes from: `topic` (the index), `queue`, or `catalogue` without a retrieval model.
        modality_weights: How much each content vector counted.
        cover: The frame this user is most likely to open it by; None where no model chooses, or it has no frame.
    """

    video_id: str
    title: str
    category: str
    score: float
    topics: list[str] = field(default_factory=list)
    source: str = "catalogue"
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


@dataclass(frozen=True)
class _Asked:
    """Whom a feed is for, and all that is known at that moment."""

    run: Mapping[str, Any]
    contract: Contract
    user_id: str
    seen: set[str]
    now: int

    def rows(self, video_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What the ranker is to know of each video and the user."""
        learned = learned_of_videos(self.run)
        return impressions.serving_rows(self.run["world"], self.contract, self.user_id, video_ids, self.now, learned)


def recommend(run: Mapping[str, Any], user_id: str, n: int, client: Client) -> Feed:
    """The n best videos for a user, among those the user has not seen.

    The clock is the world's: the moment after its last event. Without a retrieval model in the run's configuration, the
    whole catalogue is ranked.

    Args:
        run: A record of `pipeline.runs.load_run`.
        user_id: May be unknown: the feed is then a cold-start one.
        n: Length of the feed, at least 1.
        client: Where the models answer.
    """
    world, contract = run["world"], Contract.from_json(run["contract"])
    videos = tables.read_table(world, "videos")
    known = user_id in set(tables.read_table(world, "users", ["user_id"])["user_id"].to_pylist())
    asked = _asked(run, user_id)
    sources = _candidates(asked, videos["video_id"].to_pylist(), client)
    rows = asked.rows(list(sources))
    answer = client.predict(MODEL, rows, contract, batch_size=BATCH_SIZE)
    best = np.argsort(-answer["score"], kind="stable")[:n]
    shown = [name for name in ("video_id", "title", "primary_category") if name in videos.column_names]
    chosen = pc.is_in(videos["video_id"], value_set=pa.array([rows[i][contract.video_key.name] for i in best]))
    details = {row["video_id"]: row for row in videos.filter(chosen).select(shown).to_pylist()}
    names = topic_names(artifact(run, "topics"))
    shown_as = _covers(asked, [rows[i] for i in best], client)
    entries = [_entry(rows[i], details, sources, names, {n: v[i] for n, v in answer.items()}, contract) for i in best]
    entries = [replace(entry, cover=shown_as.get(entry.video_id)) for entry in entries]
    return Feed(user_id, known, len(asked.seen), len(sources), entries)


def covers(run: Mapping[str, Any], user_id: str, video_ids: Sequence[str], client: Client) -> dict[str, Cover]:
    """The covers a user would be shown for some videos; a video without frames is left out.

    Args:
        run: A record of `pipeline.runs.load_run`.
        user_id: May be unknown.
        video_ids: Of the world.
        client: Where the models answer.
    """
    asked = _asked(run, user_id)
    return _covers(asked, asked.rows(video_ids), client)


def _asked(run: Mapping[str, Any], user_id: str) -> _Asked:
    now = pc.max(tables.read_table(run["world"], "interactions", ["at"])["at"]).as_py() + 1
    contract = Contract.from_json(run["contract"])
    return _Asked(run, contract, user_id, impressions.watched(run["world"], user_id), now)


def _covers(asked: _Asked, rows: Sequence[Mapping[str, Any]], client: Client) -> dict[str, Cover]:
    """By video, what the served model of frames chooses; nothing where none was ever pushed."""
    if COVER_CHOOSER not in asked.run.get("config", {}).get("models", {}) or not rows:
        return {}
    contract = asked.contract
    histories = [f.name for f in contract.histories]
    wanted = (contract.user_key.name, contract.video_key.name, *histories)
    asked_rows = [{name: row[name] for name in wanted if name in row} for row in rows]
    try:
        answer = client.predict(COVER_CHOOSER, asked_rows, contract, batch_size=BATCH_SIZE)
    except ModelNotFound:
        return {}
    ids = [row[contract.video_key.name] for row in rows]
    columns = (answer[name].tolist() for name in ("frame", "path", "frame_score", "at_seconds"))
    return {
        video: Cover(frame, path.decode(), score, None if math.isnan(at) else at)
        for video, frame, path, score, at in zip(ids, *columns, strict=True)
        if frame >= 0
    }


def _candidates(asked: _Asked, catalogue: Sequence[str], client: Client) -> dict[str, str]:
    """Videos to be ranked, and where each comes from."""
    if RETRIEVER not in asked.run.get("config", {}).get("models", {}):
        return {video: "catalogue" for video in catalogue if video not in asked.seen}
    (row,) = asked.rows(catalogue[:1])
    known = {f.name for f in asked.contract.select(roles=(Role.USER, Role.CONTEXT))}
    example = to_examples([{name: value for name, value in row.items() if name in known}], asked.contract)
    inputs = {"examples": example, "exclude": [sorted(asked.seen)], "queue": [_queued(asked, row)]}
    arrays = {name: np.array(value, dtype=object) for name, value in inputs.items()}
    answer = client.predict_tensors(RETRIEVER, arrays, "retrieve")
    found = zip(answer["video_ids"][0], answer["sources"][0], strict=True)
    return {video.decode(): source.decode() for video, source in found if video}


def _queued(asked: _Asked, row: Mapping[str, Any]) -> list[str]:
    """Videos from the queues of the user's topics."""
    if artifact(asked.run, "queues") is None:
        return []
    histories = [f.name for f in asked.contract.histories]
    clicks = [video for name in histories for video in row.get(name, [])]
    settings = QueueSettings.model_validate(asked.run["config"].get("queues", {}))
    path = Path(asked.run["models"]).parent / STORE
    if not path.exists():
        load_queues(asked.run)
    with closing(open_store(str(path), settings)) as store:
        return [candidate.video_id for candidate in TopicQueues(store, settings).candidates(clicks, asked.seen)]


def load_queues(run: Mapping[str, Any]) -> None:
    """Bring the store of a run's topic queues up to the snapshot that the run made, if it made one."""
    uri = artifact(run, "queues")
    if uri is not None:
        settings = QueueSettings.model_validate(run["config"].get("queues", {}))
        with closing(open_store(str(Path(run["models"]).parent / STORE), settings)) as store:
            store.replace(Snapshot.read(uri))


def topic_names(topics: str | None) -> dict[str, str]:
    """The name of each topic, by id, given the folder that TopicLearner wrote; none without one."""
    if topics is None:
        return {}
    with files.reading(f"{topics}/topics.json") as file:
        return {topic["id"]: topic["name"] for topic in json.loads(file.read())}


def _entry(
    row: Mapping[str, Any],
    details: Mapping[str, dict[str, Any]],
    sources: Mapping[str, str],
    names: Mapping[str, str],
    answer: Mapping[str, Any],
    contract: Contract,
) -> FeedEntry:
    weights: dict[str, float] = {}
    if "modality_weights" in answer:
        vectors = [feature.name for feature in contract.select(kinds=(Kind.VECTOR,), roles=(Role.VIDEO,))]
        weights = {name: float(w) for name, w in zip(vectors, answer["modality_weights"], strict=True)}
    key = row[contract.video_key.name]
    topics = [topic for f in contract.features if f.source == TOPICS for topic in row.get(f.name, [])]
    return FeedEntry(
        video_id=key,
        title=details[key].get("title") or "",
        category=details[key].get("primary_category") or "",
        score=float(answer["score"]),
        topics=[names.get(topic, topic) for topic in topics],
        source=sources[key],
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
        for model in (MODEL, RETRIEVER, COVER_CHOOSER):
            if model == MODEL or (Path(models) / model).is_dir():
                client.wait_until_ready(model, timeout_seconds=timeout_seconds)
        yield client
