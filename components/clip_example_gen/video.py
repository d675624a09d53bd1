"""A media file through PyAV: opened with limits, read at given times, pictures upright and of the size wanted.

Frames are decoded one after the other and never kept: memory does not grow with the length of a file. Where the file's
index has a key frame between two wanted times, decoding jumps there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from components.world import files
from components.world.pictures import Image
from transform.clip_settings import ClipSettings

MAX_FPS = 1000.0
_READ_AHEAD = 1 << 20  # bytes of a remote file
_SEEK_SECONDS = 0.25  # a jump that saves less costs more than decoding on
_BLIND_SEEK_SECONDS = 10.0  # the same for files without an index, where the nearest key frame is not known
_TAIL_SECONDS = 10.0
_SLACK = 1.1  # by how much a header may promise more than there is
_SCALED_FIRST = ("yuv420p", "yuvj420p")  # three times as fast as turning all pixels into colours
_CLOCK = re.compile(r"(\d+):(\d+):(\d+\.?\d*)")
_NO_MEDIA = ("tty", "subtitle", "hls", "dash", "concat", "lavfi")  # text that FFmpeg reads as media, or lists of files


class FaultError(Exception):
    """Why a file gives no clip.

    Attributes:
        reason: One of a few phrases, to count by.
        detail: What came, for this file.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class _Clock:
    """When frames are shown: by pts, unless these are missing or step back more often than dts, as in AVI files."""

    def __init__(self) -> None:
        self._last, self._faults = {"pts": -np.inf, "dts": -np.inf}, {"pts": 0, "dts": 0}

    def stamp(self, frame: Any) -> int | None:
        """Of the next frame, in ticks; None where it has neither. Source: FFmpeg's `guess_correct_pts`."""
        for name in self._last:
            value = getattr(frame, name)
            if value is not None:
                self._faults[name] += value <= self._last[name]
                self._last[name] = value
        by_pts = frame.dts is None or self._faults["pts"] <= self._faults["dts"]
        found: int | None = frame.pts if by_pts and frame.pts is not None else frame.dts
        return found


@contextmanager
def opened(path: str, settings: ClipSettings) -> Iterator[Any]:
    """The file as a PyAV container.

    Raises:
        FaultError: There is no such file, it is empty, or it is no media.
    """
    if not files.is_file(path):  # nor a pipe or a device, which might never end
        raise FaultError("unreadable path", f"no such file: {path}")
    if files.size(path) == 0:
        raise FaultError("empty file")
    options = {"max_pixels": str(settings.max_pixels), "protocol_whitelist": "file"}
    try:
        if not files.is_remote(path):
            with av.open(path, options=options) as container:
                yield _media(container)
            return
        with files.reading(path) as file, av.open(file, options=options, buffer_size=_READ_AHEAD) as container:
            yield _media(container)
    except av.InvalidDataError as error:
        raise FaultError("not a video", error.strerror or "") from error
    except (av.FFmpegError, OSError) as error:
        raise FaultError("unreadable path", str(error)) from error


def _media(container: Any) -> Any:
    if any(name in container.format.name.split(",") for name in _NO_MEDIA):
        raise FaultError("not a video", f"{container.format.long_name}")
    return container


