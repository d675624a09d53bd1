"""From a picture to what it looks like, a vector.

What the classifier says of frames would not do: it is trained to forget all that does not tell the class, and looks are
just that. H height, W width.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from components.frame_embedder.settings import FrameSettings
from components.world import files
from components.world.pictures import Image
from transform.contract import ContractError

HUES, DIRECTIONS, PARTS = 12, 6, 2
_SIDE = 64  # pictures are brought to so many pixels a side
_VGG_SIDE = 224
_VGG_MEANS = (103.939, 116.779, 123.68)  # BGR, of the pictures that VGG was trained on

Encoder = Callable[[Sequence[Image]], np.ndarray]


def encoder(settings: FrameSettings) -> Encoder | None:
    """From BGR pictures [H, W, 3] to float32 [pictures, C]; None where the videos come with vectors."""
    if settings.encoder == "given":
        return None
    return _vgg19(str(settings.weights)) if settings.encoder == "vgg19" else colours


def colours(pictures: Sequence[Image]) -> np.ndarray:
    """Looks of pictures by plain statistics.

    Of each quarter of a picture: how much of each of 12 hues there is (weighed by how colourful and how bright the
    pixel is), mean and deviation of saturation and brightness, and how much of its edges runs in each of 6 directions.

    Args:
        pictures: BGR [H, W, 3] each.

    Returns:
        Float32 [pictures, 4 * (12 + 4 + 6)].
    """
    return np.stack([_colours(picture) for picture in pictures]).astype(np.float32)


def _colours(picture: Image) -> np.ndarray:
    small = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    hue, saturation, value = np.moveaxis(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2HSV), 2, 0)
    across, down = (cv2.Sobel(value, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    direction = np.mod(np.arctan2(down, across), np.pi) / np.pi
    parts: list[np.ndarray | list[float]] = []
    step = _SIDE // PARTS
    for top in range(0, _SIDE, step):
        for left in range(0, _SIDE, step):
            part = (slice(top, top + step), slice(left, left + step))
            hues = _histogram(hue[part] / 360, (saturation * value)[part], HUES)
            edges = _histogram(direction[part], np.hypot(across, down)[part], DIRECTIONS)
            light = [saturation[part].mean(), saturation[part].std(), value[part].mean(), value[part].std()]
            parts += [hues, light, edges]
    return np.concatenate(parts)


def _histogram(turns: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Weight a pixel in each of some equal parts of a circle, shared between the two nearest: [bins]."""
    place = turns.ravel() * bins - 0.5
    below = np.floor(place).astype(int)
    share = (place - below) * weights.ravel()
    filled = np.bincount(below % bins, weights.ravel() - share, bins) + np.bincount((below + 1) % bins, share, bins)
    return filled / turns.size


def _vgg19(weights: str) -> Encoder:
    """The last hidden layer of VGG-19 (Simonyan and Zisserman 2015): 4,096 values."""
    from tf_keras import Model
    from tf_keras.applications import VGG19

    network = VGG19(weights=None)
    _load_weights(network, weights)
    features = Model(network.input, network.get_layer("fc2").output)

    def encode(pictures: Sequence[Image]) -> np.ndarray:
        scaled = [cv2.resize(picture, (_VGG_SIDE, _VGG_SIDE), interpolation=cv2.INTER_AREA) for picture in pictures]
        return np.asarray(features(np.stack(scaled).astype(np.float32) - np.array(_VGG_MEANS, np.float32)), np.float32)

    return encode


def _load_weights(network: Any, path: str) -> None:
    if not files.is_file(path):
        raise ContractError(f"frames: expected the weights of VGG19, got no file {path}: mend `weights`")
    with tempfile.NamedTemporaryFile(suffix=".h5") as local, files.reading(path) as file:
        shutil.copyfileobj(file, local)
        local.flush()
        try:
            network.load_weights(local.name)
        except (OSError, ValueError) as error:
            raise ContractError(
                f"{path}: expected the weights of VGG19 with its top layers, got others: {error}"
            ) from None
