"""The video example: one tf.Example a video with its cover, title, tags and categories; what topics are learned from.

S height and width of a cover in pixels, L words of a title, V tags of a video; B batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from transform import ops
from transform.clips import PRIMARY_CATEGORY, SECONDARY_CATEGORY, TITLE, VIDEO_ID, title_words

COVER = "cover"  # JPEG, S x S, RGB; "" without a cover
TAGS = "tags"  # any number, none missing
DESCRIBED = (VIDEO_ID, TITLE, PRIMARY_CATEGORY, SECONDARY_CATEGORY)

TITLE_WORDS = 48  # L, words of a title that models see
TAGS_LEARNED = 16  # V, tags of a video that are labels; tag vectors are made of all
MAX_WORDS, MAX_TAGS, MIN_COUNT = 20_000, 12_000, 2  # of the vocabularies


def shape(cover_size: int) -> str:
    """What a model must be made for to read video examples; see `transform.clip_settings.SHAPE_FILE`."""
    return json.dumps({"cover_size": cover_size})


def parse_spec() -> dict[str, Any]:
    """How to parse a video example: scalars, "" where missing, and a ragged list of tags."""
    texts = {name: tf.io.FixedLenFeature([], tf.string, "") for name in (COVER, *DESCRIBED)}
    return {**texts, TAGS: tf.io.RaggedFeature(tf.string)}


def decode_covers(covers: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Covers as pixels, and which there are.

    Args:
        covers: string [B], JPEG; "" is no cover.
        size: S.

    Returns:
        uint8 [B, S, S, 3], black without a cover; and bool [B].

    Raises:
        tf.errors.InvalidArgumentError: A cover is no JPEG image, or not S x S.
    """
    present = tf.strings.length(covers) > 0
    black = tf.io.encode_jpeg(np.zeros((size, size, 3), np.uint8))
    pixels = tf.map_fn(
        lambda cover: tf.ensure_shape(tf.io.decode_jpeg(cover, channels=3), (size, size, 3)),
        tf.where(present, covers, black),
        fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
    )
    return pixels, present


def raw_schema() -> schema_pb2.Schema:
    """The schema of what Transform reads of a video example: all but the cover."""
    schema = schema_pb2.Schema()
    for name in DESCRIBED:
        feature = schema.feature.add(name=name, type=schema_pb2.BYTES)
        feature.presence.min_fraction = 1.0
        feature.shape.SetInParent()  # no dimensions: one value
    schema.feature.add(name=TAGS, type=schema_pb2.BYTES)  # no shape: any number of values
    return schema


def preprocessing_fn(inputs: Mapping[str, Any], custom_config: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Titles, tags and categories of videos as numbers; vocabularies are learned from the analysed split.

    Args:
        inputs: string [B] each, tags a sparse [B, any], as in `raw_schema`.
        custom_config: Not read; TFX hands it over.

    Returns:
        TITLE: int64 [B, L], 0 is padding, the last index stands for unknown words. TAGS: int64 [B, V], 0 is padding;
        unknown tags are left out. PRIMARY_CATEGORY and SECONDARY_CATEGORY: int64 [B], -1 where it is missing or not
        in the vocabulary.
    """
    words = title_words(inputs[TITLE])
    entries = tft.vocabulary(words, top_k=MAX_WORDS, frequency_threshold=MIN_COUNT, vocab_filename=TITLE)
    indices = tft.apply_vocabulary(words, entries, num_oov_buckets=1) + 1
    tags = ops.known_values(inputs[TAGS])
    tag_entries = tft.vocabulary(tags, top_k=MAX_TAGS, frequency_threshold=MIN_COUNT, vocab_filename=TAGS)
    numbers = tft.apply_vocabulary(tags, tag_entries, default_value=-1)
    known = tf.ragged.boolean_mask(numbers, numbers >= 0) + 1
    categories = {
        name: tft.compute_and_apply_vocabulary(inputs[name], default_value=-1, vocab_filename=name)
        for name in (PRIMARY_CATEGORY, SECONDARY_CATEGORY)
    }
    return {
        TITLE: ops.pad_first(indices, TITLE_WORDS),
        TAGS: ops.pad_first(known, TAGS_LEARNED),
        **categories,
    }


def sizes(transform_output: tft.TFTransformOutput) -> dict[str, int]:
    """Rows of the title embedding (with padding and the unknown word), and how many tags and categories there are."""
    numbers = {n: transform_output.vocabulary_size_by_name(n) for n in (TAGS, PRIMARY_CATEGORY, SECONDARY_CATEGORY)}
    return {TITLE: transform_output.vocabulary_size_by_name(TITLE) + 2, **numbers}
