"""Each op against hand-derived values and a NumPy or Python oracle."""

import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from transform import ops

NAN = float("nan")
INF = float("inf")
fast = settings(max_examples=50)
floats = st.floats(-1e6, 1e6, width=32)


def sparse(rows: list[list[str]]) -> tf.SparseTensor:
    """Rows of strings as VarLen features are parsed."""
    width = max([len(row) for row in rows], default=0)
    places = [(b, n) for b, row in enumerate(rows) for n in range(len(row))]
    values = [value for row in rows for value in row]
    indices = np.array(places, np.int64).reshape(-1, 2)
    return tf.SparseTensor(indices, tf.constant(values, tf.string), [len(rows), width])


def words(text: str) -> list[str]:
    return [word.decode() for word in ops.split_words(tf.constant([text]))[0].numpy()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" -- !? ", []),
        ("The Cat's 2nd video", ["the", "cat", "s", "2nd", "video"]),
        ("ÉCOLE naïve Straße", ["école", "naïve", "straße"]),
        ("cafe\u0301 bar", ["cafe\u0301", "bar"]),  # a decomposed accent stays with its letter
        ("ПРИВЕТ, мир", ["привет", "мир"]),
        ("猫の動画2本", ["猫", "の", "動", "画", "2", "本"]),
        ("한국어 영상", ["한국어", "영상"]),  # Korean has blanks between words
        ("cute😀cat\n\tdog", ["cute", "cat", "dog"]),
    ],
)
def test_text_is_split_into_lower_cased_words(text: str, expected: list[str]):
    assert words(text) == expected


def test_bytes_that_are_not_utf8_separate_words():
    assert ops.split_words(tf.constant([b"ab\xffcd"]))[0].numpy().tolist() == [b"ab", b"cd"]


def _words_oracle(text: str) -> list[str]:
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
    return kept.split()


@fast
@given(text=st.text(alphabet=st.sampled_from("aZé9 ñÇж_-.!|/\t\u0301"), max_size=30))
def test_words_are_runs_of_letters_marks_and_digits(text: str):
    assert words(text) == _words_oracle(text)


@fast
@given(rows=st.lists(st.lists(st.sampled_from(["", "a", "b", "ü"]), max_size=5), min_size=1, max_size=4))
def test_known_values_drop_empty_strings_and_keep_the_order(rows: list[list[str]]):
    expected = [[value.encode() for value in row if value] for row in rows]
    assert ops.known_values(sparse(rows)).to_list() == expected


@fast
@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=4),
    length=st.integers(1, 5),
)
def test_padding_keeps_the_first_or_the_last_entries(rows: list[list[int]], length: int):
    ragged = tf.ragged.constant(rows, dtype=tf.int64, ragged_rank=1)
    first = [row[:length] + [0] * (length - len(row)) for row in rows]
    last = [row[-length:] + [0] * (length - len(row)) for row in rows]
    np.testing.assert_array_equal(ops.pad_first(ragged, length), first)
    np.testing.assert_array_equal(ops.pad_history(ragged, length), last)


def test_padded_shape_is_known_to_the_graph():
    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.int64)])
    def padded(rows: tf.RaggedTensor) -> tf.Tensor:
        assert ops.pad_first(rows, 3).shape.as_list() == [None, 3]
        assert ops.pad_history(rows, 3).shape.as_list() == [None, 3]
        return ops.pad_history(rows, 3)

    assert padded(tf.ragged.constant([[1, 2, 3, 4], []], dtype=tf.int64)).numpy().tolist() == [[2, 3, 4], [0, 0, 0]]


def test_nan_and_infinities_count_as_missing():
    assert ops.is_known(tf.constant([0.0, NAN, INF, -INF, -3.0])).numpy().tolist() == [True, False, False, False, True]


def test_log_takes_negative_numbers_as_zero_and_keeps_missing_missing():
    # log(1 + 0) = 0; log(1 + 1) = 0.693147; log(1 + 1e6) = 13.815511
    result = ops.log1p(tf.constant([-5.0, -0.0, 1.0, 1e6, NAN]))
    np.testing.assert_allclose(result, [0.0, 0.0, 0.693147, 13.815511, NAN], rtol=1e-6)


@fast
@given(values=st.lists(floats, min_size=1, max_size=20))
def test_zscore_is_numpys_or_zero_for_a_constant_column(values: list[float]):
    numbers = np.array(values, np.float32)
    mean, variance = np.float32(numbers.astype(np.float64).mean()), np.float32(numbers.astype(np.float64).var())
    result = ops.zscore(tf.constant(numbers), tf.constant(mean), tf.constant(variance)).numpy()
    deviation = np.sqrt(variance)
    if deviation <= 1e-6 * abs(mean):
        np.testing.assert_array_equal(result, 0.0)
    else:
        np.testing.assert_allclose(result, (numbers - mean) / deviation, rtol=1e-5)


def test_zscore_of_a_constant_column_ignores_rounding_noise():
    # 0.1 is no float: its variance comes out as about 1e-18 instead of 0, and 1e-8 / sqrt(1e-18) would be 10.
    result = ops.zscore(tf.constant([0.1, 0.5]), tf.constant(0.1), tf.constant(1e-18))
    assert result.numpy().tolist() == [0.0, 0.0]


@fast
@given(values=st.lists(floats, min_size=1, max_size=20), serving=floats)
def test_minmax_is_numpys_unclipped_or_zero_for_a_constant_column(values: list[float], serving: float):
    smallest, largest = np.float32(min(values)), np.float32(max(values))
    numbers = np.array([*values, serving], np.float32)
    result = ops.minmax(tf.constant(numbers), tf.constant(smallest), tf.constant(largest)).numpy()
    width = largest - smallest
    if width < np.finfo(np.float32).tiny:  # a denormal width is flushed to 0 by the CPU kernels
        assert np.isfinite(result).all()
    else:
        with np.errstate(over="ignore"):  # 4 in a column 1e-38 wide is beyond float32 for both
            expected = (numbers - smallest) / width
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("nothing", [tf.float32.max, INF])
def test_minmax_of_a_column_without_any_value_is_zero(nothing: float):
    # The smallest of no values is the largest float there is, and the other way round.
    result = ops.minmax(tf.constant([0.0, 7.0]), tf.constant(nothing), tf.constant(-nothing))
    assert result.numpy().tolist() == [0.0, 0.0]


def test_vectors_get_length_one_and_missing_ones_stay_zeros():
    # (3, 4) has length 5; the scales 1e30 and 1e-30 have squares beyond a float's range.
    vectors = tf.constant([[3.0, 4.0], [0.0, 0.0], [3e30, -4e30], [3e-30, 4e-30], [NAN, 1.0], [INF, 1.0]])
    expected = [[0.6, 0.8], [0, 0], [0.6, -0.8], [0.6, 0.8], [0, 0], [0, 0]]
    np.testing.assert_allclose(ops.unit_vector(vectors), expected, rtol=1e-6)


@fast
@given(values=st.lists(floats.filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1, max_size=9))
def test_unit_vectors_match_numpy(values: list[float]):
    vector = np.array(values, np.float64)
    length = np.linalg.norm(vector)
    expected = vector / length if length else vector
    np.testing.assert_allclose(ops.unit_vector(tf.constant([values], tf.float32))[0], expected, rtol=1e-5, atol=1e-7)
