"""Optical flow as an image, for the two-stream networks (dense inverse search, Kroeger et al. 2016, by OpenCV)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from components.clip_example_gen.video import Image

MAX_FLOW = 20.0  # as transform.clips, which needs TensorFlow


@lru_cache(maxsize=1)
def _search() -> Any:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


def flow_image(frame: Image, following: Image) -> Image:
    """Where the pixels of a frame go.

    Args:
        frame: BGR [S, S, 3].
        following: The next frame, likewise.

    Returns:
        BGR [S, S, 3]; as RGB: dx, dy, 128, the displacements -20 to 20 pixels as 0 to 255.
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (frame, following)]
    moved = _search().calc(grey[0], grey[1], None)
    scaled = np.rint((np.clip(moved / MAX_FLOW, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.dstack([np.full_like(scaled[..., 0], 128), scaled[..., 1], scaled[..., 0]])
