"""Requests repeated by some clients at once, and how long they took."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WARM_UP = 20  # calls before those that are timed


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def latencies(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, one after the other, after some that are not timed."""
    for _ in range(WARM_UP):
        call()
    return _repeat(call, seconds, threading.Event())


def in_turn(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Seconds of each call; they take turns, so that all meet the same machine."""
    for call in calls * WARM_UP:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return times


def together(calls: Sequence[Callable[[], Any]], seconds: float, stop: threading.Event | None = None) -> list[float]:
    """Each call repeated by a thread of its own; all latencies."""
    times: list[float] = []
    event = stop or threading.Event()
    threads = [threading.Thread(target=lambda c=c: times.extend(_repeat(c, seconds, event))) for c in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def percentile(times: Sequence[float], q: float) -> float:
    """Milliseconds."""
    return float(np.percentile(times, q)) * 1000


def _repeat(call: Callable[[], Any], seconds: float, stop: threading.Event) -> list[float]:
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end and not stop.is_set():
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times
