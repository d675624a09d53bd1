"""The command of the first ten minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_the_demo_ends_with_a_feed_and_the_second_time_with_the_same_one(tmp_path):
    def demo() -> str:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "demo"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, second = demo(), demo()
    models = {path.parent.name for path in (tmp_path / "runs" / "demo" / "models").glob("*/[0-9]*")}
    assert models == {"video_classifier", "topic_representation", "topic_retrieval", "jifr", "ranker", "feed"}
    assert first.count("Pushed") == second.count("Unchanged") == len(models)
    feed = first[first.index("Feed of user") :]
    assert sum(line.startswith("│") and line[2:4].strip().isdigit() for line in feed.splitlines()) == 10
    assert second.endswith(feed)
    for page in ("report.html", "feed.html"):
        assert "<html" in (tmp_path / "runs" / "demo" / page).read_text(encoding="utf-8")[:300]
