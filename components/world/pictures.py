"""Pictures of a world: covers and frames."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from components.world import files

Image = npt.NDArray[np.uint8]


def read_picture(path: str) -> Image | None:
    """A picture as BGR [height, width, 3]; None where there is no file, or it holds no picture."""
    if not files.is_file(path):
        return None
    with files.reading(path) as file:
        content = np.frombuffer(file.read(), np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None  # which raises on nothing
    return None if picture is None else np.asarray(picture, np.uint8)
