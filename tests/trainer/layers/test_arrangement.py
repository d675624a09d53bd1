"""How candidates become a feed, by hand and against an oracle that goes step by step."""

import math

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.layers.arrangement import Kept, arrange


def arranged(scores, groups, kept=(), places=3, there=None):
    """Columns chosen of one row of candidates."""
    row = [[bool(t) for t in (there or [True] * len(scores))]]
    given_groups = [(tf.constant([group], tf.int32), most) for group, most in groups]
    given_kept = [Kept(tf.constant([these]), share) for these, share in kept]
    answer = arrange(
        tf.constant([scores], tf.float32), tf.constant(row), given_groups, given_kept, tf.constant([places])
    )
    return answer.numpy()[0].tolist()


def test_without_rules_the_best_come_first_and_equal_ones_as_they_are():
    assert arranged([0.1, 0.9, 0.5, 0.9], []) == [1, 3, 2]


def test_the_third_of_one_author_is_set_back_behind_everybody_else():
    # by score: 0 1 2 3 4; the author of 0, 1 and 2 has two places, so 2 comes last
    assert arranged([0.9, 0.8, 0.7, 0.6, 0.5], [([7, 7, 7, 8, 9], 2)], places=5) == [0, 1, 3, 4, 2]


def test_who_is_set_back_by_one_rule_does_not_count_for_the_next():
    # 1 falls to the author's cap; of topic 5 there are then 0 and 2 left, and 3 is the third
    authors, topics = ([1, 1, 2, 3, 4], 1), ([5, 5, 5, 5, 6], 2)
    assert arranged([0.9, 0.8, 0.7, 0.6, 0.5], [authors, topics], places=5) == [0, 2, 4, 1, 3]


def test_no_group_is_never_capped():
    assert arranged([0.9, 0.8, 0.7], [([-1, -1, -1], 1)]) == [0, 1, 2]


def test_a_share_of_the_places_is_kept_and_rounded_up_and_the_order_stays():
    fresh = [False, False, False, True, True]
    assert arranged([0.9, 0.8, 0.7, 0.6, 0.5], [], [(fresh, 0.25)], places=3) == [0, 1, 3]
    assert arranged([0.9, 0.8, 0.7, 0.6, 0.5], [], [(fresh, 0.5)], places=3) == [0, 3, 4]


def test_nothing_is_kept_where_there_is_nobody_to_keep_it_for():
    assert arranged([0.9, 0.8, 0.7], [], [([False] * 3, 1.0)]) == [0, 1, 2]


def test_candidates_that_are_not_there_are_never_chosen():
    assert arranged([0.9, 0.8, 0.7], [], there=[False, True, True]) == [1, 2, -1]


def oracle(scores, there, groups, kept, places):
    order = sorted((i for i in range(len(scores)) if there[i]), key=lambda i: (-scores[i], i))
    free = list(order)
    for group, most in groups:
        counts, passed = {}, []
        for i in free:
            counts[group[i]] = counts.get(group[i], 0) + 1
            if most is None or group[i] < 0 or counts[group[i]] <= most:
                passed.append(i)
        free = passed
    order = free + [i for i in order if i not in free]
    certain = []
    for these, share in kept:
        wanted = math.ceil(share * places - 1e-9)
        certain += [i for i in [i for i in free if these[i]][:wanted] if i not in certain]
        certain = [i for i in order if i in certain][:places]
    rest = [i for i in order if i not in certain][: places - len(certain)]
    chosen = [i for i in order if i in certain or i in rest]
    return chosen + [-1] * (places - len(chosen))


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 12), places=st.integers(1, 8))
def test_as_the_oracle(data, n, places):
    def row(values):
        return data.draw(st.lists(values, min_size=n, max_size=n))

    scores = row(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    there = row(st.booleans())
    caps = st.one_of(st.none(), st.integers(1, 3))
    groups = [(row(st.integers(-1, 3)), data.draw(caps)) for _ in range(2)]
    kept = [(row(st.booleans()), data.draw(st.sampled_from([0.0, 0.1, 0.5]))) for _ in range(2)]
    assert arranged(scores, groups, kept, places, there) == oracle(scores, there, groups, kept, places)


def test_rows_of_a_batch_do_not_see_each_other():
    random = np.random.default_rng(0)
    scores, there = random.random((5, 20)).astype(np.float32), random.random((5, 20)) < 0.8
    group, places = random.integers(-1, 4, (5, 20)).astype(np.int32), np.array([3, 20, 0, 1, 7], np.int32)
    fresh = random.random((5, 20)) < 0.3
    parts = [
        arrange(*map(tf.constant, (scores[i], there[i])), [(group[i], 2)], [Kept(fresh[i], 0.4)], places[i])
        for i in [slice(0, 5), *(slice(i, i + 1) for i in range(5))]
    ]
    assert parts[0].shape[1] == 20
    for row, alone in zip(parts[0].numpy(), parts[1:], strict=True):
        assert row[row >= 0].tolist() == [i for i in alone.numpy()[0] if i >= 0]
