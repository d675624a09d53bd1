"""The clip example: one tf.Example a video, its names declared once, and the ops that decode it.

T frames, S height and width in pixels, P steps of sound a frame, M mel bands (`ClipSettings`); `...` is any batch.
Plain TensorFlow, so that training, the exported signatures and the embedder decode alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_text.python.ops.unicode_script_tokenizer import gen_unicode_script_tokenizer

from transform import ops
from transform.clip_settings import ClipSettings

VIDEO_ID = "video_id"
FRAMES = "frames"  # [T] JPEG, S x S, RGB
FLOW = "flow"  # [T] JPEG: dx and dy to the next frame, +-MAX_FLOW pixels as 0 to 255, and 128; only with settings.flow
SOUND = "sound"  # little-endian float16 [T, P, M], decibels; "" without sound
TITLE = "title"
PRIMARY_CATEGORY = "primary_category"
SECONDARY_CATEGORY = "secondary_category"
HAS_AUDIO = "has_audio"  # "yes" or "no"
DURATION_BUCKET = "duration_bucket"  # one of DURATION_BUCKETS
FRAME_TIMES = "frame_times"  # float [T], seconds from the start of the file
DESCRIBED = (VIDEO_ID, TITLE, PRIMARY_CATEGORY, SECONDARY_CATEGORY, HAS_AUDIO, DURATION_BUCKET)
TEXTS = (SOUND, *DESCRIBED)

DURATION_BUCKETS = ("0-5s", "5-15s", "15-60s", "60s+")
TITLE_WORDS = 24  # L, words of a title that models see
MAX_WORDS, MIN_COUNT = 20_000, 2  # of the vocabulary of titles
MAX_FLOW = 20.0  # pixels; larger displacements are clipped (as for the I3D checkpoints)
SILENCE_DB, LOUD_DB = -100.0, 40.0  # about the range of `dbscale` for samples in -1 to 1


def parse_spec(settings: ClipSettings) -> dict[str, tf.io.FixedLenFeature]:
    """How to parse a clip example: [T] strings of frames and flow, [T] times, scalars otherwise ("" where missing)."""
    images = [FRAMES, FLOW] if settings.flow else [FRAMES]
    return {
        **{name: tf.io.FixedLenFeature([], tf.string, "") for name in TEXTS},
        **{name: tf.io.FixedLenFeature([settings.frames], tf.string) for name in images},
        FRAME_TIMES: tf.io.FixedLenFeature([settings.frames], tf.float32, [0.0] * settings.frames),
    }


def decode_frames(frames: tf.Tensor, settings: ClipSettings) -> tf.Tensor:
    """JPEG frames as pixels.

    Args:
        frames: string [..., T].
        settings: Gives S.

    Returns:
        uint8 [..., T, S, S, 3], RGB; `scale_frames` makes floats of it.

    Raises:
        tf.errors.InvalidArgumentError: A frame is no JPEG image, or not S x S.
    """
    shape = (settings.size, settings.size, 3)
    pixels = tf.map_fn(
        lambda frame: tf.ensure_shape(tf.io.decode_jpeg(frame, channels=3), shape),
        tf.reshape(frames, [-1]),
        fn_output_signature=tf.TensorSpec(shape, tf.uint8),
    )
    pixels = tf.reshape(pixels, tf.concat([tf.shape(frames), shape], axis=0))
    pixels.set_shape(frames.shape.concatenate(shape))
    return pixels


def scale_frames(pixels: tf.Tensor) -> tf.Tensor:
    """Pixels 0 to 255 as float32 -1 to 1, what the I3D checkpoints expect."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def decode_flow(flow: tf.Tensor, settings: ClipSettings) -> tf.Tensor:
    """JPEG flow, string [..., T], as float32 [..., T, S, S, 2]: dx, dy in units of MAX_FLOW pixels, -1 to 1."""
    return scale_frames(decode_frames(flow, settings)[..., :2])


