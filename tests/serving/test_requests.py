"""Rows to tf.Examples."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from serving.requests import to_example, to_examples, to_feed_example
from transform.contract import ContractError, Kind, load, parse

CONTRACT = parse(
    """
name: small
vocabularies: {user: {}, video: {}, tag: {}, word: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: seen, kind: history, role: user, vocabulary: video, max_length: 3, source: derived.user_history}
  - {name: tags, kind: ids, role: video, vocabulary: tag, max_length: 2, source: videos.tags}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 4, source: videos.title}
  - {name: seconds, kind: number, role: video, minimum: 0, maximum: 1000, source: videos.seconds}
  - {name: price, kind: number, role: video, source: videos.price}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look}
  - {name: clicked, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}
"""
)

STRINGS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
IDS = STRINGS | st.integers(-(2**70), 2**70)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = {
    "user_id": IDS,
    "video_id": IDS,
    "seen": st.lists(IDS, max_size=5),
    "tags": st.lists(IDS, max_size=5),
    "title": STRINGS,
    "seconds": st.floats(0, 1000, width=32) | st.integers(0, 1000),
    "price": FLOATS,
    "look": st.lists(FLOATS, min_size=2, max_size=2),
}
ROWS = st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in VALUES.items()})


def decode(example: bytes) -> dict:
    spec = {
        f.name: tf.io.VarLenFeature(tf.float32 if f.kind in (Kind.NUMBER, Kind.VECTOR) else tf.string)
        for f in CONTRACT.inputs
    }
    return {name: values.values.numpy().tolist() for name, values in tf.io.parse_single_example(example, spec).items()}


def expected(value) -> list:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [v if isinstance(v, float) else str(v).encode() for v in values]


@given(ROWS)
def test_every_valid_row_decodes_to_its_own_values(row):
    numbers = {name: float(row[name]) for name in ("seconds", "price") if row.get(name) is not None}
    decoded = decode(to_example(row, CONTRACT))
    assert decoded == {name: expected((row | numbers).get(name)) for name in VALUES}


def test_missing_features_are_left_out_of_the_example():
    example = tf.train.Example.FromString(to_example({"user_id": "u", "tags": None, "title": None}, CONTRACT))
    assert set(example.features.feature) == {"user_id"}


def test_an_empty_list_is_an_empty_feature_and_an_empty_row_an_empty_example():
    assert decode(to_example({"tags": []}, CONTRACT))["tags"] == []
    assert to_example({}, CONTRACT) == b""


def test_histories_are_sent_whole_because_the_graph_cuts_them():
    assert decode(to_example({"seen": list("abcde")}, CONTRACT))["seen"] == [b"a", b"b", b"c", b"d", b"e"]


def test_ints_tuples_arrays_and_numpy_scalars_are_taken():
    row = {"user_id": np.int64(7), "seen": (1, 2), "look": np.array([0.5, 1.5], np.float32), "price": np.float32(0.25)}
    decoded = decode(to_example(row, CONTRACT))
    assert (decoded["user_id"], decoded["seen"]) == ([b"7"], [b"1", b"2"])
    assert (decoded["look"], decoded["price"]) == ([0.5, 1.5], [0.25])


def test_the_same_row_in_another_order_is_the_same_example():
    row = {"user_id": "u", "video_id": "v", "tags": ["a"], "price": 1.0}
    assert to_example(row, CONTRACT) == to_example(dict(reversed(row.items())), CONTRACT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_di": "u"}, "has no feature 'user_di' (did you mean 'user_id'?)"),
        ({"zzz": 1}, "has no feature 'zzz': expected one of user_id, video_id"),
        ({3: "u"}, "has no feature 3"),
        ({"clicked": 1.0}, "'clicked' has role label and is no input of a model: leave it out"),
        ({"user_id": 1.5}, "feature 'user_id': expected an id (a string, or an int), got float 1.5"),
        ({"user_id": True}, "feature 'user_id': expected an id (a string, or an int), got bool True"),
        ({"user_id": ["u"]}, "feature 'user_id': expected an id"),
        ({"user_id": b"\xff"}, "feature 'user_id': expected UTF-8"),
        ({"user_id": "\ud800"}, "feature 'user_id': expected UTF-8"),
        ({"title": 5}, "feature 'title': expected a text (one string), got int 5"),
        ({"title": ["a", "b"]}, "feature 'title': expected a text"),
        ({"tags": "a|b"}, "feature 'tags': expected a list of ids, got str 'a|b'"),
        ({"tags": {"a"}}, "feature 'tags': expected a list of ids, got set"),
        ({"tags": ["a", None]}, "feature 'tags': entry 1: expected an id"),
        ({"seen": [["a"]]}, "feature 'seen': entry 0: expected an id"),
        ({"price": "3"}, "feature 'price': expected a number, got str '3'"),
        ({"price": True}, "feature 'price': expected a number, got bool True"),
        ({"price": math.nan}, "feature 'price': expected a finite 32-bit float, got float nan"),
        ({"price": -math.inf}, "feature 'price': expected a finite 32-bit float"),
        ({"price": 1e39}, "feature 'price': expected a finite 32-bit float, got float 1e+39"),
        ({"price": 10**400}, "feature 'price': expected a finite 32-bit float"),
        ({"seconds": -1}, "feature 'seconds': expected at least 0, got -1"),
        ({"seconds": 1001}, "feature 'seconds': expected at most 1000, got 1001"),
        ({"look": [1.0]}, "feature 'look': expected 2 numbers, got 1"),
        ({"look": [1.0, math.nan]}, "feature 'look': entry 1: expected a finite 32-bit float"),
        ({"look": 3.0}, "feature 'look': expected a list of numbers, got float 3.0"),
        ({"look": np.zeros((1, 2))}, "feature 'look': expected a list of numbers"),
        (["user_id"], "expected a mapping of feature names to values, got list"),
    ],
)
def test_what_does_not_fit_is_refused_with_feature_and_reason(row, message):
    with pytest.raises(ContractError) as error:
        to_example(row, CONTRACT)
    assert message in str(error.value)


@pytest.mark.parametrize("bound", [0.1, 0.7])  # the nearest float32 lies above 0.1, and below 0.7
def test_a_bound_rounded_to_float32_is_in_range_and_the_next_float32_is_not(bound):
    (price,) = (f for f in CONTRACT.features if f.name == "price")
    exact = price.model_copy(update={"minimum": bound, "maximum": bound})
    contract = CONTRACT.model_copy(update={"features": (exact,)})
    rounded = np.float32(bound)
    for value in (bound, rounded, float(rounded)):
        assert decode(to_example({"price": value}, contract))["price"] == [rounded]
    for beyond in (np.nextafter(rounded, np.float32(1)), np.nextafter(rounded, np.float32(0))):
        with pytest.raises(ContractError, match="expected at"):
            to_example({"price": beyond}, contract)


def test_the_error_of_a_batch_names_the_row():
    with pytest.raises(ContractError, match=r"^row 2, feature 'price': expected a number"):
        to_examples([{}, {"price": 1}, {"price": []}], CONTRACT)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ContractError) as error:
        to_example({"price": "x" * 10_000}, CONTRACT)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["microvideo", "movielens"])
def test_rows_of_the_built_in_contracts_encode(name):
    contract = load(name)
    values = {Kind.ID: "1", Kind.IDS: ["1"], Kind.HISTORY: ["1"], Kind.TEXT: "a b", Kind.NUMBER: 0.5}
    row = {f.name: [0.5] * f.dimension if f.dimension else values[f.kind] for f in contract.inputs}
    example = tf.train.Example.FromString(to_example(row, contract))
    assert set(example.features.feature) == {f.name for f in contract.inputs}


def test_a_request_for_a_feed_holds_what_it_was_given_and_leaves_the_rest_out():
    example = to_feed_example(
        {"user_id": "ann", "seen": ["v1", "v2"]},
        CONTRACT,
        length=5,
        exclude=["v3"],
        categories={"pets": (3.0, 0.8), "": (1.0, 0.5)},
        profile=[0.5, -0.5],
    )
    values = {
        name: [*feature.bytes_list.value, *feature.float_list.value, *feature.int64_list.value]
        for name, feature in tf.train.Example.FromString(example).features.feature.items()
    }
    assert "feed/now" not in values  # an empty number would be refused, a missing one is not
    assert {name: value for name, value in values.items() if value} == {
        "user_id": [b"ann"],
        "seen": [b"v1", b"v2"],
        "feed/length": [5],
        "feed/exclude": [b"v3"],
        "feed/categories": [b"pets", b""],
        "feed/category_events": [3.0, 1.0],
        "feed/category_rates": pytest.approx([0.8, 0.5]),
        "feed/profile": [0.5, -0.5],
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": {"title": "x"}}, "request: 'title' is not known without knowing a video"),
        ({"features": {"user_idd": "x"}}, "did you mean 'user_id'"),
        ({"features": {}, "exclude": ["\ud800"]}, "request, exclude: entry 0: expected UTF-8"),
        ({"features": {}, "profile": [math.inf]}, "request, profile: expected a finite 32-bit float"),
        ({"features": {}, "exclude": "v1"}, "request, exclude: expected a list of ids, got str 'v1'"),
        ({"features": {}, "categories": {"pets": (1.0,)}}, r"request, categories: expected \(events, rate\) of each"),
        ({"features": {}, "length": 0}, "request, length: expected 1 or more, below 2\\*\\*63, got 0"),
        ({"features": {}, "now": 2**63}, "request, now: expected"),
    ],
)
def test_a_request_for_a_feed_that_does_not_fit_is_refused(given, message):
    with pytest.raises(ContractError, match=message):
        to_feed_example(given.pop("features"), CONTRACT, **given)
