"""What a process no longer uses goes back to the system, also where something younger is still in use."""

import json
import subprocess
import sys

import pytest

from serving.model_server import memory

PROGRAM = """
import json, psutil
from serving.model_server import memory
measured = []
measure = lambda: measured.append(psutil.Process().memory_info().rss / 2**20)
memory.keep_little()
small = [bytes(1000) for _ in range(100_000)]  # about 100 MB in blocks of the pools
youngest = bytes(1000)  # above all others: malloc alone gives back nothing below it
measure()
del small
measure()
memory.give_back()
measure()
print(json.dumps(measured))
"""


def test_give_back_returns_what_malloc_keeps():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, freed, given_back = json.loads(run.stdout)
    assert full - freed < 10
    assert full - given_back > 90


def _no_library(name: str) -> object:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize("load", [_no_library, lambda name: object()], ids=["not there", "without such functions"])
def test_another_c_library_is_left_alone(monkeypatch, load):
    asked = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: asked.append(name) or load(name))
    memory.keep_little()
    memory.give_back()
    assert asked == ["libc.so.6"] * 2
