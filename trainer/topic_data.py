"""Video examples into batches: covers decoded, titles and labels made numbers by Transform's graph.

B batch, S pixels, L words, V tags of a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from trainer.data import kept, records, shuffled
from transform import clips, videos
from transform.contract import ContractError

READ_BATCH = 1024
LABELS = (clips.PRIMARY_CATEGORY, clips.SECONDARY_CATEGORY, videos.TAGS)
HAS_COVER, TITLE_TEXT = "has_cover", "title_text"
# Nothing here needs AutoGraph, and it would convert all of tf_keras, 4 s a data set.
_plain = tf.autograph.experimental.do_not_convert

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class VideoSplit:
    """One split of video examples, those with any label.

    Attributes:
        files: Its TFRecord files.
        transform: From raw titles, tags and categories to numbers.
        cover_size: S.
        inputs: What the model reads, by name.
        labels: int64 [rows, 2 + V]: primary and secondary category (-1: unknown), tags from 1 (0: padding).
        known: [records], which records have a label.
    """

    files: tuple[str, ...]
    transform: tft.TFTransformOutput
    cover_size: int
    inputs: tuple[str, ...]
    labels: np.ndarray
    known: np.ndarray

    @property
    def rows(self) -> int:
        """How many videos an epoch has."""
        return len(self.labels)

    def epochs(
        self, first: int, last: int, batch_size: int, seed: int, shuffle_rows: int, skip: int = 0
    ) -> tf.data.Dataset:
        """Shuffled full batches of (inputs, labels, weight), as `trainer.data.Split.epochs` says."""
        all_rows, full = self._records(), self.rows // batch_size * batch_size
        orders = (shuffled(all_rows, shuffle_rows, seed + epoch).take(full) for epoch in range(first, last))
        return self._batches(reduce(tf.data.Dataset.concatenate, orders).skip(skip * batch_size), batch_size)

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """All videos once, in order, as batches of (inputs, labels, weight)."""
        return kept(self._batches(self._records(), batch_size), self.rows)

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels [rows, 2 + V] and weights [rows] of all videos, in order."""
        return self.labels, np.ones(self.rows, np.float32)

    def _records(self) -> tf.data.Dataset:
        both = tf.data.Dataset.zip((records(self.files), tf.data.Dataset.from_tensor_slices(self.known)))
        kept = both.filter(_plain(lambda record, known: known)).map(_plain(lambda record, known: record))
        return kept.apply(tf.data.experimental.assert_cardinality(self.rows))

    def _batches(self, of: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        layer = self.transform.transform_features_layer()
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

        @_plain
        def transformed(batch: tf.Tensor) -> tuple[Tensors, tf.Tensor, tf.Tensor]:
            raw = tf.io.parse_example(batch, videos.parse_spec())
            labels = pack(transform(layer, raw))
            return read_inputs(raw, layer, self.inputs, self.cover_size), labels, tf.ones([tf.shape(batch)[0]])

        return of.batch(batch_size).map(transformed, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).with_options(options)


def read(
    patterns: Sequence[str], transform_output: tft.TFTransformOutput, inputs: Sequence[str], cover_size: int
) -> VideoSplit:
    """The split of video examples in the files that match `patterns`.

    Args:
        patterns: Globs of TFRecord files, gzipped if they end in .gz.
        transform_output: What Transform wrote.
        inputs: What the model reads: of cover, has_cover, title and title_text.
        cover_size: S.

    Raises:
        ContractError: There is no video with a category or tag.
    """
    files = tuple(sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern)))
    layer = transform_output.transform_features_layer()
    found = [np.zeros((0, len(LABELS) - 1 + videos.TAGS_LEARNED), np.int64)]
    if files:
        spec = {name: kind for name, kind in videos.parse_spec().items() if name != videos.COVER}
        batches = records(files).batch(READ_BATCH)
        packed = batches.map(_plain(lambda batch: pack(transform(layer, tf.io.parse_example(batch, spec)))))
        found += list(packed.as_numpy_iterator())
    labels = np.concatenate(found)
    known = (labels[:, :2] >= 0).any(axis=1) | (labels[:, 2:] > 0).any(axis=1)
    if not known.any():
        raise ContractError(
            f"expected videos with a category or tags in {', '.join(patterns)}, got {len(labels)} videos without: "
            "fill primary_category, secondary_category or tags of the table videos, or give the split a larger share"
        )
    return VideoSplit(files, transform_output, cover_size, tuple(inputs), labels[known], known)


def transform(layer: tf.keras.layers.Layer, raw: Tensors) -> Tensors:
    """Title, tags and categories of parsed examples as numbers, by Transform's graph."""
    texts = {name: raw[name] for name in videos.DESCRIBED}
    return layer({**texts, videos.TAGS: raw[videos.TAGS].to_sparse()})


def pack(numbers: Tensors) -> tf.Tensor:
    """All labels of a batch in one tensor, int64 [B, 2 + V]."""
    primary, secondary, tags = (numbers[name] for name in LABELS)
    return tf.concat([tf.stack([primary, secondary], axis=1), tags], axis=1)


def read_inputs(raw: Tensors, layer: tf.keras.layers.Layer, names: Sequence[str], cover_size: int) -> Tensors:
    """What the model reads of parsed examples.

    Returns:
        Those of `names`: cover uint8 [B, S, S, 3], has_cover bool [B], title int64 [B, L], title_text string [B].
    """
    inputs = {TITLE_TEXT: raw[clips.TITLE]}
    if videos.COVER in names:
        inputs[videos.COVER], inputs[HAS_COVER] = videos.decode_covers(raw[videos.COVER], cover_size)
    if clips.TITLE in names:
        inputs[clips.TITLE] = transform(layer, raw)[clips.TITLE]
    return {name: inputs[name] for name in names}