def decode_sound(sound: tf.Tensor, settings: ClipSettings) -> tuple[tf.Tensor, tf.Tensor]:
    """Log-mel spectrograms and where they are.

    Args:
        sound: string [...]; "" is a clip without sound.
        settings: Gives T, P and M.

    Returns:
        float32 [..., T, P, M], decibels brought from SILENCE_DB..LOUD_DB to -1..1, zeros without sound; and the mask,
        bool [...], true where there is sound.

    Raises:
        tf.errors.InvalidArgumentError: A value is neither "" nor of T x P x M numbers.
    """
    shape = (settings.frames, settings.sound_steps, settings.mels)
    numbers = shape[0] * shape[1] * shape[2]
    present = tf.strings.length(sound) > 0
    filled = tf.where(present, sound, tf.constant(bytes(2 * numbers)))
    decibels = tf.reshape(tf.io.decode_raw(filled, tf.float16), tf.concat([tf.shape(sound), shape], axis=0))
    decibels.set_shape(sound.shape.concatenate(shape))
    middle, half = (LOUD_DB + SILENCE_DB) / 2, (LOUD_DB - SILENCE_DB) / 2
    scaled = (tf.cast(decibels, tf.float32) - middle) / half
    return tf.where(present[..., tf.newaxis, tf.newaxis, tf.newaxis], scaled, 0.0), present


def raw_schema() -> schema_pb2.Schema:
    """The schema of what Transform and Evaluator read of a clip example: all but pixels and sound."""
    schema = schema_pb2.Schema()
    for name in DESCRIBED:
        feature = schema.feature.add(name=name, type=schema_pb2.BYTES)
        feature.presence.min_fraction = 1.0
        feature.shape.SetInParent()  # no dimensions: one value
    return schema


def preprocessing_fn(inputs: Mapping[str, Any], custom_config: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Titles and categories of clips as numbers; vocabularies are learned from the analysed split.

    Args:
        inputs: string [B] each, as in `raw_schema`.
        custom_config: Not read; TFX hands it over.

    Returns:
        TITLE: int64 [B, L], 0 is padding, the last index stands for unknown words. PRIMARY_CATEGORY and
        SECONDARY_CATEGORY: int64 [B], -1 where it is missing or not in the vocabulary.
    """
    words = title_words(inputs[TITLE])
    entries = tft.vocabulary(words, top_k=MAX_WORDS, frequency_threshold=MIN_COUNT, vocab_filename=TITLE)
    indices = tft.apply_vocabulary(words, entries, num_oov_buckets=1) + 1
    categories = {
        name: tft.compute_and_apply_vocabulary(inputs[name], default_value=-1, vocab_filename=name)
        for name in (PRIMARY_CATEGORY, SECONDARY_CATEGORY)
    }
    return {TITLE: ops.pad_first(indices, TITLE_WORDS), **categories}


def title_words(titles: tf.Tensor) -> tf.RaggedTensor:
    """Case-folded words, by tensorflow-text.

    Args:
        titles: string [B]; bytes that are not UTF-8 count as separators.

    Returns:
        string [B, (words)]: runs of one script, and single characters of Chinese and Japanese.
    """
    valid = tf.strings.unicode_transcode(titles, "UTF-8", "UTF-8")
    folded = tf_text.case_fold_utf8(tf_text.normalize_utf8(valid, "NFKC"))
    characters = tf.strings.unicode_decode(ops.separate_words(folded), "UTF-8")
    # The op of UnicodeScriptTokenizer alone: `tokenize` works out places too, by a hundred times as many ops, and
    # Transform builds this graph ten times.
    words, ends, _, _, rows = gen_unicode_script_tokenizer.unicode_script_tokenize_with_offsets(
        characters.values, characters.row_splits, keep_whitespace=False
    )
    words = tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(words, ends, validate=False), "UTF-8")
    return tf.RaggedTensor.from_row_splits(words, rows, validate=False)


def sizes(transform_output: tft.TFTransformOutput) -> dict[str, int]:
    """Rows of the title embedding (padding and the unknown word included), and how many categories there are."""
    numbers = {name: transform_output.vocabulary_size_by_name(name) for name in (PRIMARY_CATEGORY, SECONDARY_CATEGORY)}
    return {TITLE: transform_output.vocabulary_size_by_name(TITLE) + 2, **numbers}
