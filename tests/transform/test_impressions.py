"""Preprocessing of a tiny world analysed once; every expected value is derived by hand in a comment."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam

from transform.contract import parse
from transform.impressions import (
    preprocessing_fn,
    read_vocabularies,
    vocabulary_entries,
    vocabulary_sizes,
    write_vocabularies,
)
from transform.schema import parse_spec, raw_schema

CONTRACT = parse("""\
name: tiny
vocabularies:
  user_id: {oov_buckets: 3}
  video_id: {}
  tag: {max_size: 2}
  word: {min_count: 2}
  nothing: {oov_buckets: 2}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: history, kind: history, role: user, vocabulary: video_id, max_length: 2, source: derived.user_history}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: tags, kind: ids, role: video, vocabulary: tag, max_length: 2, source: videos.tags}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 3, source: videos.title}
  - {name: never, kind: id, role: video, vocabulary: nothing, source: videos.never}
  - {name: plain, kind: number, role: video, source: videos.plain}
  - {name: rate, kind: number, role: video, scale: zscore, default: 0.5, source: videos.rate}
  - {name: age, kind: number, role: video, scale: zscore, source: videos.age}
  - {name: events, kind: number, role: video, scale: log, default: 0, source: videos.events}
  - {name: views, kind: number, role: video, scale: log, source: videos.views}
  - {name: share, kind: number, role: video, scale: minmax, source: videos.share}
  - {name: constant, kind: number, role: video, scale: zscore, source: videos.constant}
  - {name: flat, kind: number, role: video, scale: minmax, source: videos.flat}
  - {name: absent, kind: number, role: video, scale: zscore, source: videos.absent}
  - {name: void, kind: number, role: video, scale: minmax, source: videos.void}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look}
  - {name: liked, kind: number, role: label, source: interactions.liked, positive_above: 0.5, negative_below: 0.5}
  - {name: importance, kind: number, role: weight, source: interactions.importance}
  - {name: novelty, kind: id, role: slice, source: derived.user_novelty}
""")

Row = dict[str, Any]
NAN = float("nan")
E = float(np.e)
MISSING: Row = {
    **dict.fromkeys(("user_id", "video_id", "title", "never"), ""),
    "history": [],
    "tags": [],
    **dict.fromkeys(
        ("plain", "rate", "age", "events", "views", "share", "constant", "flat", "absent", "void"),
        NAN,
    ),
    "look": [0.0, 0.0],
    "liked": 0.0,
    "importance": 1.0,
    "novelty": "known",
}
TRAIN: list[Row] = [
    {
        **MISSING,
        "user_id": "ann",
        "history": ["v1", "v2", "v3"],
        "video_id": "v1",
        "tags": ["cat", "dog", "fun"],
        "title": "The cat, the dog",
        "plain": 2.0,
        "rate": 0.25,
        "age": 1.0,
        "events": 0.0,
        "views": 0.0,
        "share": -2.0,
        "constant": 0.1,
        "flat": 7.0,
        "look": [3.0, 4.0],
        "liked": 1.0,
        "importance": 2.5,
    },
    {
        **MISSING,
        "user_id": "ann",
        "history": ["v1"],
        "video_id": "v2",
        "tags": ["cat"],
        "title": "CAT café 猫猫",
        "plain": 4.0,
        "rate": 0.75,
        "age": 3.0,
        "events": E * E - 1,
        "views": E * E - 1,
        "share": 2.0,
        "constant": 0.1,
        "flat": 7.0,
        "look": [0.0, -2.0],
    },
    {**MISSING, "user_id": "bob", "video_id": "v1", "tags": ["dog"], "title": "café", "constant": 0.1},
    MISSING,
]
SERVED: Row = {  # nothing of this was seen in training
    **MISSING,
    "user_id": "zoe",
    "history": ["v1", "new", "v3"],
    "video_id": "new",
    "tags": ["fun", "cat"],
    "title": "dog cat",
    "never": "now",
    "age": 5.0,
    "views": -9.0,
    "share": 4.0,
    "constant": 9.0,
    "flat": 9.0,
    "absent": 5.0,
    "void": 5.0,
}


@dataclass(frozen=True)
class World:
    """What the one Beam run left behind."""

    train: list[Row]
    served: list[Row]
    output: tft.TFTransformOutput


def encode(row: Row, leave_out_missing: bool) -> bytes:
    """A request's tf.Example of the input features, with missing ones either explicit or left out."""
    example = tf.train.Example()
    for feature in CONTRACT.inputs:
        value, missing = row[feature.name], MISSING[feature.name]
        if leave_out_missing and (value == missing or value != value):  # NaN differs from itself
            continue
        entry = example.features.feature[feature.name]
        values = value if isinstance(value, list) else [value]
        if feature.kind in ("number", "vector"):
            entry.float_list.value.extend(values)
        else:
            entry.bytes_list.value.extend(text.encode() for text in values)
    return example.SerializeToString()


