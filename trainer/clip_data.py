"""Clip examples into batches: decoded, augmented where they train, in an order and with a chance that repeat exactly.

Clips stay on disk: an epoch shuffles records, and decodes only as many as the next steps need, on all cores. Which
crop, flip and shift a clip gets depends on seed, epoch and its place in the epoch alone, so that a training that was
killed goes on with the very pixels it would have seen.

B batch, T frames, S pixels, P x M a spectrogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from pydantic import Field

from trainer.data import kept, records, shuffled
from trainer.settings import Settings
from transform import clips
from transform.clip_settings import ClipSettings
from transform.contract import ContractError

READ_BATCH = 256
CATEGORIES = (clips.PRIMARY_CATEGORY, clips.SECONDARY_CATEGORY)

# Nothing here needs AutoGraph, and it would convert all of tf_keras, seconds a data set.
_plain = tf.autograph.experimental.do_not_convert

Tensors = dict[str, tf.Tensor]


class Augmentation(Settings):
    """What a clip may be turned into while it trains.

    Attributes:
        crop: A side loses up to this share; what is left is brought to full size again.
        flip: Whether left and right are exchanged half the time. Not where direction tells classes apart.
        shift: By up to so many frames a clip begins earlier or later; the frame at the edge is repeated.
        hide_title: Share of titles that are hidden, so that clips whose title says nothing are understood as well.
    """

    crop: float = Field(default=0.1, ge=0, lt=1)
    flip: bool = True
    shift: int = Field(default=2, ge=0)
    hide_title: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True)
class ClipSplit:
    """One split of clip examples, those whose primary category is known.

    Attributes:
        files: Its TFRecord files.
        settings: The shape of clips.
        transform: From raw titles and categories to numbers.
        labels: [rows], primary categories.
        known: [records], which records have one.
        inputs: What the model reads, by name.
        augmentation: None: clips are taken as they are.
    """

    files: tuple[str, ...]
    settings: ClipSettings
    transform: tft.TFTransformOutput
    labels: np.ndarray
    known: np.ndarray
    inputs: tuple[str, ...]
    augmentation: Augmentation | None = None

    @property
    def rows(self) -> int:
        """How many clips an epoch has."""
        return len(self.labels)

    def class_weights(self, classes: int) -> np.ndarray:
        """[classes]: what makes every class count alike; 1 on average over the clips."""
        counts = np.bincount(self.labels, minlength=classes)
        return (len(self.labels) / np.maximum(counts, 1) / np.count_nonzero(counts)).astype(np.float32)

    @_plain
    def epochs(
        self, first: int, last: int, batch_size: int, seed: int, shuffle_rows: int, skip: int = 0
    ) -> tf.data.Dataset:
        """Shuffled full batches of (inputs, labels, weight), as `trainer.data.Split.epochs` says."""
        orders = (self._epoch(epoch, batch_size, seed, shuffle_rows) for epoch in range(first, last))
        clips_of = reduce(tf.data.Dataset.concatenate, orders).skip(skip * batch_size)
        return self._batches(clips_of.map(self._augmented, tf.data.AUTOTUNE), batch_size)

    @_plain
    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """All clips once, in order and as they are, as batches of (inputs, labels, weight)."""
        return kept(self._batches(self._records().map(self._decoded, tf.data.AUTOTUNE), batch_size), self.rows)

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and weights of all clips, in order, each [rows]."""
        return self.labels, np.ones(self.rows, np.float32)

    def _records(self) -> tf.data.Dataset:
        known = tf.data.Dataset.from_tensor_slices(self.known)
        both = tf.data.Dataset.zip((records(self.files), known)).filter(lambda record, is_known: is_known)
        return both.map(lambda record, is_known: record).apply(tf.data.experimental.assert_cardinality(self.rows))

    def _epoch(self, epoch: int, batch_size: int, seed: int, shuffle_rows: int) -> tf.data.Dataset:
        """(record, seed of its augmentation) for the clips of full batches."""
        order = shuffled(self._records(), shuffle_rows, seed + epoch).take(self.rows // batch_size * batch_size)
        return order.enumerate().map(lambda place, record: (record, tf.stack([seed, epoch * self.rows + place])))

    def _decoded(self, record: tf.Tensor) -> Tensors:
        raw = tf.io.parse_single_example(record, clips.parse_spec(self.settings))
        texts = {name: raw[name] for name in (clips.TITLE, *CATEGORIES)}
        return {**decode(raw, self.settings), **texts}

    def _augmented(self, record: tf.Tensor, seed: tf.Tensor) -> Tensors:
        decoded = self._decoded(record)
        return decoded | augment(decoded, self.augmentation, seed) if self.augmentation else decoded

    def _batches(self, decoded: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        layer = self.transform.transform_features_layer()
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

        def transformed(batch: Tensors) -> tuple[Tensors, Tensors, tf.Tensor]:
            numbers = transform(layer, batch)
            labels = {name: numbers.pop(name) for name in CATEGORIES}
            inputs = {**batch, **numbers}
            return (
                {name: inputs[name] for name in self.inputs},
                labels,
                tf.ones_like(labels[clips.PRIMARY_CATEGORY], tf.float32),
            )

        return decoded.batch(batch_size).map(transformed).prefetch(tf.data.AUTOTUNE).with_options(options)


@_plain
def read(
    patterns: Sequence[str],
    settings: ClipSettings,
    transform_output: tft.TFTransformOutput,
    inputs: Sequence[str],
    augmentation: Augmentation | None = None,
) -> ClipSplit:
    """The split of clip examples in the files that match `patterns`.

    Args:
        patterns: Globs of TFRecord files, gzipped if they end in .gz.
        settings: The shape of clips.
        transform_output: What Transform wrote.
        inputs: What the model reads: of frames, flow, sound, has_audio and title.
        augmentation: For the split that is trained on.

    Raises:
        ContractError: There is no clip whose category is known.
    """
    files = tuple(sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern)))
    layer = transform_output.transform_features_layer()
    spec = {name: tf.io.FixedLenFeature([], tf.string, "") for name in (clips.TITLE, *CATEGORIES)}
    found = [np.zeros(0, np.int64)]
    if files:
        batches = records(files).batch(READ_BATCH)
        labels = batches.map(lambda batch: transform(layer, tf.io.parse_example(batch, spec))[clips.PRIMARY_CATEGORY])
        found += list(labels.as_numpy_iterator())
    categories = np.concatenate(found)
    known = categories >= 0
    if not known.any():
        raise ContractError(
            f"expected clips with a primary category in {', '.join(patterns)}, got {Counter(known.tolist())[False]} "
            "clips without: give the split a larger share, or fill primary_category of the table videos"
        )
    return ClipSplit(files, settings, transform_output, categories[known], known, tuple(inputs), augmentation)


