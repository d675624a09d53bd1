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
READABLE = "readable"  # 1 for each picture that could be


class Frames(NamedTuple):
    """Frames of videos; a frame's index is its place.

    Attributes:
        ids: [V].
        vectors: Float32 [V, F, C], zeros behind a video's last frame.
        mask: Float32 [V, F], 1.0 where there is a frame that could be read.
        paths: [V, F], "" behind the last.
        seconds: Float32 [V, F], NaN where not known.
    """

    ids: list[str]
    vectors: np.ndarray
    mask: np.ndarray
    paths: np.ndarray
    seconds: np.ndarray


def encode(
    video_id: str, paths: Sequence[str], seconds: Sequence[float], vectors: np.ndarray, readable: Sequence[bool]
) -> bytes:
    """The frame example of a video, serialised: F paths and times, vectors [F, C], and which could be read [F]."""
    features = {
        VIDEO_ID: tf.train.Feature(bytes_list=tf.train.BytesList(value=[video_id.encode()])),
        PATH: tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.encode() for path in paths])),
        SECONDS: tf.train.Feature(float_list=tf.train.FloatList(value=seconds)),
        VECTORS: tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(vectors))),
        READABLE: tf.train.Feature(int64_list=tf.train.Int64List(value=[int(there) for there in readable])),
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def decode(records: Iterable[bytes]) -> Frames:
    """The frames of all videos of the records.

    Raises:
        ContractError: There are none, a video occurs twice, or vectors are of different widths.
    """
    found: dict[str, _Row] = {}
    for record in records:
        values = tf.train.Example.FromString(record).features.feature
        video = values[VIDEO_ID].bytes_list.value[0].decode()
        paths = [path.decode() for path in values[PATH].bytes_list.value]
        vectors = np.array(values[VECTORS].float_list.value, np.float32).reshape(max(len(paths), 1), -1)
        if video in found:
            raise ContractError(f"frames: expected distinct videos, got {video!r} twice")
        seconds = np.array(values[SECONDS].float_list.value, np.float32)
        found[video] = _Row(paths, seconds, vectors, np.array(values[READABLE].int64_list.value, np.float32))
    widths = {row.vectors.shape[1] for row in found.values() if row.vectors.size}
    if len(widths) != 1:
        raise ContractError(
            f"frames: expected vectors of one width, got {sorted(widths) or 'no video with a frame'}: give the videos "
            "media, `frame_paths` or `cover_path`"
        )
    return _padded(found, widths.pop())


class _Row(NamedTuple):
    """The frames of one video."""

    paths: list[str]
    seconds: np.ndarray  # [F]
    vectors: np.ndarray  # [F, C]
    readable: np.ndarray  # [F]


def _padded(found: dict[str, _Row], width: int) -> Frames:
    most = max(len(row.paths) for row in found.values())
    vectors, mask = np.zeros((len(found), most, width), np.float32), np.zeros((len(found), most), np.float32)
    paths, seconds = np.full(mask.shape, "", object), np.full(mask.shape, np.nan, np.float32)
    for number, row in enumerate(found.values()):
        count = len(row.paths)
        paths[number, :count], seconds[number, :count], mask[number, :count] = row.paths, row.seconds, row.readable
        if row.vectors.size:
            vectors[number, :count] = row.vectors
    return Frames(list(found), vectors, mask, paths, seconds)
