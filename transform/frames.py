"""The frame example: one tf.Example a video with the candidates for its cover and what each looks like.

V videos, F most frames of a video, C width of a frame's vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from transform.clips import VIDEO_ID
from transform.contract import ContractError

PATH = "path"  # of each picture, within the world
SECONDS = "at_seconds"  # of each; NaN where a picture came without a time
VECTORS = "vectors"  # of all, one behind the other; zeros where a picture could not be read


class Frames(NamedTuple):
    """Frames of videos; a frame's index is its place.

    Attributes:
        ids: [V].
        vectors: Float32 [V, F, C], zeros behind a video's last frame.
        mask: Float32 [V, F], 1.0 where there is a frame with a vector.
        paths: [V, F], "" behind the last.
        seconds: Float32 [V, F], NaN where not known.
    """

    ids: list[str]
    vectors: np.ndarray
    mask: np.ndarray
    paths: np.ndarray
    seconds: np.ndarray


def encode(video_id: str, paths: Sequence[str], seconds: Sequence[float], vectors: np.ndarray) -> bytes:
    """The frame example of a video, serialised: F paths and times, vectors [F, C]."""
    features = {
        VIDEO_ID: tf.train.Feature(bytes_list=tf.train.BytesList(value=[video_id.encode()])),
        PATH: tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.encode() for path in paths])),
        SECONDS: tf.train.Feature(float_list=tf.train.FloatList(value=seconds)),
        VECTORS: tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(vectors))),
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def decode(records: Iterable[bytes]) -> Frames:
    """The frames of all videos of the records.

    Raises:
        ContractError: There are none, a video occurs twice, or vectors are of different widths.
    """
    found: dict[str, tuple[list[str], np.ndarray, np.ndarray]] = {}
    for record in records:
        values = tf.train.Example.FromString(record).features.feature
        video = values[VIDEO_ID].bytes_list.value[0].decode()
        paths = [path.decode() for path in values[PATH].bytes_list.value]
        vectors = np.array(values[VECTORS].float_list.value, np.float32).reshape(max(len(paths), 1), -1)
        if video in found:
            raise ContractError(f"frames: expected distinct videos, got {video!r} twice")
        found[video] = paths, np.array(values[SECONDS].float_list.value, np.float32), vectors
    widths = {vectors.shape[1] for _, _, vectors in found.values() if vectors.size}
    if len(widths) != 1:
        raise ContractError(
            f"frames: expected vectors of one width, got {sorted(widths) or 'no video with a frame'}: give the videos "
            "media, `frame_paths` or `cover_path`"
        )
    return _padded(found, widths.pop())


def _padded(found: dict[str, tuple[list[str], np.ndarray, np.ndarray]], width: int) -> Frames:
    most = max(len(paths) for paths, _, _ in found.values())
    vectors = np.zeros((len(found), most, width), np.float32)
    names, seconds = np.full(vectors.shape[:2], "", object), np.full(vectors.shape[:2], np.nan, np.float32)
    for row, (paths, at, of_video) in enumerate(found.values()):
        count = len(paths)
        names[row, :count], seconds[row, :count] = paths, at
        if of_video.size:
            vectors[row, :count] = of_video
    return Frames(list(found), vectors, vectors.any(axis=2).astype(np.float32), names, seconds)
