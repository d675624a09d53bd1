"""What every test shares: the environment, the real data, and small worlds made once a session."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import boto3
import pytest
import redis
from hypothesis import settings
from moto.server import ThreadedMotoServer

# The same examples every time, so that a red build is a change's fault; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SHORTLIST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SHORTLIST_DATA to the folder that holds movielens-1m/ and the like")
    return folder


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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """One server for all tests of a process, for TensorFlow asks its environment once."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`s3://shortlist` of a server of this machine, which the processes started find by their environment."""
    given = {"AWS_ACCESS_KEY_ID": "of", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}
    given |= {"AWS_DEFAULT_REGION": "us-east-1"}
    given |= dict.fromkeys(("S3_ENDPOINT", "AWS_ENDPOINT_URL"), s3)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3").Bucket("shortlist")
    made.create()
    yield made
    made.objects.all().delete()
    made.delete()
