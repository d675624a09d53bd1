"""Two towers: their loss by hand, what they read; the exported index answers, excludes and takes in new videos."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer import retrieval_export, topic_retrieval
from trainer.data import Split
from trainer.keras_version import keras
from trainer.layers.recency import RecencyPooling, TopicShares, TopicTaste
from trainer.retrieval_export import rebuild
from trainer.topic_retrieval import (
    Config,
    TwoTowers,
    Videos,
    build_model,
    measure,
    objective,
    sampling_probability,
    with_catalogue,
)
from transform.contract import ContractError, Kind, load

SMALL = {"embedding_width": 6, "width": 4, "deep": {"units": (5,)}, "negatives": 3}
LOAD_ALONE = """
import json, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
rows = tf.constant([bytes.fromhex(row) for row in json.load(open(sys.argv[2]))])
answers = loaded.signatures["serving_default"](examples=rows)
print(json.dumps({n: v.numpy().astype(str).tolist() for n, v in answers.items()}))
assert not any(name.startswith(("tensorflow_transform", "trainer", "transform", "tfx")) for name in sys.modules)
"""


def example(contract: Any, row: dict[str, Any]) -> bytes:
    feature = {}
    for f in (f for f in contract.inputs if f.name in row):
        values = row[f.name] if isinstance(row[f.name], list) else [row[f.name]]
        if f.kind in (Kind.NUMBER, Kind.VECTOR):
            feature[f.name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            encoded = [value.encode() for value in values]
            feature[f.name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def decoded(answers: dict[str, tf.Tensor]) -> dict[str, list[Any]]:
    return {n: v.numpy().astype(str).tolist() if v.dtype == tf.string else v.numpy() for n, v in answers.items()}


@pytest.fixture(scope="module")
def videos(world: Any) -> Videos:
    split = Split(world.contract, (), {}, 240, world.transformed)
    return topic_retrieval.videos_of(split, world.sizes["video_id"])


@pytest.fixture(scope="module")
def model(world: Any, videos: Videos) -> TwoTowers:
    return build_model(Config(**SMALL), world.contract, world.sizes, videos)


@pytest.fixture(scope="module")
def exported(world: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("retrieval")
    fn_args = world.fn_args
    fn_args.custom_config = {
        "contract": world.contract.to_json(),
        "model": {**SMALL, "index": {"answers": 4}},
        "training": {"epochs": 2, "batch_size": 16},
        "checkpoint_dir": str(folder / "checkpoint"),
    }
    fn_args.model_run_dir, fn_args.serving_model_dir = str(folder / "run"), str(folder / "1")
    topic_retrieval.run_fn(fn_args)
    return str(folder / "1")


def test_probability_of_a_mixed_batch_by_hand():
    # B = 4, U = 2, V = 10: a video of half the clicks is expected 4 * .5 + 2 / 10 = 2.2 times among 6 candidates.
    np.testing.assert_allclose(sampling_probability(tf.constant([0.5, 0.0]), 10, tf.zeros(4), 2), [2.2 / 6, 0.2 / 6])


def test_loss_by_hand_corrects_for_popularity_and_drops_accidental_hits():
    # Clicks: video 1 six times, video 2 twice. The batch has both once; the negatives are 1 (an accidental hit of the
    # first row) and 3. q = (2 share + 2 / 4) / 4 = (2 * .75 + .5, 2 * .25 + .5, 0 + .5) / 4 = (.5, .25, .125).
    contract = load("movielens")
    videos = Videos({"video_id": np.array([1, 2, 3, 4])}, np.array([0, 6, 2, 0, 0.0]))
    aim = objective(Config(temperature=0.5, negatives=2), contract, videos)
    towers = {
        "query": tf.constant([[1.0, 0.0], [0.0, 1.0]]),
        "candidate": tf.constant([[1.0, 0.0], [0.6, 0.8]]),
        "negatives": tf.constant([[1.0, 0.0], [0.0, 1.0]]),
        "negative_ids": tf.constant([1, 3], tf.int64),
    }
    q = np.log([0.5, 0.25, 0.5, 0.125])
    first = np.array([1, 0.6, 1, 0]) / 0.5 - q  # against videos 1, 2, 1, 3; the third is the positive again
    second = np.array([0, 0.8, 0, 1]) / 0.5 - q
    losses = [np.log(np.exp(first[[0, 1, 3]]).sum()) - first[0], np.log(np.exp(second).sum()) - second[1]]
    inputs = {"video_id": tf.constant([1, 2], tf.int64)}
    loss = aim.loss(inputs, towers, tf.constant([1.0, 1.0]), tf.constant([1.0, 3.0]))
    np.testing.assert_allclose(loss, (losses[0] + 3 * losses[1]) / 4, rtol=1e-5)
    only_first = aim.loss(inputs, towers, tf.constant([1.0, 0.0]), tf.ones(2))  # what was not clicked does not teach
    np.testing.assert_allclose(only_first, losses[0], rtol=1e-5)
    # Of the one hardest negative: 1.2 + log 4 is above log 8 in the first row, and 2 + log 8 is the most in the second.
    hardest = objective(Config(temperature=0.5, negatives=2, hard_negatives=1), contract, videos)
    losses = [np.log(np.exp(first[[0, 1]]).sum()) - first[0], np.log(np.exp(second[[1, 3]]).sum()) - second[1]]
    loss = hardest.loss(inputs, towers, tf.ones(2), tf.constant([1.0, 3.0]))
    np.testing.assert_allclose(loss, (losses[0] + 3 * losses[1]) / 4, rtol=1e-5)


def test_rare_videos_of_a_large_catalogue_are_corrected_for_too():
    # Of a million videos, number 1 has a tenth of the clicks and number 2 none: q = (0.2 + 1e-6) / 3 and 1e-6 / 3.
    videos = Videos({"video_id": np.arange(10**6, dtype=np.int32)}, np.array([0, 1, 0, 9]))
    aim = objective(Config(temperature=1.0, negatives=1), load("movielens"), videos)
    same = tf.ones([2, 1])
    towers = {"query": same, "candidate": same}
    towers |= {"negatives": tf.ones([1, 1]), "negative_ids": tf.constant([2], tf.int64)}
    loss = aim.loss({"video_id": tf.constant([1, 1], tf.int64)}, towers, tf.ones(2), tf.ones(2))
    # All dot products are equal and the other row is an accidental hit: -log of 1 / q_1 over 1 / q_1 + 1 / q_2.
    np.testing.assert_allclose(loss, np.log(1 + 200_001), rtol=1e-5)


def test_keras_own_fit_trains_by_the_same_loss(world: Any, model: TwoTowers, videos: Videos):
    model.loss_of = objective(Config(**SMALL, temperature=0.5), world.contract, videos).loss
    label = tf.constant(world.transformed["clicked"])
    batch = (world.inputs, label, tf.ones_like(label))
    before = float(np.mean([model.compute_loss(batch) for _ in range(5)]))
    model.compile(optimizer="adam", run_eagerly=True)
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(40), verbose=0)
    assert float(np.mean([model.compute_loss(batch) for _ in range(5)])) < before - 0.1


def test_validation_recall_ranks_among_the_distinct_videos_that_occur():
    # 30 videos on a circle; queries point at their own video but for the last, which points at the opposite one.
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    candidates = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    queries = candidates.copy()
    queries[-1] *= -1
    towers = np.concatenate([queries, candidates], axis=1).repeat(2, axis=0)
    measured = measure(towers, np.ones(60), np.ones(60), 1.0)
    assert measured["recall"] == pytest.approx(29 / 30)
    weights = np.ones(60)
    weights[-2:] = 0
    assert measure(towers, np.ones(60), weights, 1.0)["recall"] == 1


def test_validation_loss_is_that_of_all_queries_however_many_are_scored_at_once(monkeypatch):
    random = np.random.default_rng(0)
    towers = random.normal(size=(23, 8)).astype(np.float32)
    monkeypatch.setattr(topic_retrieval, "AT_ONCE", 5)
    measured = measure(towers, np.ones(23), np.ones(23), 0.01)  # scores of hundreds: exp alone would overflow
    scores = towers[:, :4].astype(float) @ towers[:, 4:].T.astype(float) / 0.01
    expected = np.mean(np.logaddexp.reduce(scores, axis=1) - np.diag(scores))
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["recall"] == np.mean([(row > row[i]).sum() < 20 for i, row in enumerate(scores)])


def test_a_padded_history_is_the_shorter_one_and_an_empty_one_zeros():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(1, 4, 3)).astype(np.float32)
    pooling = RecencyPooling()
    pooling((vectors, np.ones([1, 4], np.float32)))
    pooling.by_age.assign([0.0, 1.0, 2.0, -1.0])
    padded = pooling((vectors, np.array([[1, 1, 0, 0]], np.float32)))
    weights = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()  # the last entry has age 0, the one before it age 1
    np.testing.assert_allclose(padded[0], weights @ vectors[0, :2], atol=1e-6)
    np.testing.assert_allclose(pooling((vectors, np.zeros([1, 4], np.float32))), np.zeros([1, 3]))


def test_topic_shares_count_the_topics_of_the_last_clicks():
    topics = np.array([[0, 0], [1, 2], [2, 0], [3, 0]])
    layer = TopicShares(topics, 4, recent=2)
    # The last two of (3, 1, 2) are 1 and 2: topics 1, 2 and 2.
    got = layer(tf.constant([[3, 1, 2, 0], [0, 0, 0, 0]], tf.int64))
    np.testing.assert_allclose(got, [[1 / 3, 2 / 3, 0, 0], [0, 0, 0, 0]], atol=1e-6)
    assert layer(keras.Input([4], dtype="int64")).shape == (None, 4)


@pytest.mark.parametrize(
    ("name", "partition"), [("movielens", None), ("microvideo", "topics")], ids=["movielens", "microvideo"]
)
def test_towers_read_no_counters_of_videos(name: str, partition: str | None):
    contract = load(name)
    query = [f.name for f in retrieval_export.query_features(contract)]
    candidate = [f.name for f in retrieval_export.candidate_features(contract)]
    assert contract.user_key.name in query
    assert not [f for f in query if "genre" in f or "category" in f]
    assert not {"video_events", "video_age_hours", "video_positive_rate"} & set(candidate)
    chosen = retrieval_export.topic_feature(contract)
    assert (chosen and chosen.name) == partition


def test_only_clicks_are_trained_on(world: Any):
    split = Split(world.contract, ("train",), {}, 240, world.transformed)
    clicks = topic_retrieval.positives(split)
    assert clicks.rows == int(world.transformed["clicked"].sum())
    assert clicks.columns is not None
    assert (clicks.columns["clicked"] == 1).all()
    none = {**world.transformed, "clicked": np.zeros(240, np.float32)}
    with pytest.raises(ContractError, match="expected positive impressions in train, got 240 negative ones"):
        topic_retrieval.positives(Split(world.contract, ("train",), {}, 240, none))


def test_a_day_knows_the_videos_of_the_catalogue_that_have_a_row(world: Any, videos: Videos):
    files = tf.io.gfile.glob(world.fn_args.catalogue_files)
    one = videos._replace(columns={name: column[:1] for name, column in videos.columns.items()})
    found = with_catalogue(one, files, world.contract, world.output)
    order = np.argsort(found.columns["video_id"])
    assert found.columns.keys() == videos.columns.keys()
    for name in ("video_id", "author", "title", "look"):  # sound differs from impression to impression here
        np.testing.assert_allclose(found.columns[name][order], videos.columns[name], atol=1e-6, err_msg=name)


def test_a_new_topic_leaves_the_taste_for_others_where_it_was():
    table = keras.layers.Embedding(5, 2)
    table.build(None)
    taste = TopicTaste(table)(tf.constant([[0.25, 0.75, 0, 0, 0], [0, 0, 0, 0, 0.0]]))
    rows = table.get_weights()[0]
    # Shares begin with row 1: a quarter of row 1 and three quarters of row 2; of no topics, zeros.
    np.testing.assert_allclose(taste, [0.25 * rows[1] + 0.75 * rows[2], [0, 0]], atol=1e-6)


def test_signatures_are_those_of_the_interface(exported: str):
    loaded = tf.saved_model.load(exported)
    assert set(loaded.signatures) == {"serving_default", "retrieve", "raw", "candidates", "evaluate"}
    raw = loaded.signatures["raw"].structured_input_signature[1]
    assert set(raw) == {"user_id", "followed", "history", "events", "exclude", "queue"}
    outputs = loaded.signatures["serving_default"].structured_outputs
    assert {n: (s.dtype, s.shape.as_list()) for n, s in outputs.items()} == {
        **{n: (tf.string, [None, 4]) for n in ("video_ids", "topics", "sources")},
        "scores": (tf.float32, [None, 4]),
    }


def test_answers_leave_out_history_and_exclusions(world: Any, exported: str):
    loaded = tf.saved_model.load(exported)
    row = {"user_id": "u1", "followed": ["a1"], "history": ["v1", "v2"], "events": 3.0}
    rows = tf.constant([example(world.contract, row), example(world.contract, {}), b""])
    got = decoded(loaded.signatures["serving_default"](examples=rows))
    assert set(got["video_ids"][0]) == {"v0", "v3", "v4", ""}
    assert set(got["sources"][0]) == {"topic", ""}
    assert got["video_ids"][1] == got["video_ids"][2]
    assert len(set(got["video_ids"][1])) == 4
    assert (np.diff(got["scores"]) <= 0).all()
    tensors = {n: tf.constant([v]) for n, v in row.items()} | {"exclude": [["v3", ""]], "queue": [["v4", "v1"]]}
    raw = decoded(loaded.signatures["raw"](**{n: tf.convert_to_tensor(v) for n, v in tensors.items()}))
    assert set(raw["video_ids"][0]) == {"v0", "v4", ""}
    more = {name: tf.constant(tensors[name]) for name in ("exclude", "queue")}
    retrieved = decoded(loaded.signatures["retrieve"](examples=rows[:1], **more))
    assert retrieved["video_ids"] == raw["video_ids"]
    kept = dict(zip(got["video_ids"][0], got["scores"][0], strict=True))
    assert raw["scores"][0, 0] == pytest.approx(kept[raw["video_ids"][0][0]], abs=1e-6)


def test_a_new_video_is_found_after_a_rebuild_without_training(world: Any, exported: str, tmp_path: Path):
    old = [example(world.contract, row) for row in {row["video_id"]: row for row in world.raw}.values()]
    new = {"video_id": "fresh", "author": "a1", "title": "clip 1 of many", "look": [1.0, 1.0, 0.0]}
    rebuild(exported, iter([*old, example(world.contract, new)]), str(tmp_path / "2"))
    rebuild(str(tmp_path / "2"), iter([*old, example(world.contract, new)]), str(tmp_path / "3"))  # again, of its own
    for version in "23":
        loaded = tf.saved_model.load(str(tmp_path / version))
        candidate = loaded.signatures["candidates"](examples=tf.constant([example(world.contract, new), old[0]]))
        assert candidate["trained"].numpy().tolist() == [False, True]
        rows = tf.constant([example(world.contract, {"user_id": "u1", "history": ["v0", "v1", "v2", "v3"]})])
        got = decoded(loaded.signatures["evaluate"](examples=rows))
        assert set(got["video_ids"][0]) == {"v4", "fresh", ""}
        assert got["exact_ids"] == got["video_ids"]
        trained = dict(zip(got["video_ids"][0], got["trained"][0], strict=True))
        assert (trained["v4"], trained["fresh"]) == (True, False)
        assert got["catalogue_size"].tolist() == [6]


def test_rebuilding_nothing_and_of_another_model_is_refused(exported: str, tmp_path: Path):
    with pytest.raises(ContractError, match="expected videos, got none"):
        rebuild(exported, [], str(tmp_path / "x"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(ContractError, match="expected a retrieval model"):
        rebuild(str(tmp_path / "other"), [], str(tmp_path / "x"))


def test_tensorflow_alone_loads_it_and_answers_the_same(world: Any, exported: str, tmp_path: Path):
    rows = [example(world.contract, row) for row in world.raw[:3]]
    (tmp_path / "rows.json").write_text(json.dumps([row.hex() for row in rows]))
    command = [sys.executable, "-c", LOAD_ALONE, exported, str(tmp_path / "rows.json")]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    alone = json.loads(process.stdout)
    here = decoded(tf.saved_model.load(exported).signatures["serving_default"](examples=tf.constant(rows)))
    assert alone["video_ids"] == here["video_ids"]
    np.testing.assert_allclose(np.array(alone["scores"], np.float32), here["scores"], rtol=1e-5)
