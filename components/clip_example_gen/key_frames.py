"""Candidates for the cover: the first picture of each new shot, and evenly spread ones where there are few shots."""

from __future__ import annotations

import cv2
import numpy as np

from components.clip_example_gen.video import Image, Video

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
        K times in seconds, ascending: the boundaries with the largest differences, then the middles of equal parts.
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
    chosen = [time for _, time in sorted(boundaries, reverse=True)[:count]]
    parts = count - len(chosen)
    return sorted([*chosen, *((part + 0.5) * video.seconds / parts for part in range(parts))])


def _colours(image: Image) -> np.ndarray:
    """Share of the pixels in each of 4 x 4 x 4 colour bins, [64]."""
    counts = cv2.calcHist([image], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    return counts.ravel() / (_THUMBNAIL * _THUMBNAIL)
