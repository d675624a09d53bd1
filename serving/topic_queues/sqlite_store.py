"""Topic queues in one SQLite file, which any number of processes of one machine may share."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import BATCH, Event, Row, Scored, Snapshot, TopicStore, Video, answering, event_rows
from transform.contract import ContractError

_RETRY_SECONDS = 0.01
WAIT_SECONDS = 60.0  # for other writers; to load a snapshot of 300,000 videos takes 4 to 10 seconds

_SCHEMA = """
CREATE TABLE IF NOT EXISTS video (video_id TEXT PRIMARY KEY, topics TEXT, drawn INT, shown INT, clicked INT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prior (topic TEXT PRIMARY KEY, rate REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (video_id TEXT, topic TEXT, score REAL, PRIMARY KEY (video_id, topic)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS queue_order ON queue (topic, score DESC, video_id DESC);
CREATE TABLE IF NOT EXISTS journal (video_id TEXT, shown INT, clicked INT, at INT);
"""
_ADD = """
INSERT INTO video VALUES (:video_id, :topics, :drawn, :shown, :clicked) ON CONFLICT (video_id) DO UPDATE SET
    shown = shown + excluded.shown, clicked = clicked + excluded.clicked,
    topics = CASE WHEN topics = '[]' THEN excluded.topics ELSE topics END
"""
_NOTE = "INSERT INTO journal VALUES (:video_id, :shown, :clicked, :at)"
_SINCE = """
SELECT video_id, topics, drawn, journal.shown, journal.clicked, at FROM journal JOIN video USING (video_id)
WHERE at >= ? ORDER BY journal.rowid
"""
_LEAVE = "DELETE FROM queue WHERE video_id IN (SELECT value FROM json_each(:videos))"
_ENTER = """
INSERT INTO queue
SELECT v.video_id, t.value,
    (v.clicked + :prior_strength * coalesce(p.rate, :min_click_rate)) / (v.shown + :prior_strength)
FROM json_each(:videos) AS touched JOIN video AS v ON v.video_id = touched.value JOIN json_each(v.topics) AS t
    LEFT JOIN prior AS p ON p.topic = t.value
WHERE CASE WHEN v.shown >= :min_exposures THEN 1.0 * v.clicked / v.shown >= :min_click_rate ELSE v.drawn END
"""
_TOP = "SELECT video_id, score FROM queue WHERE topic = ? ORDER BY score DESC, video_id DESC LIMIT ?"
_VIDEOS = "SELECT video_id, topics, shown, clicked FROM video WHERE video_id IN (SELECT value FROM json_each(?))"


class SqliteStore(TopicStore):
    """A `TopicStore` in a file; in write-ahead mode, so that readers wait for nobody.

    Args:
        path: The file, made if it is not there. Not on a network file system, which locks no files reliably.
        settings: Thresholds and smoothing.

    Raises:
        ContractError: The file cannot be opened or is not a database.
    """

    def __init__(self, path: str, settings: QueueSettings = QueueSettings()) -> None:  # noqa: B008 - frozen
        self._path, self._settings = path, settings
        self._of_thread = threading.local()
        self._connections: list[sqlite3.Connection] = []
        try:
            self._connection().executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self.close()
            raise ContractError(
                f"{path}: expected a file for topic queues, in a folder that is there: {error}: name another one"
            ) from error

    def record(self, events: Sequence[Event]) -> None:
        """See `TopicStore.record`; all events or none are recorded."""
        rows = event_rows(events, self._settings)
        with self._transaction("IMMEDIATE") as connection:
            self._add(connection, rows, journal=True)

    def tops(self, topics: Sequence[str], n: int) -> list[Scored]:
        """See `TopicStore.tops`."""
        with self._transaction("DEFERRED") as connection:
            return [connection.execute(_TOP, (topic, max(n, 0))).fetchall() for topic in topics]

    def videos(self, video_ids: Collection[str]) -> dict[str, Video]:
        """See `TopicStore.videos`."""
        with answering(self._path, sqlite3.Error):
            found = self._connection().execute(_VIDEOS, (json.dumps(list(video_ids)),)).fetchall()
        return {video: Video(video, tuple(json.loads(topics)), *counts) for video, topics, *counts in found}

    def replace(self, snapshot: Snapshot) -> None:
        """See `TopicStore.replace`; one transaction."""
        with self._transaction("IMMEDIATE") as connection:
            later = [Row(*row) for row in connection.execute(_SINCE, (snapshot.before,))]
            for table in ("video", "prior", "queue", "journal"):
                connection.execute(f"DELETE FROM {table}")
            priors = snapshot.priors(self._settings)
            connection.executemany("INSERT INTO prior VALUES (?, ?)", priors.items())
            self._add(connection, list(snapshot.rows(self._settings)), journal=False)
            self._add(connection, later, journal=True)

    def close(self) -> None:
        """See `TopicStore.close`."""
        while self._connections:
            self._connections.pop().close()
        self._of_thread = threading.local()

    def _add(self, connection: sqlite3.Connection, rows: list[Row], journal: bool) -> None:
        for first in range(0, len(rows), BATCH):
            values: list[dict[str, Any]] = [row._asdict() for row in rows[first : first + BATCH]]
            connection.executemany(_ADD, values)
            if journal:
                connection.executemany(_NOTE, values)
            touched = json.dumps(list({row["video_id"]: None for row in values}))
            connection.execute(_LEAVE, {"videos": touched})
            connection.execute(_ENTER, {"videos": touched, **self._settings.model_dump()})

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with answering(self._path, sqlite3.Error):
            connection = self._connection()
            connection.execute(f"BEGIN {kind}")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        """The thread's own; SQLite locks between connections, not within one."""
        if not hasattr(self._of_thread, "connection"):
            made = sqlite3.connect(self._path, WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._connections.append(made)
            _log_ahead(made)
            made.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last commits, never the file
            self._of_thread.connection = made
        return self._of_thread.connection


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead mode. Several that do so to a new file at once SQLite does not let wait, but refuses."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not _switched(connection, time.monotonic() > deadline):
        time.sleep(_RETRY_SECONDS)


def _switched(connection: sqlite3.Connection, last_try: bool) -> bool:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if last_try or "locked" not in str(error):
            raise
        return False
    return True
