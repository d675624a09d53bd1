"""Memory that requests and old versions no longer need goes back to the system, where the C library is GNU's."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h


def keep_little() -> None:
    """Has large blocks given back at once, and small ones taken from few pools; before any other thread runs."""
    with _gnu() as library:
        library.mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        library.mallopt(_M_ARENA_MAX, os.cpu_count() or 1)


def give_back() -> None:
    """Gives back what the pools hold and nobody uses, as TensorFlow Serving does after it unloaded a version."""
    with _gnu() as library:
        library.malloc_trim(0)


@contextlib.contextmanager
def _gnu() -> Iterator[ctypes.CDLL]:
    with contextlib.suppress(OSError, AttributeError):  # where there is another C library
        yield ctypes.CDLL("libc.so.6")
