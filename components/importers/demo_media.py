"""The demo world's media: a second of moving shapes on a texture, with a tone, for each video.

What a clip shows follows what it is about: the shape and how it moves tell the topic (each shape and each motion alone
belongs to several), stripes and the beat of the tone tell the subtopic, and colours hint at both. All of it varies from
clip to clip. A band at the top has nothing to do with that: its light, the direction of its lines and whether movement
smears them change from scene to scene, and are what people like a frame for. The bytes depend on the arguments alone:
one thread, and containers without times.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from components.world import files

SIZE, FRAMES, RATE, SAMPLE_RATE = 48, 16, 16, 16_000
SCENES, BAND = 8, 16  # scenes of equal length; height of the band

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

_Y, _X = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) * 2 - 1
_EXACT = {"flags": "+bitexact"}
_MOTIONS = 3  # along a line, round and round, growing and shrinking


class Scenes(NamedTuple):
    """What the band of each scene looks like.

    Attributes:
        light: RGB, 0 to 1, [SCENES, 3].
        lines: Direction of its lines in half turns, [SCENES].
        moving: Whether they move, [SCENES].
    """

    light: Floats
    lines: Floats
    moving: npt.NDArray[np.bool_]


def write_clip(path: str, topic: int, subtopic: int, loud: bool, scenes: Scenes, rng: np.random.Generator) -> None:
    """Render a clip of one second, H.264 with or without AAC, to a file.

    Args:
        path: The .mp4 file.
        topic: From 0.
        subtopic: 0, 1 or 2, within the topic.
        loud: Whether it has sound.
        scenes: The band's.
        rng: Decides all that neither topic nor subtopic does.
    """
    with files.writing(path) as file, av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        streams = {_picture_stream(container): map(_picture_frame, _pictures(topic, subtopic, scenes, rng))}
        if loud:
            heard = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=_EXACT)
            streams[heard] = map(_sound_frame, [_tone(topic, subtopic, rng)])
        for stream, frames in streams.items():  # all streams are there before the first frame is written
            for frame in (*frames, None):
                container.mux(stream.encode(frame))


def hue(turns: Floats) -> Floats:
    """RGB of hues, [...] to [..., 3]."""
    return 0.5 + 0.45 * np.cos(2 * np.pi * (turns[..., np.newaxis] - np.arange(3) / 3))


def _pictures(topic: int, subtopic: int, scenes: Scenes, rng: np.random.Generator) -> Pixels:
    """[FRAMES, SIZE, SIZE, 3]."""
    kind, motion = topic // _MOTIONS, topic % _MOTIONS
    time = np.arange(FRAMES) / FRAMES * rng.uniform(0.8, 1.2) + rng.random()
    centres, radii = _path(motion, time, rng)
    ground = _stripes(subtopic, rng)[..., np.newaxis] * _colour(topic / 12 + subtopic / 9, rng)
    front = _colour(topic / 12 + 0.5, rng)
    frames = []
    for (x, y), radius, band in zip(centres, radii, _bands(scenes), strict=True):
        mask = _shape(kind, (_X - x) / radius, (_Y - y) / radius)[..., np.newaxis]
        picture = np.where(mask, front, ground)
        picture[:BAND] = band
        frames.append(picture + 0.02 * rng.standard_normal((SIZE, SIZE, 1)))
    return (np.clip(np.stack(frames), 0, 1) * 255).astype(np.uint8)


def _bands(scenes: Scenes) -> Floats:
    """The band in each picture, [FRAMES, BAND, SIZE, 3]: what moves is smeared, and elsewhere in the next picture."""
    each = FRAMES // SCENES
    angle = np.pi * np.repeat(scenes.lines, each)[:, np.newaxis, np.newaxis]
    moving = np.repeat(scenes.moving, each)[:, np.newaxis, np.newaxis]
    later = (np.arange(FRAMES) % each)[:, np.newaxis, np.newaxis]
    across = np.cos(angle) * _X[:BAND] + np.sin(angle) * _Y[:BAND]
    waves = 0.65 + np.where(moving, 0.12, 0.35) * np.sin(20 * across + 2 * moving * later)
    return np.asarray(waves[..., np.newaxis] * np.repeat(scenes.light, each, axis=0)[:, np.newaxis, np.newaxis])


def _path(motion: int, time: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Centres [FRAMES, 2] and radii [FRAMES] of the shape; the frame is -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    home = np.array([0, BAND / SIZE]) + rng.uniform(-0.2, 0.2, 2)  # about the middle of what the band leaves
    radius = rng.uniform(0.3, 0.45)
    turn = 2 * np.pi * time
    if motion == 0:
        along = np.array([np.cos(angle), np.sin(angle)])
        return home + 0.6 * np.sin(turn)[:, np.newaxis] * along, np.full(FRAMES, radius)
    if motion == 1:
        sense = rng.choice([-1, 1])
        return home + 0.45 * np.stack([np.cos(turn), sense * np.sin(turn)], axis=1), np.full(FRAMES, radius)
    return np.tile(home, (FRAMES, 1)), radius * (1.2 + 0.7 * np.sin(turn))


def _shape(kind: int, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
    """A disc, a square, a cross or a ring, of radius 1."""
    if kind == 0:
        return x**2 + y**2 < 1
    inside = (np.abs(x) < 0.9) & (np.abs(y) < 0.9)
    if kind == 1:
        return inside
    if kind == 2:
        return inside & ((np.abs(x) < 0.3) | (np.abs(y) < 0.3))
    return np.abs(np.hypot(x, y) - 0.8) < 0.25


def _stripes(subtopic: int, rng: np.random.Generator) -> Floats:
    """[SIZE, SIZE], 0.35 to 0.75: lying, standing or slanted."""
    angle = np.pi / 3 * subtopic + 0.12 * rng.standard_normal()
    wave = np.sin(rng.uniform(12, 16) * (np.cos(angle) * _X + np.sin(angle) * _Y) + rng.uniform(0, 6))
    return 0.55 + 0.2 * wave


def _colour(turns: float, rng: np.random.Generator) -> Floats:
    """RGB near a hue."""
    return hue(np.array(turns + 0.05 * rng.standard_normal()))


def _tone(topic: int, subtopic: int, rng: np.random.Generator) -> Floats:
    """[SAMPLE_RATE]: the pitch of the topic with an overtone, beating as the subtopic does, in noise."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pitch = 2 * np.pi * 200 * 2 ** (topic / 3) * np.exp(0.06 * rng.standard_normal())
    beat = 0.55 + 0.45 * np.sin(2 * np.pi * (2, 5, 11)[subtopic] * time + rng.uniform(0, 6))
    sound = beat * (np.sin(pitch * time) + 0.4 * np.sin(2 * pitch * time))
    return 0.2 * sound + 0.03 * rng.standard_normal(SAMPLE_RATE)


def _picture_stream(container: Any) -> Any:
    stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "ultrafast", **_EXACT})
    stream.width = stream.height = SIZE
    stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
    return stream


def _picture_frame(picture: Pixels) -> Any:
    return av.VideoFrame.from_ndarray(picture, format="rgb24")


def _sound_frame(sound: Floats) -> Any:
    frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
    return frame
