"""Tags that go together: counts, eq. 3, walks that keep to it, and vectors that tell communities apart."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.topic_learner.tag_graph import TagGraph, incidence, tag_pairs, tag_vectors, video_tag_vectors

# a-b in 3 videos, a-c in 1, b-c in 4: 8 in all.
COUNTS = {("a", "b"): 3, ("a", "c"): 1, ("b", "c"): 4}


def test_each_pair_of_a_video_counts_once_however_often_a_tag_is_written():
    assert list(tag_pairs(["b", "a", "b", "c"])) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(tag_pairs(["alone", "alone"])) == []


def test_the_probability_of_an_edge_is_its_share_of_all_weight():
    graph = TagGraph.of(COUNTS)
    assert graph.tags == ["a", "b", "c"]
    want = np.array([[0, 3, 1], [3, 0, 4], [1, 4, 0]]) / 8
    np.testing.assert_allclose(graph.probabilities.toarray(), want)


def test_walks_step_as_often_as_the_edges_at_a_tag_say():
    graph = TagGraph.of(COUNTS)
    walks = graph.walks(each=400, length=50, seed=1)
    assert walks.shape == (1200, 50)
    assert np.bincount(walks[:, 0]).tolist() == [400] * 3
    steps = np.zeros((3, 3))
    np.add.at(steps, (walks[:, :-1].ravel(), walks[:, 1:].ravel()), 1)
    edges = graph.probabilities.toarray()
    want = edges / edges.sum(axis=1, keepdims=True)  # from a: 3/4 to b, 1/4 to c
    np.testing.assert_allclose(steps / steps.sum(axis=1, keepdims=True), want, atol=0.01)


@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("def")), st.integers(1, 9), min_size=1))
def test_walks_use_only_edges_that_are_there(counts: dict[tuple[str, str], int]):
    graph = TagGraph.of(counts)
    walks = graph.walks(each=2, length=6, seed=0)
    assert (np.asarray(graph.weights[walks[:, :-1].ravel(), walks[:, 1:].ravel()]) > 0).all()


def test_the_same_seed_walks_the_same_way():
    graph = TagGraph.of(COUNTS)
    np.testing.assert_array_equal(graph.walks(3, 20, seed=5), graph.walks(3, 20, seed=5))
    assert (graph.walks(3, 20, seed=5) != graph.walks(3, 20, seed=6)).any()


@pytest.fixture(scope="module")
def planted() -> tuple[TagGraph, np.ndarray]:
    """Two communities of six tags, 5 videos for each pair within, 1 video with a tag of either."""
    pairs: Counter[tuple[str, str]] = Counter()
    for side in "xy":
        for i in range(6):
            for j in range(i + 1, 6):
                pairs[f"{side}{i}", f"{side}{j}"] = 5
    pairs["x0", "y0"] = 1
    graph = TagGraph.of(pairs)
    return graph, tag_vectors(graph, width=8, walks=10, length=40, seed=0)


def test_vectors_of_planted_communities_separate(planted: tuple[TagGraph, np.ndarray]):
    _, vectors = planted
    cosine = vectors @ vectors.T  # rows of length 1; the first six tags are x
    np.testing.assert_allclose(np.diag(cosine), 1, rtol=1e-5)
    within = np.concatenate([cosine[:6, :6][np.triu_indices(6, 1)], cosine[6:, 6:][np.triu_indices(6, 1)]])
    assert within.min() > cosine[:6, 6:].max() + 0.2


def test_tag_vectors_repeat_exactly(planted: tuple[TagGraph, np.ndarray]):
    graph, vectors = planted
    np.testing.assert_array_equal(tag_vectors(graph, width=8, walks=10, length=40, seed=0), vectors)


def test_a_video_has_the_mean_of_the_tags_that_have_a_vector():
    has = incidence([["b", "unseen", "a", "b"], ["unseen"], [], ["c"]], ["a", "b", "c"])
    assert has.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    vectors = np.array([[2, 0], [0, 4], [1, 1]], np.float32)
    # (a + b) / 2: the unseen tag counts neither above nor below the line, and b once.
    assert video_tag_vectors(has, vectors).tolist() == [[1, 2], [0, 0], [0, 0], [1, 1]]


def test_without_any_pair_no_tag_has_a_vector():
    graph = TagGraph.of({})
    vectors = tag_vectors(graph, 4, walks=2, length=5, seed=0)
    assert vectors.shape == (0, 4)
    assert video_tag_vectors(incidence([["a"], []], graph.tags), vectors).tolist() == [[0] * 4] * 2