def serve(output: tft.TFTransformOutput, examples: list[bytes]) -> dict[str, np.ndarray]:
    """The features a model would see in TF Serving."""
    layer = output.transform_features_layer()
    outputs = layer(tf.io.parse_example(examples, parse_spec(CONTRACT)))
    return {name: value.numpy() for name, value in outputs.items()}


@contextmanager
def analysed(known: dict[str, list[bytes]]) -> Iterator[World]:
    """The train rows analysed with vocabularies that are known already."""
    metadata = tft.DatasetMetadata(raw_schema(CONTRACT))
    with tempfile.TemporaryDirectory() as folder, tft_beam.Context(temp_dir=folder + "/temporary"):
        write_vocabularies(known, f"{folder}/known")
        config = {"contract": CONTRACT.to_json(), "known_vocabularies": f"{folder}/known"}

        def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
            return preprocessing_fn(inputs, config)

        (train, _), transform_fn = (TRAIN, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocess)
        transform_fn | tft_beam.WriteTransformFn(folder)
        output = tft.TFTransformOutput(folder)
        served = {name: values[0] for name, values in serve(output, [encode(SERVED, True)]).items()}
        tf.io.gfile.rmtree(f"{folder}/known")  # the graph has its own
        yield World(_in_order(train), [served], output)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with analysed({}) as found:
        yield found


def _in_order(rows: list[Row]) -> list[Row]:
    """Beam returns the rows as they went in; a row's label, weight and video tell should it ever not."""
    assert [round(float(row["importance"]), 1) for row in rows] == [2.5, 1.0, 1.0, 1.0]
    return rows


def column(rows: list[Row], name: str) -> list[Any]:
    return np.array([row[name] for row in rows]).tolist()


# Vocabularies: by falling count, ties in reverse order.


def test_ids_are_indexed_by_frequency_from_one_and_missing_is_zero(world: World):
    # ann 2, bob 1
    assert column(world.train, "user_id") == [1, 1, 2, 0]


def test_history_and_candidate_share_one_vocabulary(world: World):
    # v1: twice as candidate, twice in histories = 4; v2: 1 + 1 = 2; v3: 1
    assert column(world.train, "video_id") == [1, 2, 1, 0]
    assert world.output.vocabulary_by_name("vocabulary_video_id") == [b"v1", b"v2", b"v3"]


def test_history_keeps_the_last_entries_padded_behind(world: World):
    # v1 v2 v3 -> v2 v3; the second user saw v1 only
    assert column(world.train, "history") == [[2, 3], [1, 0], [0, 0], [0, 0]]


def test_ids_keep_the_first_entries_and_a_full_vocabulary_sends_the_rest_to_its_bucket(world: World):
    # cat 2, dog 2 (reverse order: dog first), fun 1 does not fit in max_size 2 and would be bucket 3
    assert column(world.train, "tags") == [[2, 1], [2, 0], [1, 0], [0, 0]]
    assert column(world.served, "tags") == [[3, 2]]