class Video:
    """The pictures of a file, and the open container they come from; a context manager.

    Args:
        path: Local or remote.
        settings: The limits.

    Attributes:
        container: For other streams than the pictures.
        settings: The limits.
        start: Time of the first picture, in the container's clock, seconds.
        seconds: How long it is.
        decoded: How many frames were decoded so far.

    Raises:
        FaultError: The file is unreadable, has no video, or exceeds the limits.
    """

    def __init__(self, path: str, settings: ClipSettings) -> None:
        self.settings = settings
        self.decoded = 0
        self._path = path
        self._files = ExitStack()
        self._seeks = True
        self._scaler, self._painter = VideoReformatter(), VideoReformatter()  # one a file: those of frames are slow

    def __enter__(self) -> Video:
        try:
            self._open()
            self.seconds = (self._stream.duration or 0) * self._tick or self._length()
            self._refuse()
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def rewind(self) -> None:
        """Go back to the start: by seeking where every format can, else by opening the file again."""
        if self._stream.start_time == 0 and self._seek(0):
            return
        self._files.close()
        self._open()

    @property
    def rate(self) -> float:
        """Frames a second by the header; 25 where it has none."""
        return float(self._stream.average_rate or 25)

    def at(self, times: Sequence[float]) -> Iterator[tuple[float, Any, Any]]:
        """The frames shown at the given times.

        Args:
            times: Seconds from the first frame, ascending.

        Yields:
            For each: when the frame begins, the frame, and the one after it (None after the last).

        Raises:
            FaultError: The pictures end long before a time, there are fewer than two, or there are too many.
        """
        frames = self._frames()
        shown, following = next(frames, None), next(frames, None)
        if shown is None:
            raise FaultError("no frame", "no packet of the video stream could be decoded")
        if following is None:
            raise FaultError("one frame", "a clip needs two or more")
        for time in times:
            if following is not None and self._jumps(following[0], time):
                frames = self._frames()
                shown, following = next(frames, shown), next(frames, None)
            while following is not None and following[0] <= time + 1e-6:
                shown, following = following, next(frames, None)
            until = shown[0] + float((shown[1].duration or 0) * (shown[1].time_base or 0))
            if following is None and time > _SLACK * until + 1 / self.rate + 0.25:
                raise FaultError("truncated", f"pictures end at {until:.2f} s of {self.seconds:.2f} s")
            yield shown[0], shown[1], following[1] if following is not None else None

    def key_frames(self, apart: float) -> Iterator[tuple[float, Any]]:
        """Frames that decode on their own, at least so many seconds apart; the others are not decoded."""
        due = -np.inf
        for packet in self.container.demux(self._stream):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.is_keyframe and stamp is not None and stamp * self._tick >= due:
                due = stamp * self._tick + apart
                yield from self._decode(packet)
        yield from self._decode(None)

    def upright(self, frame: Any, shorter: int) -> Image:
        """A frame as people see it: BGR, square pixels, turned as its metadata says; `shorter` is its shorter side."""
        aspect = float(self._stream.sample_aspect_ratio or 0) or 1.0
        scale = shorter / min(frame.width * aspect, frame.height)
        width, height = (max(1, round(n)) for n in (frame.width * aspect * scale, frame.height * scale))
        if width * height > self.settings.max_pixels:
            raise FaultError("frame too large", f"{frame.width} x {frame.height} with a shorter side of {shorter}")
        return np.rot90(self.scaled(frame, width, height), round(frame.rotation / 90))

    def scaled(self, frame: Any, width: int, height: int) -> Image:
        """A frame as it is stored, BGR [height, width, 3]."""
        if frame.format.name in _SCALED_FIRST:
            frame = self._scaler.reformat(frame, width, height, threads=1)
        return np.asarray(self._painter.reformat(frame, width, height, "bgr24", threads=1).to_ndarray(), np.uint8)

    def _open(self) -> None:
        self._clock = _Clock()
        self._counted = 0  # frames so far, for those without time stamps
        self.container = self._files.enter_context(opened(self._path, self.settings))
        pictures = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures:
            raise FaultError("no video stream", f"streams: {[s.type for s in self.container.streams]}")
        self._stream = pictures[0]
        if self._stream.codec_context is None:
            raise FaultError("no decoder", "FFmpeg knows the format of the pictures, but has no decoder for it")
        self._stream.thread_count = 1  # as many files are decoded at once as there are cores
        # With room, for FFmpeg counts what it allocates; `_refuse_size` is exact.
        self._stream.codec_context.options = {"max_pixels": str(min(2 * self.settings.max_pixels, 2**31 - 1))}
        self._tick = float(self._stream.time_base)
        self.start = (self._stream.start_time or 0) * self._tick

    def _refuse(self) -> None:
        width, height, limits = self._stream.width, self._stream.height, self.settings
        frames = self._stream.frames or self.rate * self.seconds
        if not width * height:
            raise FaultError("no frame size", "the header has none, or the decoder refuses it as too large")
        self._refuse_size(width, height)
        if not self.rate <= MAX_FPS:
            raise FaultError("implausible frame rate", f"{self.rate:g} frames a second")
        if self.seconds > limits.max_seconds:
            raise FaultError("too long", f"{self.seconds:.0f} s above {limits.max_seconds:g} s")
        if frames > limits.max_frames:
            raise FaultError("too many frames", f"{frames:.0f} above {limits.max_frames}")
        if frames > _SLACK * self.rate * self.seconds + 5:
            raise FaultError("truncated", f"{frames} frames by the header, room for {self.rate * self.seconds:.0f}")

    def _refuse_size(self, width: int, height: int) -> None:
        if width * height > self.settings.max_pixels:
            raise FaultError("frame too large", f"{width} x {height} above {self.settings.max_pixels} pixels")

    def _length(self) -> float:
        """Seconds of the pictures whose stream does not tell: by Matroska's tag, by the container, or by the packets.

        A container with sound is as long as the longer of the two.
        """
        tagged = _CLOCK.match(self._stream.metadata.get("DURATION", ""))
        hours, minutes, seconds = map(float, tagged.groups()) if tagged else (0.0, 0.0, 0.0)
        if end := 3600 * hours + 60 * minutes + seconds:
            return end - self.start
        whole = (self.container.duration or 0) / av.time_base
        return whole if whole and not self.container.streams.audio else self._length_of_packets(whole)

    def _length_of_packets(self, whole: float) -> float:
        """By the last seconds of the file, or all of it; `whole` seconds where the last packet lies long before.

        Then the file was cut off.
        """
        end, last, count = self._ends(max(0.0, whole - _TAIL_SECONDS))
        if not end:
            self.rewind()
            end, last, count = self._ends(None)
        self.rewind()
        return whole if 0 < _SLACK * last < whole else end or count / self.rate

    def _ends(self, start: float | None) -> tuple[float, float, int]:
        """When the pictures end and when anything does (0 where that is not known), and how many packets they have."""
        if start is not None and not self._seek(self._stamp(start)):
            return 0.0, 0.0, 0
        end, last, count = 0.0, 0.0, 0
        for packet in self.container.demux():
            own = packet.size > 0 and packet.stream_index == self._stream.index
            count += own
            if packet.pts is not None:
                length = float((packet.duration or 0) * packet.time_base) or own / self.rate
                until = float(packet.pts * packet.time_base) - self.start + length
                end, last = max(end, until) if own else end, max(last, until)
        return end, last, count

    def _jumps(self, now: float, time: float) -> bool:
        """Seek to the last key frame before `time` if that is sooner than decoding on from `now`; whether it was."""
        entries = self._stream.index_entries
        before = entries.search_timestamp(self._stamp(time)) if len(entries) else -1
        known = self._time(entries[before].timestamp) if before >= 0 else 0.0
        indexed = self._time(entries[len(entries) - 1].timestamp) if len(entries) else 0.0
        sooner = known > now + _SEEK_SECONDS or time - max(now, indexed) > _BLIND_SEEK_SECONDS
        return sooner and self._seek(self._stamp(time))

    def _seek(self, stamp: int) -> bool:
        """Seek, where the format can."""
        if self._seeks:
            self._clock = _Clock()
            try:
                self.container.seek(stamp, stream=self._stream)
            except av.FFmpegError:
                self._seeks = False
        return self._seeks

    def _stamp(self, time: float) -> int:
        return round((time + self.start) / self._tick)

    def _time(self, stamp: int) -> float:
        return stamp * self._tick - self.start

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """Every frame with its time, from where the container is."""
        for packet in self.container.demux(self._stream):
            yield from self._decode(packet)

    def _decode(self, packet: Any) -> Iterator[tuple[float, Any]]:
        """The frames that a packet completes (None: the rest); a damaged packet has none, like in any player."""
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.InvalidDataError:
            return
        for frame in frames:
            self.decoded += 1
            if self.decoded > self.settings.max_frames:
                raise FaultError("too many frames", f"above {self.settings.max_frames} decoded")
            self._refuse_size(frame.width, frame.height)  # it may change midway
            stamp = self._clock.stamp(frame)
            if stamp is None:  # then its time is known by counting, and nothing may be jumped over
                self._seeks = False
            yield self._counted / self.rate if stamp is None else self._time(stamp), frame
            self._counted += 1
