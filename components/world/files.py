"""Files of a world, local or remote (gs://, s3://, ...).

Local paths need no TensorFlow, so that the command line stays quick; others go through `tf.io.gfile`, imported late.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from transform import file_systems

_CHUNK = 1 << 22
_END = 1 << 16


def is_remote(path: str) -> bool:
    """Whether the path names a file system other than the local one."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """The path of `name` in `folder`; remote paths keep their forward slashes."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def locate(folder: str, path: str) -> str:
    """The place of a path that a table in `folder` holds: relative ones start there; file:// is local."""
    path = path.removeprefix("file://")
    return path if is_remote(path) or os.path.isabs(path) else join(folder, path)


def is_file(path: str) -> bool:
    """Whether a file is there."""
    if not is_remote(path):
        return os.path.isfile(path)
    return bool(_gfile().exists(path) and not _gfile().isdir(path))


def is_folder(path: str) -> bool:
    """Whether a folder is there."""
    return bool(_gfile().isdir(path)) if is_remote(path) else os.path.isdir(path)


def names(folder: str) -> list[str]:
    """What the folder holds, sorted; folders without the trailing slash that some file systems add."""
    found = _gfile().listdir(folder) if is_remote(folder) else os.listdir(folder)
    return sorted(name.rstrip("/") for name in found)


def versions(folder: str) -> list[str]:
    """What is numbered in a folder, smallest first: names of ASCII digits. None where there is no such folder."""
    found = names(folder) if is_folder(folder) else []
    return sorted((name for name in found if name.isascii() and name.isdigit()), key=int)


def make_folder(path: str) -> None:
    """Make the folder and those above it; one that is there is left alone."""
    _gfile().makedirs(path) if is_remote(path) else os.makedirs(path, exist_ok=True)


def remove_folder(path: str) -> None:
    """Remove the folder and what it holds, if it is there: an object store has none that are empty."""
    if is_folder(path):
        _gfile().rmtree(path) if is_remote(path) else shutil.rmtree(path)


@contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """The file, open for random-access reading.

    A local one is Arrow's own kind of file: Arrow's threads may hold on to a file past the end of the interpreter,
    which aborts the process if it is a Python object. Read remote Parquet without threads for that reason.
    """
    if is_remote(path):
        with io.BufferedReader(_Remote(path, "rb"), buffer_size=_CHUNK) as file:
            yield cast(BinaryIO, file)
    else:
        with pa.OSFile(path) as file:
            yield file


@contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete."""
    partial = f"{path}.partial"
    if is_remote(path):
        with io.BufferedWriter(_Remote(partial, "wb"), buffer_size=_CHUNK) as remote:
            yield cast(BinaryIO, remote)
        if _gfile().exists(partial):
            _gfile().rename(partial, path, overwrite=True)
        else:  # nothing was written, and s3:// could not rename a file that is empty
            with _gfile().GFile(path, "wb") as empty:
                empty.write(b"")
    else:
        with open(partial, "wb") as local:
            yield local
        os.replace(partial, path)


def size(path: str) -> int:
    """Bytes of a file."""
    return int(_gfile().stat(path).length) if is_remote(path) else os.path.getsize(path)


def sketch(path: str) -> str:
    """What a large file is known by: its size and both ends; `identity` where it is remote, "" where there is none.

    A file that may not be read is known by that: who needs what is in it says so.
    """
    if not is_file(path):
        return ""
    if is_remote(path):
        return identity(path)
    try:
        with open(path, "rb") as file:
            ends = file.read(_END)
            file.seek(max(0, size(path) - _END))
            return f"{size(path)}-{hashlib.sha256(ends + file.read()).hexdigest()}"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def identity(path: str) -> str:
    """What the content of a file is known by: its SHA-256, or size and time of change where reading it all costs."""
    if is_remote(path):
        stat = _gfile().stat(path)
        return f"{stat.length}-{stat.mtime_nsec}"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Remote(io.RawIOBase):
    """A GFile as a Python raw file, which is what pyarrow reads from and writes to."""

    def __init__(self, path: str, mode: str) -> None:
        self._file = _gfile().GFile(path, mode)
        self._reads = mode == "rb"

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def seekable(self) -> bool:
        return self._reads

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _gfile() -> Any:
    import tensorflow as tf

    file_systems.register()
    return tf.io.gfile
