"""One file to one clip: which moments, and what is kept of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from components.clip_example_gen import sound
from components.clip_example_gen.key_frames import candidate_times
from components.clip_example_gen.video import Video
from components.world.pictures import Image
from transform.clip_settings import ClipSettings

MAX_FLOW = 20.0  # as transform.clips, which needs TensorFlow


@dataclass
class Clip:
    """What is kept of a file.

    Attributes:
        seconds: How long the file is.
        times: T, when each frame is shown, seconds from the first picture.
        frames: T JPEG images, S x S.
        flow: T JPEG images (`flow_image`), or none.
        windows: int16 [T, P, W] of `sound.windows`; None without sound.
        key_frames: (seconds, JPEG) of each candidate for the cover.
    """

    seconds: float
    times: list[float] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    flow: list[bytes] = field(default_factory=list)
    windows: sound.Samples | None = None
    key_frames: list[tuple[float, bytes]] = field(default_factory=list)


def read_clip(path: str, settings: ClipSettings, with_key_frames: bool = True) -> Clip:
    """Decode what a clip needs of a file.

    Args:
        path: Local or remote.
        settings: What, and the limits.
        with_key_frames: Whether to look for candidates for the cover.

    Raises:
        FaultError: The file gives no clip.
    """
    with Video(path, settings) as video:
        clip = Clip(video.seconds)
        bounds = segments(video.seconds, settings)
        candidates = candidate_times(video, settings.key_frames) if with_key_frames else []
        _pictures(video, clip, bounds, candidates)
        video.rewind()
        clip.windows = sound.windows(video.container, settings, video.start, bounds)
    return clip


def segments(seconds: float, settings: ClipSettings) -> list[float]:
    """The bounds of the T equal segments of a clip, T + 1 times; its frames are shown in their middles."""
    length = seconds
    if settings.sampling == "consecutive":
        length = min(seconds, settings.frames / settings.sampling_fps)
    return np.linspace((seconds - length) / 2, (seconds + length) / 2, settings.frames + 1).tolist()


def _pictures(video: Video, clip: Clip, bounds: list[float], candidates: list[float]) -> None:
    """Fill in frames, flow and candidates in one pass; a frame that serves several moments is encoded once."""
    middles = [(low + high) / 2 for low, high in pairwise(bounds)]
    moments = sorted([(time, False) for time in middles] + [(time, True) for time in candidates])
    for (at, frame, following), (_, is_candidate) in zip(video.at([time for time, _ in moments]), moments, strict=True):
        if is_candidate:
            if not clip.key_frames or clip.key_frames[-1][0] != at:
                shorter = min(video.settings.key_frame_size, frame.width, frame.height)
                clip.key_frames.append((at, _jpeg(video.upright(frame, shorter), video.settings)))
        elif clip.times and clip.times[-1] == at:
            clip.times.append(at)
            clip.frames.append(clip.frames[-1])
            clip.flow += clip.flow[-1:]
        else:
            _append(clip, video, at, frame, following)


def _append(clip: Clip, video: Video, at: float, frame: Any, following: Any) -> None:
    settings = video.settings
    image = _square(video, frame)
    clip.times.append(at)
    clip.frames.append(_jpeg(image, settings))
    if settings.flow:
        clip.flow.append(_jpeg(flow_image(image, image if following is None else _square(video, following)), settings))


def _square(video: Video, frame: Any) -> Image:
    """The middle of a frame, [S, S, 3]."""
    size = video.settings.size
    image = video.upright(frame, size)
    top, left = ((n - size) // 2 for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _jpeg(image: Image, settings: ClipSettings) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality])[1])


def flow_image(frame: Image, following: Image) -> Image:
    """Where the pixels of a frame go, for the two-stream networks: dense inverse search (Kroeger et al. 2016).

    Args:
        frame: BGR [S, S, 3].
        following: The next frame, likewise.

    Returns:
        BGR [S, S, 3]; as RGB: dx, dy, 128, the displacements -MAX_FLOW to MAX_FLOW pixels as 0 to 255.
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (frame, following)]
    moved = _flow_search().calc(grey[0], grey[1], None)
    scaled = np.rint((np.clip(moved / MAX_FLOW, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.dstack([np.full_like(scaled[..., 0], 128), scaled[..., 1], scaled[..., 0]])


@lru_cache(maxsize=1)
def _flow_search() -> Any:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
