"""Candidates for the cover: the first picture of each new shot, and evenly spread ones where there are few shots."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from components.clip_example_gen.video import Video
from components.world.pictures import Image

NEW_SHOT = 0.35  # share of the pixels that change their colour bin between two shots
_LOOKS_PER_CANDIDATE = 32
_THUMBNAIL, _BINS = 64, 4


def candidate_times(video: Video, count: int) -> list[float]:
    """When the candidates of a video are shown.

    Shots are told apart by the colours of the frames that the encoder made independent: it puts them where pictures
    change, and all others need not be decoded.

    Args:
        video: The video.
        count: K, how many.

    Returns:
        K different times in seconds, ascending: the boundaries with the largest differences, and moments spread over
        the longest shots.
    """
    if count == 0:
        return []
    boundaries = []
    before = None
    for time, frame in video.key_frames(apart=video.seconds / (_LOOKS_PER_CANDIDATE * count)):
        colours = _colours(video.scaled(frame, _THUMBNAIL, _THUMBNAIL))
        change = 0.0 if before is None else float(np.abs(colours - before).sum() / 2)
        boundaries += [(change, time)] if change > NEW_SHOT else []
        before = colours
    video.rewind()
    chosen = sorted(time for _, time in sorted(boundaries, reverse=True)[:count])
    return sorted([*chosen, *_spread([0.0, *chosen, video.seconds], count - len(chosen))])


def _spread(bounds: list[float], count: int) -> list[float]:
    """Moments in the longest of the intervals between the bounds: the middles of the equal parts that one is cut in."""
    parts = [0] * (len(bounds) - 1)
    for _ in range(count):
        lengths = [(high - low) / (n + 1) for (low, high), n in zip(pairwise(bounds), parts, strict=True)]
        parts[lengths.index(max(lengths))] += 1
    cut = zip(pairwise(bounds), parts, strict=True)
    return [low + (part + 0.5) * (high - low) / n for (low, high), n in cut for part in range(n)]


def _colours(image: Image) -> np.ndarray:
    """Share of the pixels in each of 4 x 4 x 4 colour bins, [64]."""
    counts = cv2.calcHist([image], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    return counts.ravel() / (_THUMBNAIL * _THUMBNAIL)
