"""The index answers as brute force would, without what was seen, once each, and says where from."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.layers.topic_index import Catalogue, IndexSettings, TopicIndex, fill_queues, spherical_k_means
from transform.contract import ContractError


def unit(random: np.random.Generator, rows: int, width: int = 8) -> np.ndarray:
    vectors = random.normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def answer(index: TopicIndex, queries: np.ndarray, seen=(), history=(), live=(), **more) -> dict[str, np.ndarray]:
    given = (tf.constant([list(p)] * len(queries), tf.string, [len(queries), len(p)]) for p in (seen, history, live))
    found = index.answer(tf.constant(queries), *given, **more)
    return {name: part.numpy().astype(str) if part.dtype == tf.string else part.numpy() for name, part in found.items()}


@settings(max_examples=25)
@given(
    videos=st.integers(1, 60),
    topics=st.integers(0, 4),
    cells=st.integers(1, 9),
    answers=st.integers(1, 70),
    seen=st.integers(0, 8),
    batch=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_with_all_cells_probed_it_is_brute_force(videos, topics, cells, answers, seen, batch, seed):
    random = np.random.default_rng(seed)
    vectors, queries = unit(random, videos), unit(random, batch)
    names = [f"v{i}" for i in range(videos)]
    memberships = [[f"t{t}" for t in random.permutation(topics)[: random.integers(0, 4)]] for _ in names]
    chosen = IndexSettings(cells=cells, probes=10**6, answers=answers, queue_share=0.3)
    index = TopicIndex(Catalogue(names, vectors, memberships if topics else None), chosen)
    watched = [f"v{i}" for i in random.permutation(videos + 2)[:seen]]
    got = answer(index, queries, seen=watched)
    allowed = [i for i in range(videos) if f"v{i}" not in watched]
    for row, query in enumerate(queries):
        best = sorted(allowed, key=lambda i: -float(vectors[i] @ query))[:answers]
        expected = [f"v{i}" for i in best] + [""] * (answers - len(best))
        assert got["video_ids"][row].tolist() == expected
        np.testing.assert_allclose(got["scores"][row, : len(best)], vectors[best] @ query, atol=1e-6)
        assert set(got["sources"][row]) <= {"topic", ""}


def test_a_batch_is_answered_as_single_queries_are():
    random = np.random.default_rng(1)
    vectors, queries = unit(random, 300), unit(random, 5)
    index = TopicIndex(Catalogue([f"v{i}" for i in range(300)], vectors), IndexSettings(probes=4, answers=20))
    together = answer(index, queries, seen=("v1", "v2"))
    for row in range(5):
        alone = answer(index, queries[row : row + 1], seen=("v1", "v2"))
        assert alone["video_ids"][0].tolist() == together["video_ids"][row].tolist()


def test_probes_are_the_fewest_that_reach_the_target():
    random = np.random.default_rng(2)
    vectors, sample = unit(random, 3000, 6), unit(random, 256, 6)
    names = [f"v{i}" for i in range(3000)]
    index = TopicIndex(Catalogue(names, vectors), IndexSettings(answers=100, target_recall=0.95, queue_share=0), sample)

    def recall(probes: int) -> float:
        index.probes = probes
        found, true = index.search(tf.constant(sample), 100), index.brute_force(tf.constant(sample), 100)
        return np.mean([len(np.intersect1d(f, t)) / 100 for f, t in zip(found.numbers, true.numbers, strict=True)])

    chosen = index.probes
    assert 1 < chosen < index.centres.shape[1] / 2
    assert recall(chosen) >= 0.95 > recall(chosen - 1)


@pytest.mark.parametrize("videos", [333, 3000])
def test_cells_that_are_probed_hold_what_is_answered_beside_what_was_seen(videos):
    """The best 100, by which recall is measured, lie in cells of fewer videos than the 600 that are answered."""
    random = np.random.default_rng(4)
    near = unit(random, videos // 10, 6)[np.arange(videos) % (videos // 10)]
    vectors, sample = unit(random, videos, 6) * 0.05 + near, unit(random, 64, 6)
    names, settings = [f"v{i}" for i in range(videos)], IndexSettings(answers=600, target_recall=0.95, queue_share=0)
    index = TopicIndex(Catalogue(names, vectors), settings, sample)
    assert (index.probes < index.centres.shape[1]) == (videos > 2 * 600)
    seen = [tuple(names[n] for n in np.argsort(-vectors @ query)[:100]) for query in sample]
    found = [answer(index, sample[row : row + 1], seen=seen[row])["video_ids"][0] for row in range(len(sample))]
    assert np.mean([(row != "").sum() == min(600, videos - 100) for row in found]) >= 0.95


def test_a_video_of_two_topics_comes_once_with_the_topic_of_one():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    topics = [["a"], ["a", "b"], ["b"]]
    index = TopicIndex(Catalogue(["x", "y", "z"], vectors, topics), IndexSettings(probes=9, answers=4))
    got = answer(index, np.array([[1, 0]], np.float32))
    assert got["video_ids"].tolist() == [["x", "y", "z", ""]]
    assert got["topics"][0, 0] == "a"
    assert got["topics"][0, 1] in ("a", "b")
    assert got["topics"][0, 2:].tolist() == ["b", ""]


QUEUES = {"a": ["a3", "a2"], "b": ["b3", "a0", "b2"]}


@pytest.fixture(scope="module")
def queued() -> TopicIndex:
    # Four videos of each of two topics; the query (1, 0) likes a0 > a1 > a2 > a3 > b0 ...
    angles = np.radians([0, 10, 20, 30, 60, 70, 80, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    topics = [["a"]] * 4 + [["b"]] * 4
    chosen = IndexSettings(probes=9, answers=4, queue_share=0.5, queue_topics=1)
    index = TopicIndex(Catalogue(names, vectors, topics), chosen)
    fill_queues(index, {"b": ["a0"]})
    fill_queues(index, QUEUES)  # in place of those before
    return index


QUERY = np.array([[1, 0]], np.float32)


def test_queue_candidates_of_the_users_topic_take_their_share(queued):
    # History says topic b, whose queue is b3, a0, b2. a0 is found by the index already, so b3 and b2 fill the half.
    got = answer(queued, QUERY, history=("b0", "b1", "a3"))
    assert got["video_ids"].tolist() == [["a0", "a1", "b2", "b3"]]
    assert got["sources"].tolist() == [["topic", "topic", "queue", "queue"]]
    assert got["topics"].tolist() == [["a", "a", "b", "b"]]
    np.testing.assert_allclose(got["scores"][0], np.cos(np.radians([0, 10, 80, 90])), atol=1e-6)


def test_a_queue_takes_no_more_than_its_share_where_videos_have_several_topics():
    random = np.random.default_rng(3)
    names = [f"v{i}" for i in range(60)]
    topics = [[f"t{i % 3}", f"t{(i + 1) % 3}"] for i in range(60)]
    chosen = IndexSettings(probes=99, answers=20, queue_share=0.2, queue_topics=1)
    index = TopicIndex(Catalogue(names, unit(random, 60), topics), chosen)
    got = answer(index, unit(random, 4), seen=("v1", "v2"), live=names[::-1])
    # 20 answers, a fifth kept for queues: 16 of the index, 4 of the queue, though a video fills two rows of the index.
    assert [(row.tolist().count("topic"), row.tolist().count("queue")) for row in got["sources"]] == [(16, 4)] * 4


def test_live_candidates_come_before_the_queues_that_are_built_in(queued):
    got = answer(queued, QUERY, history=("b0",), live=("", "b1", "unheard of"))
    assert got["video_ids"].tolist() == [["a0", "a1", "b1", "b3"]]


def test_without_a_history_the_nearest_topics_queue_is_read(queued):
    # Topic a: its queue is a3, a2.
    assert answer(queued, QUERY)["video_ids"].tolist() == [["a0", "a1", "a2", "a3"]]
    assert answer(queued, QUERY)["sources"].tolist() == [["topic", "topic", "queue", "queue"]]


def test_watched_videos_come_from_nowhere(queued):
    got = answer(queued, QUERY, seen=("a0", "b3", "a1"), history=("b0",))
    assert got["video_ids"].tolist() == [["a2", "a3", "b0", "b2"]]


def test_an_index_that_was_loaded_takes_other_queues(queued, tmp_path):
    module = tf.Module()
    module.index = queued
    given = [tf.TensorSpec([None, 2]), *[tf.TensorSpec([None, None], tf.string)] * 3]
    module.answer = tf.function(lambda *asked: queued.answer(*asked)["video_ids"], given, autograph=False)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    nobody = tf.zeros([1, 0], tf.string)
    asked = (tf.constant(QUERY), nobody, tf.constant([["b0"]]), nobody)
    assert loaded.answer(*asked).numpy().tolist() == [[b"a0", b"a1", b"b2", b"b3"]]
    # Room is left for ceil(3 * 4 * 0.5 / 1) = 6 videos of a queue; "gone" and the topic "c" are not of this catalogue.
    fill_queues(loaded.index, {"b": ["gone", "b1", "b0"], "c": ["b2"]})
    assert loaded.index.queues.shape == [2, 6]
    assert loaded.answer(*asked).numpy().tolist() == [[b"a0", b"a1", b"b0", b"b1"]]


def test_without_topics_there_are_no_queues_to_fill():
    index = TopicIndex(Catalogue(["x", "y"], unit(np.random.default_rng(5), 2)), IndexSettings(answers=2))
    fill_queues(index, QUEUES)
    assert index.queues.shape[1] == 0


def test_k_means_finds_separate_clusters():
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0) + random.normal(scale=0.05, size=(200, 4))
    cell, centres = spherical_k_means(vectors.astype(np.float32), 24, 10, 0)
    assert all(len(set(cell[i * 50 : i * 50 + 50]) & set(cell[j * 50 : j * 50 + 50])) == 0 for i, j in [(0, 1), (2, 3)])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("ids", [[], ["a", "b", "a"]])
def test_no_videos_and_doubled_ones_are_refused(ids):
    with pytest.raises(ContractError, match=f"got {len(ids)} of which {len(set(ids))} distinct"):
        TopicIndex(Catalogue(ids, np.ones([len(ids), 2], np.float32)), IndexSettings())
