"""The store of a run's topic queues: where it is, what its snapshot says, and what has happened since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.impression_example_gen.impressions import OUTCOMES, Splits, prepare, present_columns
from components.world import tables
from pipeline.runs import artifact
from serving.topic_queues import queues
from serving.topic_queues.queues import TopicQueues, open_store
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Event, Snapshot, TopicStore
from transform.contract import Contract, ContractError

FILE = "topic_queues.db"  # of a run's folder, where the configuration names no store


@dataclass(frozen=True)
class Recorded:
    """What became of events.

    Attributes:
        events: How many were added to the counts.
        clicked: How many of those are clicks.
        unknown: How many of them are of videos that the store did not know, which are in no queue before the next run.
        left_out: The others, by reason.
    """

    events: int
    clicked: int
    unknown: int
    left_out: dict[str, int]


def load_queues(run: Mapping[str, Any]) -> None:
    """Bring the store of a run's topic queues up to the snapshot that the run made, if it made one."""
    uri = artifact(run, "queues")
    if uri is not None:
        with _opened(run, fill=False) as (store, _):
            store.replace(Snapshot.read(uri))


def candidates(run: Mapping[str, Any], clicks: Sequence[str], seen: Collection[str]) -> list[str]:
    """Videos from the queues of a user's topics; none where a run has no queues.

    Args:
        run: The record of a run.
        clicks: Videos that the user clicked, most recent last.
        seen: Videos not to return.
    """
    if artifact(run, "queues") is None:
        return []
    with _opened(run) as (store, settings):
        return [candidate.video_id for candidate in TopicQueues(store, settings).candidates(clicks, set(seen))]


def by_topic(run: Mapping[str, Any]) -> dict[str, list[str]]:
    """The videos in the queue of each topic as it stands now, best first; none where a run has no queues."""
    uri = artifact(run, "queues")
    if uri is None:
        return {}
    with _opened(run) as (store, settings):
        return queues.by_topic(store, Snapshot.read(uri).topics, settings.candidates)


def record(run: Mapping[str, Any], source: str) -> Recorded:
    """Tell the store what happened after the run's world was written, so that the queues follow without training.

    Args:
        run: The record of a run.
        source: Folder with the table `interactions`: that of the new events alone, for each counts once more. Those
            before the instant of the run's snapshot are left out.

    Raises:
        ContractError: The run has no queues, or the table does not fit the run's contract.
    """
    uri = artifact(run, "queues")
    if uri is None:
        raise ContractError(f"run {run['id']} has no topic queues: add `topics:` to its configuration and run again")
    contract = Contract.from_json(run["contract"])
    columns = present_columns(source, "interactions", contract)
    table = tables.read_table(source, "interactions", columns, contract=contract).combine_chunks()
    rows = prepare(table, contract, Splits("time", 1, 0, 0))
    known_already = rows["counted"].to_numpy() & (rows["at"].to_numpy() < Snapshot.instant(uri))
    counted = rows["counted"].to_numpy() & ~known_already
    shown = rows.filter(pa.array(counted)).select(["video_id", "at", "label"]).to_pydict()
    videos, clicked = shown["video_id"], [int(label == 1) for label in shown["label"]]
    events = [Event(v, (), 1, c, at) for v, c, at in zip(videos, clicked, shown["at"], strict=True)]
    with _opened(run) as (store, _):
        known = store.videos(set(videos))
        store.record(events)
    others = Counter(OUTCOMES[outcome] for outcome in rows["outcome"].to_numpy()[~counted & ~known_already].tolist())
    others += Counter({"earlier than the run's snapshot, which counts it": int(known_already.sum())})
    return Recorded(len(events), int(np.sum(clicked)), sum(video not in known for video in videos), dict(others))


@contextmanager
def _opened(run: Mapping[str, Any], fill: bool = True) -> Iterator[tuple[TopicStore, QueueSettings]]:
    """The store that the run's configuration names, or the file beside the run, which is filled if it is a new one."""
    settings = QueueSettings.model_validate(run["config"].get("queues", {}))
    path = Path(run["models"]).parent / FILE
    is_new = settings.store is None and not path.exists()
    store = open_store(settings.store or str(path), settings)
    try:
        if is_new and fill:
            store.replace(Snapshot.read(str(artifact(run, "queues"))))
        yield store, settings
    finally:
        store.close()
