"""Topics: parts that weigh the same, thresholds and the nearest centre, ids that stay, names that say something."""

import numpy as np
import pytest
from scipy import sparse

from components.topic_learner.tag_graph import incidence
from components.topic_learner.topics import (
    TopicSettings,
    assign,
    cluster,
    describe,
    places,
    report,
    stable_ids,
    topic_vectors,
    unit,
)


def random_units(n: int, width: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, width)))


def test_both_parts_weigh_the_same_whatever_their_length():
    z, tags = np.array([[30.0, 40.0], [0.0, 0.0]]), np.array([[0.0, 0.001, 0.0], [0.0, 0.0, 2.0]])
    half = np.sqrt(0.5)
    # (3/5, 4/5) and (0, 1, 0) over the root of two; where one part is missing the other is all.
    want = [[0.6 * half, 0.8 * half, 0, half, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(topic_vectors(z, tags), want, rtol=1e-6)
    assert topic_vectors(np.zeros((1, 2)), np.zeros((1, 3))).tolist() == [[0] * 5]


def test_squared_distances_of_the_parts_add_up_in_equal_shares():
    rng = np.random.default_rng(0)
    z, tags = rng.normal(size=(2, 9)) * 100, rng.normal(size=(2, 4))
    a, (z1, z2), (t1, t2) = topic_vectors(z, tags), unit(z), unit(tags)
    want = (np.sum((z1 - z2) ** 2) + np.sum((t1 - t2) ** 2)) / 2
    np.testing.assert_allclose(np.sum((a[0] - a[1]) ** 2), want, rtol=1e-5)


def test_a_video_has_every_topic_above_the_threshold_best_first_else_the_nearest():
    centres = np.eye(3, dtype=np.float32)
    vectors = np.array([[0.6, 0.8, 0], [1, 0, 0], [0.5, 0.5, np.sqrt(0.5)], [0, 0, 0], [0.59, 0.59, 0.55]], np.float32)
    members, passed = assign(vectors, centres, TopicSettings(threshold=0.6))
    rows = [members.indices[a:b].tolist() for a, b in zip(members.indptr, members.indptr[1:], strict=False)]
    # cosines: (.6, .8, 0) exactly at the threshold counts; (.59, .59, .55) passes nowhere; zeros have no topic.
    assert rows == [[1, 0], [0], [2], [], [0]]
    assert passed.tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(members.data, [0.8, 0.6, 1, np.sqrt(0.5), 0.59], rtol=1e-6)
    got = report(members, passed)
    assert got["mean_topics"] == pytest.approx(5 / 5)
    assert (got["unassigned"], got["without_topic"]) == (pytest.approx(2 / 5), pytest.approx(1 / 5))


def test_a_video_has_no_more_topics_than_allowed():
    members, _ = assign(unit(np.ones((1, 4))), np.eye(4, dtype=np.float32), TopicSettings(threshold=0.1, most=2))
    assert members.indices.tolist() == [0, 1]


def planted(seed: int, centres: np.ndarray, each: int = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(len(centres) * each, centres.shape[1]))
    return unit(np.repeat(centres, each, axis=0) + noise)


def test_clusters_that_are_there_are_found():
    want = random_units(5, 16)
    got = cluster(planted(1, want), TopicSettings(topics=5))
    assert (got @ want.T).max(axis=0).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)


def test_there_are_no_more_topics_than_different_videos():
    assert cluster(np.repeat(random_units(3, 4), 2, axis=0), TopicSettings(topics=9)).shape == (3, 4)


def test_ids_follow_their_centres_through_permutation_and_an_added_cluster():
    old = random_units(4, 32)
    order = [2, 0, 3, 1]
    new = np.concatenate([old[order], random_units(1, 32, seed=9)])
    ids, following = stable_ids(new, ["t000", "t001", "t002", "t003"], old, 4, at_least=0.6)
    assert ids == ["t002", "t000", "t003", "t001", "t004"]
    assert following == 5


def test_an_id_that_ended_is_not_given_again():
    old = random_units(3, 32)
    ids, following = stable_ids(np.concatenate([old[:1], random_units(1, 32, 7)]), ["t000", "t005"], old[:2], 8, 0.6)
    assert ids == ["t000", "t008"]
    assert following == 9


def test_ids_stay_when_the_representation_gets_other_axes():
    """Trained again, the same videos lie elsewhere: rotated. A centre of before would match nothing."""
    settings, first = TopicSettings(topics=4), planted(2, random_units(4, 8))
    centres = cluster(first, settings)
    ids, following = stable_ids(centres, [], centres[:0], 0, 0.6)
    members, _ = assign(first, centres, settings)
    topic_of = [ids[k] for k in members.indices[members.indptr[:-1]]]
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))
    second = unit(first @ rotation)
    shuffled = np.random.default_rng(4).permutation(len(second))
    known, kept = places(second[shuffled], [topic_of[i] if i % 3 else None for i in shuffled])
    again = cluster(second[shuffled], settings, kept)
    same, _ = stable_ids(again, known, kept, following, 0.6)
    assert sorted(same) == sorted(ids)
    found, _ = assign(second, again, settings)
    assert [same[k] for k in found.indices[found.indptr[:-1]]] == topic_of


def test_names_are_of_tags_that_are_typical_and_not_of_those_that_are_everywhere():
    tags_of = [["cats", "hot"]] * 6 + [["cats", "rare", "hot"]] + [["cars", "hot"]] * 7
    titles = ["", "a cat", *["a cat"] * 4, "cats again", *[""] * 7]
    members = sparse.csr_matrix(np.eye(2)[[0] * 7 + [1] * 7] * np.linspace(0.7, 0.9, 14)[:, None])
    tags = ["cars", "cats", "hot", "rare"]
    cats, cars = describe(["t000", "t001"], members, incidence(tags_of, tags), tags, titles)
    # within t000: cats 7 / (7 * 7/14 + 1) = 1.56, hot 7 / (7 * 14/14 + 1) = 0.88, rare 1 / (7 * 1/14 + 1) = 0.67.
    assert cats["tags"] == ["cats", "hot", "rare"]
    assert cats == {**cats, "id": "t000", "name": "cats · hot · rare", "titles": ["cats again", "a cat"], "size": 7}
    assert (cars["tags"], cars["titles"], cars["size"]) == (["cars", "hot"], [], 7)


def test_a_topic_without_tags_is_named_by_its_nearest_title():
    members = sparse.csr_matrix(np.array([[0.9], [0.95]]))
    assert describe(["t000"], members, incidence([[], []], []), [], ["far", "near"])[0]["name"] == "near"
