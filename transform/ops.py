"""Pure TensorFlow ops of preprocessing: no state, no Python at run time, nothing that a stock TF Serving lacks.

B batch, L max_length, D dimension, N number of values.
"""

from __future__ import annotations

import tensorflow as tf

# Scripts that are written without spaces between words: each of their characters becomes a word of its own.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
_NOT_WORD = r"[^\pL\pM\pN]+"  # marks (M) belong to the letter they follow, as in a decomposed é


def split_words(text: tf.Tensor) -> tf.RaggedTensor:
    """Lower-cased words: runs of letters and digits, and single characters of Chinese and Japanese.

    Args:
        text: string [B], UTF-8; bytes that are not count as separators.

    Returns:
        string [B, (words)]; no words for ''.
    """
    return tf.strings.split(separate_words(tf.strings.lower(text, encoding="utf-8")))


def separate_words(text: tf.Tensor) -> tf.Tensor:
    """The words of `split_words` with blanks between them and nothing else, string [B]."""
    return tf.strings.regex_replace(tf.strings.regex_replace(text, _UNSPACED, r" \1 "), _NOT_WORD, " ")


def known_values(values: tf.SparseTensor) -> tf.RaggedTensor:
    """The non-empty strings of each row, in order, without gaps.

    Args:
        values: string [B, N]; any subset of the positions.

    Returns:
        string [B, (known)].
    """
    known = tf.sparse.retain(values, tf.not_equal(values.values, ""))
    return tf.RaggedTensor.from_value_rowids(known.values, known.indices[:, 0], values.dense_shape[0], validate=False)


def pad_first(rows: tf.RaggedTensor, length: int) -> tf.Tensor:
    """The first `length` entries of each row, padded with 0 behind.

    Args:
        rows: int64 [B, (entries)].
        length: L, at least 1.

    Returns:
        int64 [B, L].
    """
    return _pad(rows[:, :length], length)


def pad_history(rows: tf.RaggedTensor, length: int) -> tf.Tensor:
    """The last `length` entries of each row in their order, padded with 0 behind the most recent.

    Args:
        rows: int64 [B, (entries)], most recent last.
        length: L, at least 1.

    Returns:
        int64 [B, L].
    """
    return _pad(rows[:, -length:], length)


def _pad(rows: tf.RaggedTensor, length: int) -> tf.Tensor:
    padded = rows.to_tensor(default_value=0, shape=[None, length])
    padded.set_shape([None, length])
    return padded


def is_known(numbers: tf.Tensor) -> tf.Tensor:
    """Which numbers are there: NaN means missing, and an infinity is no measurement either.

    Args:
        numbers: float32 [B].

    Returns:
        bool [B].
    """
    return tf.math.is_finite(numbers)


def log1p(numbers: tf.Tensor) -> tf.Tensor:
    """log(1 + x), with negative x taken as 0; NaN stays NaN.

    Args:
        numbers: float32 [B].

    Returns:
        float32 [B], at least 0.
    """
    return tf.math.log1p(tf.where(numbers < 0.0, 0.0, numbers))


def zscore(numbers: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """(x - mean) / standard deviation; 0 where the column was constant.

    Args:
        numbers: float32 [B], none missing.
        mean: float32 [] of the train split.
        variance: float32 [] of the train split.

    Returns:
        float32 [B].
    """
    deviation = tf.sqrt(variance)
    # The variance of a constant column is a rounding error of its mean, rarely exactly 0.
    constant = deviation <= 1e-6 * tf.abs(mean)
    return tf.math.divide_no_nan(numbers - mean, tf.where(constant, 0.0, deviation))


def minmax(numbers: tf.Tensor, smallest: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """(x - smallest) / (largest - smallest); 0 where the column was constant or had no value.

    Values outside the range of the train split are not clipped: they stay distinguishable and keep their order.

    Args:
        numbers: float32 [B], none missing.
        smallest: float32 [] of the train split.
        largest: float32 [] of the train split.

    Returns:
        float32 [B].
    """
    seen = largest > smallest
    return tf.math.divide_no_nan(tf.where(seen, numbers - smallest, 0.0), tf.where(seen, largest - smallest, 0.0))


def unit_vector(vectors: tf.Tensor) -> tf.Tensor:
    """Vectors of length 1; zeros, which mean missing, stay zeros, and so does a vector that is not finite.

    Args:
        vectors: float32 [B, D].

    Returns:
        float32 [B, D].
    """
    finite = tf.reduce_all(tf.math.is_finite(vectors), axis=1, keepdims=True)
    vectors = tf.where(finite, vectors, 0.0)
    # Scaled by the largest entry first: squares of very large or small entries would overflow or vanish.
    scaled = tf.math.divide_no_nan(vectors, tf.reduce_max(tf.abs(vectors), axis=1, keepdims=True))
    return tf.math.divide_no_nan(scaled, tf.norm(scaled, axis=1, keepdims=True))