def decode(raw: Tensors, settings: ClipSettings) -> Tensors:
    """A parsed clip example, or a batch of them [...], as the inputs of a classifier, the title apart.

    Returns:
        frames uint8 [..., T, S, S, 3], flow float32 [..., T, S, S, 2] where there is flow, sound float32 [..., T, P, M]
        and has_audio bool [...].
    """
    sound, has_audio = clips.decode_sound(raw[clips.SOUND], settings)
    decoded = {"frames": clips.decode_frames(raw[clips.FRAMES], settings), "sound": sound, "has_audio": has_audio}
    return decoded | {"flow": clips.decode_flow(raw[clips.FLOW], settings)} if settings.flow else decoded


def transform(layer: tf.keras.layers.Layer, batch: Tensors) -> Tensors:
    """Title and categories of a batch as numbers, by Transform's graph."""
    read = (clips.TITLE, *CATEGORIES)
    raw = {name: batch[name] if name in read else tf.zeros_like(batch[clips.TITLE]) for name in clips.DESCRIBED}
    numbers = layer(raw)
    return {name: numbers[name] for name in read}


def augment(clip: Tensors, augmentation: Augmentation, seed: tf.Tensor) -> Tensors:
    """One clip as it might have been filmed too: shifted in time, cropped, turned left to right, without a title.

    Args:
        clip: As `decode` gives one.
        augmentation: How far.
        seed: int64 [2]; the same seed does the same.

    Returns:
        The same tensors with other values, sound shifted with the frames.
    """
    frames = clip["frames"]
    number, size = frames.shape[0], frames.shape[1]
    seeds = tf.random.experimental.stateless_split(seed, 5)
    shift = tf.random.stateless_uniform([], seeds[0], -augmentation.shift, augmentation.shift + 1, tf.int32)
    order = tf.clip_by_value(tf.range(number) + shift, 0, number - 1)
    flip = tf.random.stateless_uniform([], seeds[1]) < (0.5 if augmentation.flip else 0.0)
    side = size - tf.cast(tf.random.stateless_uniform([], seeds[2]) * augmentation.crop * size, tf.int32)
    corner = tf.cast(tf.random.stateless_uniform([2], seeds[3]) * tf.cast(size - side + 1, tf.float32), tf.int32)

    def place(pixels: tf.Tensor) -> tf.Tensor:
        cut = tf.image.crop_to_bounding_box(tf.gather(pixels, order), corner[0], corner[1], side, side)
        resized = tf.ensure_shape(tf.image.resize(cut, [size, size]), pixels.shape)
        return tf.where(flip, resized[:, :, ::-1], resized)

    turned = {"frames": tf.cast(tf.round(place(frames)), tf.uint8), "sound": tf.gather(clip["sound"], order)}
    if clips.TITLE in clip:
        hidden = tf.random.stateless_uniform([], seeds[4]) < augmentation.hide_title
        turned[clips.TITLE] = tf.where(hidden, "", clip[clips.TITLE])
    if "flow" in clip:
        mirrored = tf.where(flip, [-1.0, 1.0], [1.0, 1.0])  # what went left goes right
        turned["flow"] = place(clip["flow"]) * mirrored * tf.cast(size, tf.float32) / tf.cast(side, tf.float32)
    return turned
