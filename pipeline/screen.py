"""What a user sees of a run: progress and results on the screen, everything else in the run's log file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console


@contextlib.contextmanager
def quiet(log_file: Path) -> Iterator[Console]:
    """Send all output of this process and its children to a file, and yield a console that still reaches the screen.

    TensorFlow, Beam and TFX write pages, from Python and from C++, so it is the file descriptors that are redirected.

    Args:
        log_file: Is appended to.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        with os.fdopen(os.dup(saved[0]), "w") as screen, _log_to_stderr():
            yield Console(file=screen, width=None if os.isatty(saved[0]) else 120)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    root = logging.getLogger()
    level, handler = root.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
