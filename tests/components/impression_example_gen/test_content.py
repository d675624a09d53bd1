"""Content vectors of videos reach their impressions and requests alike; what is missing is zeros, and a slice."""

import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.content_embedder.artifact import ContentVectors
from components.impression_example_gen import asking, impressions
from components.impression_example_gen.executor import Executor
from components.topic_learner.artifact import Topics
from components.world import tables
from transform.contract import Contract, ContractError, parse

SPLITS = '{"by": "hash", "train": 0.6, "valid": 0.2, "test": 0.2}'
CONTENT = pa.table(
    {
        "video_id": ["b", "a", "c"],  # d has no media
        "visual_vector": pa.array([[1.0, 2.0], [3.0, 4.0], None], tables.FLOATS),
        "audio_vector": pa.array([None, [5.0], None], tables.FLOATS),
        "fused_vector": pa.array([[9.0], [9.0], [9.0]], tables.FLOATS),
    }
)
TOPICS = pa.table({"video_id": ["a", "d"], "topics": [["t1", "t0"], ["t2"]], "similarities": [[0.9, 0.7], [0.8]]})
EXPECTED = {
    "a": ([3.0, 4.0], [5.0], "visual+audio"),
    "b": ([1.0, 2.0], None, "visual"),
    "c": (None, None, "none"),
    "d": (None, None, "none"),
}
PAIRS = [(user, video) for user in ("ann", "bob", "eve") for video in "abcd"] * 2
ROWS = [(user, video, 1000 * i + 1, 5.0) for i, (user, video) in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def with_content(contract: Contract) -> Contract:
    features = """
name: content
vocabularies: {user: {}, video: {}, topic: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: topics, kind: ids, role: video, vocabulary: topic, max_length: 2, source: content.topics}
  - {name: sight, kind: vector, role: video, dimension: 2, source: content.visual_vector}
  - {name: sound, kind: vector, role: video, dimension: 1, source: content.audio_vector}
  - {name: modalities, kind: id, role: slice, source: derived.modalities}
  - {name: liked, kind: number, role: label, source: interactions.rating, positive_above: 3, negative_below: 3}
"""
    return parse(features)


def execute(
    world: str, contract: Contract, folder: Path, content: pa.Table | None, topics: pa.Table | None = None
) -> str:
    examples, vectors, learned = standard_artifacts.Examples(), ContentVectors(), Topics()
    examples.uri, vectors.uri, learned.uri = (str(folder / name) for name in ("examples", "vectors", "topics"))
    given = {"content": [vectors]} if content is not None else {}
    if topics is not None:
        tables.write_table(learned.uri, "video_topics", topics)
        given["topics"] = [learned]
    if content is not None:  # in two parts, as ContentEmbedder writes them
        tables.write_table(f"{vectors.uri}/content", "one", content.slice(0, 1))
        tables.write_table(f"{vectors.uri}/content", "two", content.slice(1))
    context = BaseBeamExecutor.Context(tmp_dir=str(folder), unique_id="1")
    properties = {"world": world, "contract_json": contract.to_json(), "splits_json": SPLITS, "rows_per_partition": 5}
    Executor(context).Do(given, {"examples": [examples]}, properties)
    return examples.uri


def found(uri: str, contract: Contract, decode) -> dict[str, tuple]:
    records = tf.data.TFRecordDataset(glob.glob(f"{uri}/Split-*/*"), "GZIP").as_numpy_iterator()
    rows = [decode(record, contract) for record in records]
    assert len(rows) == len(ROWS)
    return {row["video_id"]: (row.get("sight"), row.get("sound"), row["modalities"]) for row in rows}


def test_vectors_are_joined_by_video_in_every_partition(make_world, with_content, decode, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    assert found(execute(world, with_content, tmp_path, CONTENT), with_content, decode) == EXPECTED


def test_without_vectors_every_modality_is_missing(make_world, with_content, decode, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    rows = found(execute(world, with_content, tmp_path, None), with_content, decode)
    assert rows == dict.fromkeys("abcd", (None, None, "none"))


def test_a_request_holds_the_vectors_that_an_impression_holds(make_world, with_content, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    tables.write_table(str(tmp_path / "vectors" / "content"), "part", CONTENT)
    vectors = str(tmp_path / "vectors")
    rows = asking.serving_rows(world, with_content, "ann", list("abcd"), 10**6, {"content": vectors})
    assert {row["video_id"]: (row.get("sight"), row.get("sound")) for row in rows} == {
        video: expected[:2] for video, expected in EXPECTED.items()
    }
    bare = asking.serving_rows(world, with_content, "ann", ["a"], 10**6)
    assert bare == [{"user_id": "ann", "video_id": "a", "topics": []}]


def test_topics_are_joined_into_impressions_and_requests(make_world, with_content, decode, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    uri = execute(world, with_content, tmp_path, CONTENT, TOPICS)
    assert found(uri, with_content, decode) == EXPECTED
    records = tf.data.TFRecordDataset(glob.glob(f"{uri}/Split-*/*"), "GZIP").as_numpy_iterator()
    rows = [decode(record, with_content) for record in records]
    expected = {"a": ["t1", "t0"], "b": [], "c": [], "d": ["t2"]}
    assert {row["video_id"]: row.get("topics", []) for row in rows} == expected
    asked = asking.serving_rows(world, with_content, "ann", list("abcd"), 10**6, {"topics": str(tmp_path / "topics")})
    assert {row["video_id"]: row["topics"] for row in asked} == expected


def test_the_catalogue_holds_every_video_once_with_what_is_known_of_it(make_world, with_content, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    uri = execute(world, with_content, tmp_path, CONTENT, TOPICS)
    records = [*tf.data.TFRecordDataset(glob.glob(f"{uri}/catalogue/*"), "GZIP").as_numpy_iterator()]
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    assert [set(example) for example in examples] == [{"video_id", "topics", "sight", "sound"}] * len(examples)
    found = {e["video_id"].bytes_list.value[0].decode(): e for e in examples}
    assert len(found) == len(examples) == len(tables.read_table(world, "videos"))
    assert list(found["a"]["topics"].bytes_list.value) == [b"t1", b"t0"]
    sights = {video: list(found[video]["sight"].float_list.value) for video in "abd"}
    assert sights == {"a": [3.0, 4.0], "b": [1.0, 2.0], "d": [0.0, 0.0]}


def test_vectors_of_another_width_than_the_contract_says_are_one_clear_error(make_world, with_content, tmp_path):
    world = make_world(tmp_path / "world", ROWS)
    other = CONTENT.set_column(2, "audio_vector", pa.array([None, [5.0, 6.0], None], tables.FLOATS))
    with pytest.raises(ContractError, match=r"source content.audio_vector: expected vectors of 1 values, got one of 2"):
        execute(world, with_content, tmp_path, other)


def test_the_match_sets_what_a_user_took_to_against_what_was_shown():
    """One user sees right, up, left (clicked, not, clicked), then a video that is right and one without content."""
    contract = parse(MATCH)
    vectors = {"a": [2.0, 0.0], "b": [0.0, 3.0], "c": [-1.0, 0.0], "d": [5.0, 0.0], "e": None}
    content = pa.table({"video_id": list(vectors), "fused_vector": pa.array(list(vectors.values()), tables.FLOATS)})
    ratings = (5.0, 1.0, 5.0, 5.0, 5.0)
    events = pa.table({"user_id": ["u"] * 5, "video_id": list("abcde"), "at": [1, 2, 3, 4, 5], "rating": ratings})
    prepared = impressions.prepare(events, contract, impressions.Splits("time", 0.8, 0.1, 0.1, (9, 10)))
    videos, users = pa.table({"video_id": list("abcde")}), pa.table({"user_id": ["u"]})
    done = impressions.with_users(impressions.with_videos(prepared, videos, contract, content), users, contract)
    match = done["derived.content_match"].to_pylist()
    # Before b: one click of one, rate 1, profile 0. Before c: rate 1/2, profile (1,0)/2 - (0,1)/2, c = (-1, 0).
    # Before d: rate 2/3; clicked (1,0)+(-1,0) = 0, less 2/3 of (0,1): profile (0,-2/3), d = (1, 0).
    assert [None if np.isnan(value) else round(value, 6) for value in match] == [None, None, -0.707107, 0.0, None]


MATCH = """
name: match
vocabularies: {user: {}, video: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: match, kind: number, role: context, source: derived.content_match}
  - {name: liked, kind: number, role: label, source: interactions.rating, positive_above: 3, negative_below: 3}
"""


@pytest.mark.parametrize("wrong", ["content.look, kind: vector", "content.visual_vector, kind: number"])
def test_unknown_content_is_refused_by_the_contract(wrong):
    text = f"""
name: wrong
vocabularies: {{user: {{}}, video: {{}}}}
features:
  - {{name: look, role: video, source: {wrong}}}
"""
    with pytest.raises(ContractError, match=r"content.NAME is of kind vector, and NAME one of visual_vector"):
        parse(text)