def test_text_is_split_and_rare_words_share_a_bucket(world: World):
    # the cat the dog; cat café 猫 猫; café: four words twice, in reverse byte order 猫 1, the 2, cat 3, café 4 (cat is
    # after caf...); dog once is below min_count: bucket 5
    assert column(world.train, "title") == [[2, 3, 2], [3, 4, 1], [4, 0, 0], [0, 0, 0]]
    assert column(world.served, "title") == [[5, 3, 0]]


def test_unseen_ids_fall_into_the_buckets_behind_the_vocabulary(world: World):
    # users: V = 2 and three buckets: 3 to 5; videos: V = 3 and one bucket: 4; history: v1 new v3 -> new v3
    assert column(world.served, "user_id")[0] in (3, 4, 5)
    assert column(world.served, "video_id") == [4]
    assert column(world.served, "history") == [[4, 3]]


def test_a_vocabulary_without_entries_still_answers(world: World):
    # TFT writes one entry that never occurs, so the two buckets are 2 and 3.
    assert column(world.train, "never") == [0, 0, 0, 0]
    assert column(world.served, "never")[0] in (2, 3)


def test_vocabulary_sizes_leave_room_for_missing_and_buckets(world: World):
    # V + buckets + 1; `nothing` has the one entry that never occurs
    expected = {"user_id": 2 + 3 + 1, "video_id": 3 + 1 + 1, "tag": 2 + 1 + 1, "word": 4 + 1 + 1, "nothing": 1 + 2 + 1}
    assert vocabulary_sizes(CONTRACT, world.output) == expected


def test_known_entries_keep_their_rows_and_new_ones_come_behind():
    known = {
        "user_id": [b"zoe", b"ann"],
        "video_id": [b"v9", b"v1"],
        "tag": [b"fun", b"sun"],
        "nothing": [b"now", b"then"],
    }
    with analysed(known) as later:
        # users: zoe 1, ann 2, and bob, who is new, 3; buckets 4 to 6
        assert column(later.train, "user_id") == [2, 2, 3, 0]
        assert column(later.served, "user_id") == [1]
        # videos: v9 1, v1 2, then v2 (twice) and v3; one bucket, 5
        assert column(later.train, "video_id") == [2, 3, 2, 0]
        assert column(later.train, "history") == [[3, 4], [2, 0], [0, 0], [0, 0]]
        assert column(later.served, "history") == [[5, 4]]
        # tags: max_size is full of known ones, and TFT asks for room for one: dog, the later of cat and dog; cat has 4
        assert column(later.train, "tags") == [[4, 3], [4, 0], [3, 0], [0, 0]]
        assert column(later.served, "never") == [1]
        expected = [b"v9", b"v1", b"v2", b"v3"]
        assert vocabulary_entries("video_id", later.output) == expected
        sizes = {"user_id": 3 + 3 + 1, "video_id": 4 + 1 + 1, "tag": 3 + 1 + 1, "word": 4 + 1 + 1, "nothing": 3 + 2 + 1}
        assert vocabulary_sizes(CONTRACT, later.output) == sizes
        names = dict.fromkeys(sizes)
        with tempfile.TemporaryDirectory() as folder:
            write_vocabularies({name: vocabulary_entries(name, later.output) for name in names}, folder)
            assert read_vocabularies(folder)["video_id"] == expected


# Numbers: fitted on the train rows that have a value.


def test_an_unscaled_number_missing_is_the_train_mean(world: World):
    assert column(world.train, "plain") == [2.0, 4.0, 3.0, 3.0]


def test_zscore_fills_missing_with_the_default_before_scaling(world: World):
    # known 0.25 and 0.75: mean 0.5, deviation 0.25; the default 0.5 becomes 0
    assert column(world.train, "rate") == [-1.0, 1.0, 0.0, 0.0]


