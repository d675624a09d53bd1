"""The derived schema: good data has no anomaly, each kind of bad data has one; requests may leave anything out."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_transform.tf_metadata import schema_utils
from tfx_bsl.coders import example_coder

from transform.contract import BUILT_IN, load, parse
from transform.schema import parse_spec, raw_schema

CONTRACT = parse("""\
name: tiny
vocabularies: {user_id: {}, video_id: {}, word: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: history, kind: history, role: user, vocabulary: video_id, max_length: 3, source: derived.user_history}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 2, source: videos.title}
  - {name: seconds, kind: number, role: video, scale: log, minimum: 0, maximum: 60, source: videos.seconds}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look}
  - {name: stars, kind: number, role: label, source: interactions.stars,
     minimum: 1, maximum: 5, positive_above: 3, negative_below: 3}
  - {name: importance, kind: number, role: weight, source: interactions.importance}
  - {name: novelty, kind: id, role: slice, source: derived.user_novelty}
""")

Row = dict[str, Any]
NAN = float("nan")
FULL: Row = {
    "user_id": ["u1"],
    "video_id": ["v1"],
    "history": ["v2", "v3"],
    "title": ["A title"],
    "seconds": [12.5],
    "look": [0.5, 1.0],
    "stars": [1.0],
    "importance": [2.0],
    "novelty": ["new"],
}
# Everything that may be missing is missing.
SPARSE: Row = {
    **FULL,
    "user_id": [""],
    "history": [],
    "title": [""],
    "seconds": [NAN],
    "look": [0.0, 0.0],
    "stars": [0.0],
}


def encode(row: Row) -> bytes:
    """A tf.Example; a feature of None is left out."""
    example = tf.train.Example()
    for name, values in row.items():
        if values is None:
            continue
        feature = example.features.feature[name]
        if any(isinstance(value, str) for value in values):
            feature.bytes_list.value.extend(value.encode() for value in values)
        elif any(isinstance(value, int) for value in values):
            feature.int64_list.value.extend(values)
        elif values:
            feature.float_list.value.extend(values)
    return example.SerializeToString()


def anomalies(rows: list[Row]) -> dict[str, str]:
    """What ExampleValidator would report: by feature, the short descriptions."""
    batch = example_coder.ExamplesToRecordBatchDecoder().DecodeBatch([encode(row) for row in rows])
    statistics = stats_impl.generate_statistics_in_memory(batch, tfdv.StatsOptions(num_top_values=2))
    found = tfdv.validate_statistics(statistics, raw_schema(CONTRACT))
    return {name: info.short_description for name, info in found.anomaly_info.items()}


def test_good_data_has_no_anomaly():
    assert anomalies([FULL, SPARSE, FULL]) == {}


def test_data_without_any_history_has_no_anomaly():
    assert anomalies([SPARSE, SPARSE]) == {}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("user_id", None),
        ("user_id", [7.0]),
        ("user_id", ["u1", "u2"]),
        ("title", None),
        ("history", [1, 2]),
        ("seconds", None),
        ("seconds", ["12"]),
        ("seconds", [12]),
        ("seconds", [-0.5]),
        ("seconds", [60.5]),
        ("seconds", [float("inf")]),
        ("look", None),
        ("look", [0.5]),
        ("look", [0.5, 1.0, 2.0]),
        ("look", [0.5, NAN]),
        ("stars", None),
        ("stars", [4.0]),
        ("stars", [-1.0]),
        ("stars", [NAN]),
        ("importance", [NAN]),
        ("novelty", None),
        ("unheard_of", ["x"]),
    ],
)
def test_bad_data_is_an_anomaly_of_its_feature(name: str, bad: Any):
    rows = [FULL, {**FULL, name: bad}]
    if bad is not None and not isinstance(bad[0], type(FULL.get(name, [None])[0])):
        rows = [{**FULL, name: bad}]  # a type is that of a whole column
    assert list(anomalies(rows)) == [name]


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_schema_covers_every_feature_of_the_built_in_contracts(name: str):
    contract = load(name)
    schema = raw_schema(contract)
    assert [entry.name for entry in schema.feature] == [feature.name for feature in contract.features]


def test_schema_and_parse_spec_agree_but_for_defaults():
    by_schema = schema_utils.schema_as_feature_spec(raw_schema(CONTRACT)).feature_spec
    for name, spec in parse_spec(CONTRACT).items():
        assert type(spec) is type(by_schema[name])
        assert spec.dtype == by_schema[name].dtype
        if isinstance(spec, tf.io.FixedLenFeature):
            assert list(spec.shape) == list(by_schema[name].shape)


def test_requests_hold_inputs_only():
    assert list(parse_spec(CONTRACT)) == ["user_id", "video_id", "history", "title", "seconds", "look"]


def test_a_request_without_features_parses_like_one_whose_features_are_missing():
    absent, explicit = (
        tf.io.parse_example([encode(row)], parse_spec(CONTRACT)) for row in ({}, {**SPARSE, "video_id": [""]})
    )
    for name in parse_spec(CONTRACT):
        dense = [
            tf.sparse.to_dense(p[name]) if isinstance(p[name], tf.SparseTensor) else p[name] for p in (absent, explicit)
        ]
        np.testing.assert_array_equal(*dense)  # NaN equals NaN here
