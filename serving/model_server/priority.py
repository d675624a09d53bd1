"""Loading gives way to answering where there are not cores for both."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_NICENESS, _MOST = 10, 19
T = TypeVar("T")


def giving_way(work: Callable[[], T], requests: bool = True) -> T:
    """What some work returns, done by a thread of lower priority while there are requests to give way to.

    Only for what TensorFlow does on its own: whoever has Python's lock and waits for a core keeps everybody waiting.
    """
    return _LOADER.submit(work).result() if requests else work()


def _lower() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MOST))


_LOADER = ThreadPoolExecutor(1, "load", _lower)  # one for good: memory that passes through many threads stays with them
