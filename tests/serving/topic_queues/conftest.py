"""Stores of both kinds; those in Redis need the program `redis-server`, which is started once."""

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from serving.topic_queues.redis_store import RedisStore
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.sqlite_store import SqliteStore
from serving.topic_queues.store import TopicStore


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the PATH: `apt-get install redis-server`, as .ci/run does, tests Redis too")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path_factory.mktemp("redis"))]
    server = subprocess.Popen([program, *where, "--save", ""], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    deadline = time.monotonic() + 20
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert server.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(20)


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
