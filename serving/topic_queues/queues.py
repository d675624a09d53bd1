"""Candidates for a user from the queues of the topics of their last clicks.

Source: multimodal-topic-learning.txt, section III-C 1. In what order the queues are read it does not say: here the best
of each topic come first, then the second of each, and so on.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from serving.topic_queues.redis_store import RedisStore
from serving.topic_queues.settings import SHARED, QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import Snapshot, TopicStore


class Candidate(NamedTuple):
    """A video, the topic whose queue it comes from, and its smoothed click-through rate there."""

    video_id: str
    topic: str
    score: float


class TopicQueues:
    """Reads candidates from a store.

    Args:
        store: The queues.
        settings: How many clicks, topics and candidates.
    """

    def __init__(self, store: TopicStore, settings: QueueSettings = QueueSettings()) -> None:  # noqa: B008 - frozen
        self._store, self._settings = store, settings

    def topics(self, clicks: Sequence[str]) -> list[str]:
        """The topics that the user's clicks had most often, most frequent first.

        Args:
            clicks: Videos that the user clicked, most recent last; only the last `recent_clicks` count.

        Returns:
            Up to `topics` of them; of equally frequent ones the more recently clicked first. None without clicks.
        """
        recent = clicks[-self._settings.recent_clicks :]
        known = self._store.videos(set(recent))
        counts = Counter(topic for video in reversed(recent) if video in known for topic in known[video].topics)
        return [topic for topic, _ in counts.most_common(self._settings.topics)]

    def candidates(self, clicks: Sequence[str], exclude: Collection[str] = ()) -> list[Candidate]:
        """Videos of the user's topics, each once, the queues in turn.

        Args:
            clicks: See `topics`.
            exclude: Videos not to return, such as those already watched.

        Returns:
            Up to `candidates` of them.
        """
        topics, excluded, most = self.topics(clicks), frozenset(exclude), self._settings.candidates
        chosen: dict[str, Candidate] = {}
        for entries in zip_longest(*self._store.tops(topics, most + len(excluded))):
            for topic, entry in zip(topics, entries, strict=True):
                if entry is not None and entry[0] not in excluded:
                    chosen.setdefault(entry[0], Candidate(entry[0], topic, entry[1]))
        return list(chosen.values())[:most]


def by_topic(store: TopicStore, topics: Sequence[str], most: int) -> dict[str, list[str]]:
    """The first `most` videos in the queue of each topic as it stands now, best first."""
    return {topic: [video for video, _ in queue] for topic, queue in zip(topics, store.tops(topics, most), strict=True)}


def of_snapshot(snapshot: Snapshot, settings: QueueSettings) -> dict[str, list[str]]:
    """`by_topic` of all topics of a snapshot, before anything else happens; no store of anybody's is touched."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(str(Path(folder) / "queues.db"), settings)
        try:
            store.replace(snapshot)
            return by_topic(store, snapshot.topics, settings.candidates)
        finally:
            store.close()


def open_store(address: str, settings: QueueSettings = QueueSettings()) -> TopicStore:  # noqa: B008 - frozen
    """The store at an address: a `redis://` or `rediss://` URL, or else the path of a SQLite file.

    Raises:
        ContractError: It cannot be opened.
    """
    if address.startswith(SHARED):
        return RedisStore(address, settings)
    return SqliteStore(address, settings)
