"""Stores of both kinds."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.topic_queues.redis_store import RedisStore
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import TopicStore


@pytest.fixture(params=["sqlite", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opening(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, str]:
    """Module, class and first arguments that open one and the same new store, here and in other processes."""
    if kind == "sqlite":
        return "sqlite_store", "SqliteStore", repr((str(tmp_path / "queues.db"),))
    url = request.getfixturevalue("redis_url")
    return "redis_store", "RedisStore", repr((url, QueueSettings(), uuid.uuid4().hex))


@pytest.fixture
def make_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., TopicStore]]:
    """Opens a new, empty store of the kind with the settings given."""
    made: list[TopicStore] = []

    def make(**settings: float) -> TopicStore:
        wanted = QueueSettings(**settings)
        if kind == "sqlite":
            made.append(SqliteStore(str(tmp_path / f"{uuid.uuid4().hex}.db"), wanted))
        else:
            made.append(RedisStore(request.getfixturevalue("redis_url"), wanted, uuid.uuid4().hex))
        return made[-1]

    yield make
    for store in made:
        store.close()
