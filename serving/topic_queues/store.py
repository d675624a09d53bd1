"""What a store of topic queues does, and what goes in and out of it.

Two stores keep the same promises: `sqlite_store.SqliteStore` (one file, many processes of one machine) and
`redis_store.RedisStore` (many machines). A store holds the counts of a snapshot and of the events recorded since. Each
snapshot says up to which instant it counts, and a store that loads it keeps what it recorded from that instant on: no
click is lost or counted twice, however late the snapshot comes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from serving.topic_queues.settings import QueueSettings
from transform.contract import ContractError

Scored = list[tuple[str, float]]

BATCH = 1000  # rows of one statement or script, for which other writers wait


@contextmanager
def answering(where: str, fault: type[Exception]) -> Iterator[None]:
    """A store that answers, or one message: a full disk, a lock that is held too long, a server that is gone."""
    try:
        yield
    except fault as error:
        raise ContractError(
            f"{where}: expected topic queues that answer: {error}: see to the store, then do it again"
        ) from error


@dataclass(frozen=True)
class Event:
    """Something that happened to a video; exposure and click may come together or one after the other.

    Attributes:
        video_id: The video.
        topics: Its topics; they count where the store knows none of the video, and may be left empty otherwise.
        shown: How often it was shown.
        clicked: How often it was clicked.
        at: When, in unix seconds.
    """

    video_id: str
    topics: tuple[str, ...] = ()
    shown: int = 0
    clicked: int = 0
    at: int = field(default_factory=lambda: int(time.time()))


class Video(NamedTuple):
    """What is known of a video: its topics, best first, and how often it was shown and clicked."""

    video_id: str
    topics: tuple[str, ...]
    shown: int
    clicked: int


class Row(NamedTuple):
    """What a store adds to a video. `topics` is JSON; `drawn` says whether the video is shown while it is fresh."""

    video_id: str
    topics: str
    drawn: int
    shown: int
    clicked: int
    at: int


class TopicStore(Protocol):
    """Counts of videos, and the queues that follow from them. Safe to use from many threads."""

    def record(self, events: Sequence[Event]) -> None:
        """Add events to the counts and put their videos where they now belong.

        Raises:
            ContractError: An event without a video, or with negative counts; nothing is recorded then.
        """

    def top(self, topic: str, n: int) -> Scored:
        """The first `n` videos of a topic's queue with their scores, best first; of equals the later id is first."""
        return self.tops([topic], n)[0]

    def tops(self, topics: Sequence[str], n: int) -> list[Scored]:
        """`top` of each topic, all from one moment: never some from an older snapshot than others."""

    def videos(self, video_ids: Collection[str]) -> dict[str, Video]:
        """Those of the videos that the store knows."""

    def replace(self, snapshot: Snapshot) -> None:
        """Count from the snapshot, and from what was recorded at its instant or later.

        Readers see the old queues until the new ones are complete, and writers lose nothing meanwhile.
        """

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True)
class Snapshot:
    """All videos and what happened to them before an instant.

    Attributes:
        before: The instant, in unix seconds.
        videos: Each video once.
    """

    before: int
    videos: Collection[Video]

    @property
    def topics(self) -> list[str]:
        """Those that a video has, sorted."""
        return sorted({topic for video in self.videos for topic in video.topics})

    @classmethod
    def read(cls, uri: str) -> Snapshot:
        """The snapshot that the component `components.topic_queues` wrote.

        Args:
            uri: Folder, local or remote (s3://, gs://).

        Raises:
            ContractError: There is no complete snapshot.
        """
        try:
            system, path = pa.fs.FileSystem.from_uri(uri if "://" in uri else os.path.abspath(uri))
            before = cls.instant(uri)
            table = pq.read_table(f"{path}/videos", columns=list(Video._fields), filesystem=system)
        except (OSError, pa.ArrowInvalid, ValueError, KeyError) as error:
            raise ContractError(
                f"{uri}: expected a queue snapshot, snapshot.json and videos/ as TopicQueues writes them: {error}: "
                "run the component again"
            ) from error
        columns = zip(*(table[name].to_pylist() for name in Video._fields), strict=True)
        return cls(before, [Video(video, tuple(topics or ()), *counts) for video, topics, *counts in columns])

    @staticmethod
    def instant(uri: str) -> int:
        """Up to when the snapshot in a folder counts, in unix seconds."""
        system, path = pa.fs.FileSystem.from_uri(uri if "://" in uri else os.path.abspath(uri))
        with system.open_input_stream(f"{path}/snapshot.json") as file:
            return int(json.loads(file.read())["before"])

    def priors(self, settings: QueueSettings) -> dict[str, float]:
        """The mean click-through rate of each topic, smoothed towards `min_click_rate`."""
        shown: Counter[str] = Counter()
        clicked: Counter[str] = Counter()
        for video in self.videos:
            for topic in set(video.topics):
                shown[topic] += video.shown
                clicked[topic] += video.clicked
        strength, rate = settings.prior_strength, settings.min_click_rate
        return {topic: (clicked[topic] + strength * rate) / (shown[topic] + strength) for topic in shown}

    def rows(self, settings: QueueSettings) -> Iterable[Row]:
        """The videos as a store adds them."""
        for video, topics, shown, clicked in self.videos:
            yield Row(video, _as_json(topics), _drawn(video, self.before, settings), shown, clicked, self.before)


def event_rows(events: Sequence[Event], settings: QueueSettings) -> list[Row]:
    """Events as a store adds them.

    Raises:
        ContractError: See `TopicStore.record`.
    """
    for event in events:
        if not event.video_id or min(event.shown, event.clicked) < 0:
            raise ContractError(
                f"topic queues: expected events with a video_id and with counts of 0 or more, got {event}: "
                "mend what reports events"
            )
    return [
        Row(e.video_id, _as_json(e.topics), _drawn(e.video_id, 0, settings), e.shown, e.clicked, e.at) for e in events
    ]


def _as_json(topics: Iterable[str]) -> str:
    return json.dumps(list(dict.fromkeys(topics)))


def _drawn(video: str, draw: int, settings: QueueSettings) -> int:
    """1 for a random share of the videos, the same in every process; another share in every draw."""
    digest = hashlib.blake2b(f"{settings.seed}:{draw}:{video}".encode(), digest_size=8).digest()
    return int(int.from_bytes(digest, "big") < settings.fresh_share * 2**64)
