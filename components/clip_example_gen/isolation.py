"""Decoding in a process of its own: a decoder that hangs, crashes or eats its time costs one file, not the run.

The process is started by path of this module, without TensorFlow or Beam, and answers pickles over a pipe.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from components.clip_example_gen.clip import Clip, read_clip
from components.clip_example_gen.video import FaultError, Video
from transform.clip_settings import ClipSettings

_START_SECONDS = 120.0
_ROOT = Path(__file__).parents[2]


Job = tuple[str, bool | None]


class Decoder:
    """`read_clip` with a time limit that holds whatever a file does; not for several threads at once.

    Args:
        settings: What to decode, and the limits.
    """

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def clips(self, jobs: Iterable[Job]) -> Iterator[Clip | FaultError]:
        """What comes of each file; while the caller works on one, the next is decoded.

        Args:
            jobs: Path, and whether to look for candidates for the cover, of each file; None: only its length is wanted.

        Yields:
            In the same order, clips and the faults of files that give none, take too long, or end the process.
        """
        waiting = False
        try:
            for job in jobs:
                answers = [self._receive()] if waiting else []
                self._send(job)
                waiting = True
                yield from answers
            if waiting:
                waiting = False
                yield self._receive()
        finally:
            if waiting:  # the caller has given up: its answers must not go to the next one
                self.close()

    def close(self) -> int | None:
        """End the process and return its exit code, None if there was none; the next file starts another."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        self._connection.close()
        try:
            process.wait(1)  # without its pipe it ends, unless it hangs
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()

    def _send(self, job: Job) -> None:
        if self._process is None:
            self._start()
        with suppress(ConnectionError):  # then there is no answer either
            self._connection.send(job)

    def _receive(self) -> Clip | FaultError:
        limit = self._settings.max_decode_seconds
        try:
            if self._connection.poll(limit):
                return self._connection.recv()
        except (EOFError, OSError):  # it ended between two answers, or within one
            return FaultError("decoder crashed", f"exit code {self.close()}")
        self.close()
        return FaultError("too slow", f"not decoded within {limit:g} s")

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
            )
        self._connection.send(self._settings)
        try:
            if self._connection.poll(_START_SECONDS):
                self._connection.recv()
                return
        except EOFError:
            raise RuntimeError(f"the decoder ended as it started, exit code {self.close()}") from None
        raise RuntimeError(f"the decoder did not start within {_START_SECONDS:g} s, exit code {self.close()}")


def serve(connection: Connection) -> None:
    """Answer until the pipe is closed: settings first, then (path, with_key_frames) for a Clip or a FaultError each."""
    settings = connection.recv()
    connection.send("ready")
    while True:
        try:
            path, with_key_frames = connection.recv()
        except EOFError:
            return
        connection.send(_answer(path, settings, with_key_frames))


def _answer(path: str, settings: ClipSettings, with_key_frames: bool | None) -> Clip | FaultError:
    try:
        if with_key_frames is None:
            with Video(path, settings) as video:
                return Clip(video.seconds)
        return read_clip(path, settings, with_key_frames)
    except FaultError as fault:
        return fault
    except Exception as error:  # whatever PyAV, OpenCV or NumPy make of a hostile file, it is that file's fault
        logging.getLogger(__name__).warning("%s: %r", path, error)
        return FaultError("cannot be decoded", repr(error))


if __name__ == "__main__":
    import cv2

    cv2.setNumThreads(1)
    serve(Connection(int(sys.argv[1])))
