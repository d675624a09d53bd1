from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

SOUND_RATE = 16_000


class Media:
    """Media files made in the test, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plain(self, levels: Iterable[int], size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
        """One grey picture for each level, width x height."""
        return [np.full((size[1], size[0], 3), level, np.uint8) for level in levels]

    def sine(self, hertz: float, seconds: float) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(SOUND_RATE * seconds)) / SOUND_RATE)

    def write(
        self,
        name: str,
        pictures: Iterable[np.ndarray] = (),
        rate: int = 10,
        codec: str = "libx264",
        pixels: str = "yuv420p",
        tone: np.ndarray | None = None,
        turn: int = 0,
        repeat: int = 1,
    ) -> str:
        """Encode pictures and a tone; `repeat` writes the same packets so many times, one after the other."""
        pictures = list(pictures)
        with av.open(str(self.folder / name), "w") as container:
            stream = container.add_stream(codec, rate=rate) if pictures else None
            sound = None if tone is None else container.add_stream("aac", rate=SOUND_RATE, layout="mono")
            if stream is not None:
                stream.pix_fmt, stream.height, stream.width = pixels, *pictures[0].shape[:2]
                stream.options = {"preset": "ultrafast", "qp": "10", "g": "12"} if codec == "libx264" else {}
                if turn:
                    stream.set_display_rotation(turn)
                _write_pictures(container, stream, pictures, rate, repeat)
            if sound is not None:
                _write_tone(container, sound, tone)
        return str(self.folder / name)

    def cut(self, name: str, path: str, share: float) -> str:
        """The first part of a file."""
        content = Path(path).read_bytes()
        return self.raw(name, content[: int(len(content) * share)])

    def raw(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def _write_pictures(container, stream, pictures, rate, repeat):
    packets = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = index, Fraction(1, rate)
        packets += stream.encode(frame)
    packets += stream.encode()
    for _ in range(repeat):
        for packet in packets:
            container.mux(packet)
            packet.stream = stream
            length = round(len(pictures) / rate / packet.time_base)
            packet.pts, packet.dts = packet.pts + length, packet.dts + length


def _write_tone(container, stream, tone):
    frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[np.newaxis], "fltp", "mono")
    frame.rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    fifo = av.AudioFifo()
    fifo.write(frame)
    for piece in fifo.read_many(1024, partial=True):
        container.mux(stream.encode(piece))
    container.mux(stream.encode())


@pytest.fixture
def media(tmp_path: Path) -> Media:
    return Media(tmp_path)


@pytest.fixture(scope="session")
def shared_media(tmp_path_factory) -> Media:
    """For files that several tests only read."""
    return Media(tmp_path_factory.mktemp("media"))