def test_zscore_ignores_missing_values_and_fills_them_with_the_mean(world: World):
    # known 1 and 3: mean 2, deviation 1; served 5 -> 3
    assert column(world.train, "age") == [-1.0, 1.0, 0.0, 0.0]
    assert column(world.served, "age") == [3.0]


def test_log_scale_is_the_zscore_of_log_one_plus_x(world: World):
    # log(1 + x) of the known: 0 and 2, mean 1, deviation 1; missing: default 0 -> log 1 = 0 -> -1, or the mean -> 0
    np.testing.assert_allclose(column(world.train, "events"), [-1.0, 1.0, -1.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(column(world.train, "views"), [-1.0, 1.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(column(world.served, "views"), [-1.0], atol=1e-6)  # -9 counts as 0


def test_minmax_is_not_clipped_outside_the_train_range(world: World):
    # known -2 and 2; missing is their mean 0 -> 0.5; served 4 -> 1.5
    assert column(world.train, "share") == [0.0, 1.0, 0.5, 0.5]
    assert column(world.served, "share") == [1.5]


@pytest.mark.parametrize("name", ["constant", "flat", "absent", "void"])
def test_a_constant_or_empty_column_is_zero_in_training_and_serving(world: World, name: str):
    assert column(world.train, name) == [0.0] * 4
    assert column(world.served, name) == [0.0]


def test_vectors_have_length_one_and_missing_ones_are_zeros(world: World):
    np.testing.assert_allclose(column(world.train, "look"), [[0.6, 0.8], [0, -1], [0, 0], [0, 0]], rtol=1e-6)


def test_label_and_weight_pass_unchanged_and_slices_are_left_out(world: World):
    assert column(world.train, "liked") == [1.0, 0.0, 0.0, 0.0]
    assert column(world.train, "importance") == [2.5, 1.0, 1.0, 1.0]
    assert "novelty" not in world.train[0]


def test_transformed_features_bear_the_contracts_names_and_static_shapes(world: World):
    spec = world.output.transformed_feature_spec()
    assert set(spec) == {f.name for f in CONTRACT.features} - {"novelty"}
    assert all(isinstance(entry, tf.io.FixedLenFeature) for entry in spec.values())
    assert {name: list(entry.shape) for name, entry in spec.items() if entry.shape} == {
        "history": [2],
        "tags": [2],
        "title": [3],
        "look": [2],
    }


# The same graph in serving.


@pytest.mark.parametrize("leave_out_missing", [False, True])
def test_served_features_equal_the_training_rows_to_the_bit(world: World, leave_out_missing: bool):
    outputs = serve(world.output, [encode(row, leave_out_missing) for row in TRAIN])
    assert set(outputs) == {feature.name for feature in CONTRACT.inputs}
    for name, values in outputs.items():
        np.testing.assert_array_equal(values, column(world.train, name), err_msg=name)


def test_a_batch_is_answered_like_its_rows_one_by_one(world: World):
    examples = [encode(row, leave_out_missing=True) for row in [*TRAIN, SERVED]]
    batch = serve(world.output, examples)
    for index, example in enumerate(examples):
        for name, values in serve(world.output, [example]).items():
            np.testing.assert_array_equal(values[0], batch[name][index], err_msg=name)


def test_the_graph_needs_no_python_and_no_op_of_an_extension(world: World):
    layer = world.output.transform_features_layer()
    request = tf.TensorSpec([None], tf.string)
    graph = tf.function(lambda examples: layer(tf.io.parse_example(examples, parse_spec(CONTRACT))))
    definition = graph.get_concrete_function(request).graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    ops = {node.op for node in nodes} - {function.signature.name for function in definition.library.function}
    assert "ParseExampleV2" in ops
    assert {op for op in ops if "PyFunc" in op or ">" in op} == set()  # ops of extensions are named Library>Op
