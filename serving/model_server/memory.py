"""Memory that requests and old versions no longer need goes back to the system, where the C library is GNU's."""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h
_LIBRARY = "libc.so.6"
_OTHER_LIBRARY = (OSError, AttributeError)  # what is raised where there is another


def keep_little() -> None:
    """Has large blocks given back at once, and small ones taken from few pools; before any other thread runs."""
    with contextlib.suppress(*_OTHER_LIBRARY):
        library = ctypes.CDLL(_LIBRARY)
        library.mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        library.mallopt(_M_ARENA_MAX, os.cpu_count() or 1)


def give_back() -> None:
    """Gives back what the pools hold and nobody uses, as TensorFlow Serving does after it unloaded a version."""
    with contextlib.suppress(*_OTHER_LIBRARY):
        ctypes.CDLL(_LIBRARY).malloc_trim(0)
