"""File systems that TensorFlow itself has not, `s3://` among them."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def register() -> None:
    """Bring them to TensorFlow, for every process that may be given such a path; said again, it does nothing.

    tensorflow-io 0.37 aborts a process that used its S3 client as that is torn down, whatever the process had done
    (exit code 134; tensorflow/io, issue 2039). What is registered last is called first as a process ends: the end
    itself, with the exit code that there was to be. Python has finished and flushed by then.
    """
    import tensorflow_io  # noqa: F401  # to import it is to register them

    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)
