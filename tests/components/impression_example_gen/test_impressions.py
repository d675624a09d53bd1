"""The point-in-time logic, by hand and against an oracle that looks at every pair of events."""

import dataclasses
import itertools
import math
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.impression_example_gen import asking
from components.impression_example_gen.impressions import Splits
from transform.contract import ContractError

TIME = Splits("time", 0.5, 0.25, 0.25, before=(50, 70))
_ids = st.sampled_from
_rows = st.lists(
    st.tuples(
        _ids(["ann", "bob", "eve", "unknown"]),
        _ids(["a", "b", "c", "d", "unknown"]),
        st.integers(1, 9).map(lambda tens: tens * 10),
        st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, None]),
    ),
    max_size=30,
)


def test_two_events_of_one_second_do_not_see_each_other(run_steps):
    rows = run_steps([("ann", "a", 10, 5.0), ("ann", "b", 20, 5.0), ("ann", "c", 20, 5.0), ("ann", "d", 30, 1.0)])
    assert [row["history"] for row in rows[:3]] == [[], ["a"], ["a"]]
    assert [row["user_events"] for row in rows] == [0, 1, 1, 3]


def test_history_excludes_the_impression_itself_and_negatives(run_steps):
    rows = run_steps([("ann", "a", 10, 5.0), ("ann", "b", 20, 1.0), ("ann", "c", 30, 5.0)])
    assert [row["history"] for row in rows] == [[], ["a"], ["a"]]


def test_history_keeps_the_last_entries_most_recent_last(run_steps):
    rows = run_steps([("ann", video, at, 4.0) for at, video in enumerate("abcd", 1)])
    assert rows[3]["history"] == ["b", "c"]  # max_length 2
    assert [row["history_length"] for row in rows] == ["0", "1-5", "1-5", "1-5"]


def test_history_length_counts_beyond_what_is_kept(run_steps):
    rows = run_steps([("ann", "a", at, 5.0) for at in range(1, 24)])
    assert [rows[n]["history_length"] for n in (0, 1, 5, 6, 20, 21)] == ["0", "1-5", "1-5", "6-20", "6-20", "21+"]


def test_counters_and_rates_by_hand(run_steps):
    # Video a before 40: bob liked it, eve was neutral. Ann before 40: one negative.
    rows = run_steps([("bob", "a", 10, 5.0), ("eve", "a", 20, 3.0), ("ann", "b", 30, 1.0), ("ann", "a", 40, 5.0)])
    last = rows[-1]
    assert (last["video_events"], last["video_rate"]) == (2, 0.5)  # (1 + 1) / (2 + 2)
    assert (last["user_events"], last["user_rate"]) == (1, pytest.approx(1 / 3))  # (0 + 1) / (1 + 2)


def test_a_hash_split_lets_no_label_of_valid_or_test_into_any_row(run_steps):
    """Whatever becomes of the labels that were drawn for valid and test, no feature of any row changes."""
    events = [("ann", "abcd"[at % 4], at, 5.0 if at % 3 else 1.0) for at in range(1, 41)]
    splits = Splits("hash", 0.5, 0.25, 0.25)
    rows = run_steps(events, splits=splits)
    drawn = {row["at"] for row in rows if row["split"] != "train"}
    assert 10 < len(drawn) < 30
    turned = [(u, v, at, 6.0 - label if at in drawn else label) for u, v, at, label in events]
    past = ("history", "user_events", "user_rate", "video_events", "video_rate")
    for row, other in zip(rows, run_steps(turned, splits=splits), strict=True):
        assert [row[name] for name in past] == [other[name] for name in past]


@settings(max_examples=40)
@given(rows=_rows)
def test_a_span_has_the_impressions_of_its_time_as_they_would_be_among_all(run_steps, rows):
    """What came earlier is known to them, and what came later is not read."""
    whole = run_steps(rows, splits=TIME)
    spanned = run_steps(rows, splits=dataclasses.replace(TIME, since=30, until=60))
    outcomes = [row["outcome"] for row in spanned]
    assert outcomes == [_outcome_in_span(row) for row in whole]
    inside = [row for row in whole if row["outcome"] == "impression" and 30 <= row["at"] < 60]
    assert [row for row in spanned if row["outcome"] == "impression"] == inside


def _outcome_in_span(row: dict[str, Any]) -> str:
    if row["outcome"].startswith("missing key"):
        return row["outcome"]
    return "before the span" if row["at"] < 30 else "after the span" if row["at"] >= 60 else row["outcome"]


def test_age_is_in_hours_and_never_negative(run_steps):
    rows = run_steps([("ann", "a", 5400, 5.0), ("ann", "b", 5400, 5.0), ("ann", "c", 5400, 5.0)])
    assert [row["age"] for row in rows] == [1.5, 0.0, None]  # published at 0, 7200 and nobody knows when


def test_columns_of_user_and_video_are_joined_and_missing_ones_stay_missing(run_steps):
    ann, bob = run_steps([("ann", "a", 3600 * 25, 5.0), ("bob", "b", 3600 * 25, 1.0)])
    assert (ann["country"], ann["title"], ann["tags"], ann["look"]) == ("nl", "Cats, cats", ["pets", "fun"], [1.0, 0.0])
    assert (bob["country"], bob["title"], bob["tags"], bob["look"]) == (None, None, [], None)
    assert (ann["seconds"], bob["seconds"], ann["hour"], ann["liked"], bob["liked"]) == (10.0, None, "1", 1.0, 0.0)


def test_outcomes_tell_neutral_and_each_reason_of_rejection(run_steps):
    rows = run_steps(
        [
            ("ann", "a", 1, 3.0),
            ("ann", "a", 2, None),
            ("ann", "a", 3, math.nan),
            ("ann", "gone", 4, 5.0),
            ("gone", "a", 5, 5.0),
            (None, "a", 6, 5.0),
            ("ann", "", 7, 5.0),
            ("ann", "a", 8, math.inf),
            ("ann", "a", 9, 5.5),
            ("ann", "a", 10, 0.5),
            ("ann", "a", 1_600_000_000_000, 5.0),
            ("ann", "a", 90_000_000_000, 5.0),
            ("ann", "a", 0, 5.0),
        ]
    )
    missing, beyond = "missing label", "label out of range"
    expected = ["neutral", missing, missing, "unknown video", "unknown user", "missing key", "missing key", missing]
    expected = ["time not positive", *expected, beyond, beyond, "time in the future", "time in milliseconds"]
    assert [row["outcome"] for row in rows] == expected


def test_rows_out_of_range_are_no_events(run_steps):
    wrong = [("ann", "a", -5, 5.0), ("ann", "a", 0, 5.0), ("ann", "a", 1, 9.0)]
    last = run_steps([*wrong, ("ann", "a", 1_600_000_000, 5.0)])[-1]
    assert (last["outcome"], last["video_events"], last["user_events"], last["history"]) == ("impression", 0, 0, [])


def test_without_categories_their_counters_are_missing_and_not_those_of_the_user(
    contract, entities, make_world, tmp_path
):
    tastes = {f.name: f.model_copy(update={"optional": True}) for f in contract.features if f.name.startswith("taste")}
    lenient = contract.model_copy(update={"features": tuple(tastes.get(f.name, f) for f in contract.features)})
    plain = entities["videos"].drop(["primary_category"])
    world = make_world(tmp_path, [("ann", "a", 1, 5.0), ("ann", "b", 2, 5.0)], videos=plain)
    (row,) = asking.serving_rows(world, lenient, "ann", ["c"], at=10)
    assert row["user_events"] == 2
    assert not {"taste_events", "taste_rate"} & set(row)
    with pytest.raises(ContractError, match=r"videos\.parquet: the column 'primary_category' is missing"):
        asking.serving_rows(world, contract, "ann", ["c"], at=10)


def test_events_without_a_row_in_users_or_videos_happened_all_the_same(run_steps):
    rows = run_steps([("gone", "a", 1, 5.0), ("ann", "gone", 2, 5.0), ("ann", "a", 3, None), ("ann", "a", 4, 5.0)])
    last = rows[-1]
    assert (last["video_events"], last["user_events"], last["history"]) == (1, 1, ["gone"])


def test_split_by_time_cuts_where_the_wanted_share_lies_before():
    # Ten events, one a second from 100: eight before 108, nine before 109.
    splits = Splits("time", 0.8, 0.1, 0.1).cut(100, 1, np.ones(10, np.int64))
    assert splits.before == (108, 109)
    nobody = np.zeros(3, np.uint64)
    assert splits.assign(nobody, nobody, np.array([107, 108, 109])).tolist() == [0, 1, 2]


def test_split_by_time_never_divides_a_second():
    splits = Splits("time", 0.5, 0.25, 0.25).cut(0, 5, np.array([1, 6, 0, 3]))
    assert splits.before == (10, 20)  # 7 of 10 before 10 are the first at least 5; all 10 are the first at least 7.5


def test_hash_split_is_stable_and_near_its_fractions():
    users, videos = np.arange(20_000, dtype=np.uint64), np.full(20_000, 7, np.uint64)
    split = Splits("hash", 0.8, 0.1, 0.1).assign(users, videos, np.full(20_000, 3))
    assert np.bincount(split) / 20_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.01)  # 3.5 standard deviations
    assert "".join(map(str, split[:20])) == "00000000000000220001"  # what it was when first written


@pytest.mark.parametrize(
    "text",
    [
        '{"by": "time", "train": 0.8, "valid": 0.1, "test": 0.2}',
        '{"by": "user", "train": 0.8, "valid": 0.1, "test": 0.1}',
        '{"by": "time", "train": 0.9, "valid": 0.1}',
        '{"by": "time", "train": 0.9, "valid": 0.1, "test": 0.0}',
    ],
)
def test_splits_that_make_no_sense_are_refused(text):
    with pytest.raises(ContractError, match="splits: expected"):
        Splits.from_json(text)


def test_novelty_asks_for_an_impression_in_the_train_split(run_steps):
    # Train is before 50. Bob was only neutral then, and d was only seen by him.
    rows = run_steps(
        [("ann", "a", 10, 5.0), ("bob", "d", 20, 3.0), ("ann", "d", 80, 5.0), ("bob", "a", 90, 1.0)], splits=TIME
    )
    assert [(row["user_novelty"], row["video_novelty"]) for row in rows[2:]] == [("known", "new"), ("new", "known")]


CATEGORY = {"a": "pets", "b": "pets", "c": "games"}  # d has none


def test_counters_of_a_category_are_the_users_own(run_steps):
    # Before 50 ann met pets twice (a liked, b not) and games once; bob's liking of b is not hers.
    rows = run_steps(
        [
            ("ann", "a", 10, 5.0),
            ("ann", "b", 20, 1.0),
            ("ann", "c", 30, 5.0),
            ("bob", "b", 40, 5.0),
            ("ann", "b", 50, 5.0),
        ]
    )
    assert [row["taste_events"] for row in rows] == [0, 1, 0, 0, 2]
    assert rows[-1]["taste_rate"] == 0.5  # (1 + 1) / (2 + 2)


def _oracle(rows, videos, users):
    """Every row's outcome and derived features, by looking at every other row."""
    events = [row for row in rows if row[3] is not None and not math.isnan(row[3])]

    def past(index, key, at):
        before = [e for e in events if e[index] == key and e[2] < at]
        positives = sorted((e for e in before if e[3] > 3), key=lambda e: e[2])
        return len(before), positives

    def known(index, key):
        return "known" if any(e[index] == key and e[2] < 50 and e[3] != 3 for e in events) else "new"

    for user, video, at, rating in rows:
        (user_events, liked), (video_events, likes) = past(0, user, at), past(1, video, at)
        same = [e for e in events if e[0] == user and e[2] < at and CATEGORY.get(e[1]) == CATEGORY.get(video)]
        yield {
            "outcome": "missing label"
            if (user, video, at, rating) not in events
            else "unknown user"
            if user not in users and video in videos
            else "unknown video"
            if video not in videos
            else "neutral"
            if rating == 3
            else "impression",
            "liked": None if rating in (None, 3) or math.isnan(rating) else float(rating > 3),
            "split": "train" if at < 50 else "valid" if at < 70 else "test",
            "user_events": user_events,
            "user_rate": np.float32((len(liked) + 1) / (user_events + 2)),
            "video_events": video_events,
            "video_rate": np.float32((len(likes) + 1) / (video_events + 2)),
            "taste_events": len(same),
            "taste_rate": np.float32((sum(e[3] > 3 for e in same) + 1) / (len(same) + 2)),
            "times_of_history": [e[2] for e in liked][-2:],
            "user_novelty": known(0, user),
            "video_novelty": known(1, video),
            "history_length": "0" if not liked else "1-5" if len(liked) <= 5 else "6-20" if len(liked) <= 20 else "21+",
            "hour": str(datetime.fromtimestamp(at, timezone.utc).hour),
        }


@settings(max_examples=60)
@given(rows=_rows)
def test_every_row_is_as_the_oracle_says(run_steps, rows):
    videos, users = {"a", "b", "c", "d"}, {"ann", "bob", "eve"}
    # The entries of a history that fall in one second have no order of their own: compare the times they stand for.
    expected = {}
    for row, answer in zip(rows, _oracle(rows, videos, users), strict=True):
        answer.pop("times_of_history")
        expected.setdefault((row[0], row[1], row[2]), []).append(answer)
    got = {}
    for row in run_steps(rows, splits=TIME, parts=3):
        answer = {name: row[name] for name in next(iter(expected.values()))[0]}
        got.setdefault((row["user_id"], row["video_id"], row["at"]), []).append(answer)
    assert got.keys() == expected.keys()
    for key, answers in expected.items():
        assert sorted(map(repr, got[key])) == sorted(repr({**a}) for a in _plain(answers))


def _plain(answers):
    """With numpy's numbers as Python's, as rows hold them."""
    return [{k: float(v) if isinstance(v, (int, np.floating)) else v for k, v in answer.items()} for answer in answers]


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(_ids(["ann", "bob"]), _ids("abcd"), st.integers(1, 30), st.sampled_from([1.0, 5.0]))))
def test_histories_are_the_last_strictly_earlier_positives(run_steps, rows):
    rows = list({(user, at): (user, video, at, rating) for user, video, at, rating in rows}.values())  # no ties in time
    for row in run_steps(rows, parts=2):
        earlier = sorted(
            (at, video) for user, video, at, rating in rows if user == row["user_id"] and rating > 3 and at < row["at"]
        )
        assert row["history"] == [video for _, video in earlier][-2:]


@settings(max_examples=40)
@given(rows=_rows, data=st.data())
def test_order_of_rows_and_number_of_partitions_change_nothing(run_steps, rows, data):
    expected = run_steps(rows, splits=TIME, parts=1)
    assert run_steps(data.draw(st.permutations(rows)), splits=TIME, parts=7) == expected


def test_events_of_one_second_enter_a_history_in_the_same_order_whatever_the_order_of_rows(run_steps):
    rows = [("ann", "a", 1, 5.0), ("ann", "b", 1, 5.0), ("ann", "c", 1, 5.0), ("ann", "d", 2, 5.0)]
    expected = run_steps(rows)[-1]["history"]
    assert all(run_steps(list(order))[-1]["history"] == expected for order in itertools.permutations(rows))


@settings(max_examples=40)
@given(rows=_rows)
def test_no_interaction_is_lost(run_steps, rows):
    assert len(run_steps(rows, parts=4)) == len(rows)


def test_an_unknown_user_gets_rows_without_what_nobody_knows(make_world, contract, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0), ("bob", "a", 2, 1.0)])
    (row,) = asking.serving_rows(world, contract, "nobody", ["a"], at=3600)
    assert row == {
        "user_id": "nobody",
        "history": [],
        "user_events": 0.0,
        "user_rate": 0.5,
        "taste_events": 0.0,
        "taste_rate": 0.5,
        "video_id": "a",
        "title": "Cats, cats",
        "tags": ["pets", "fun"],
        "seconds": 10.0,
        "look": [1.0, 0.0],
        "video_events": 2.0,
        "video_rate": 0.5,
        "age": 1.0,
        "hour": "1",
    }


def test_serving_rows_answer_every_video_in_the_order_asked(make_world, contract, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0)])
    everything = asking.serving_rows(world, contract, "ann", None, at=5)
    assert [row["video_id"] for row in everything] == ["a", "b", "c", "d"]
    asked = asking.serving_rows(world, contract, "ann", ["d", "a", "new"], at=5)
    assert [row["video_id"] for row in asked] == ["d", "a", "new"]
    assert asked[:2] == [everything[3], everything[0]]
    assert "title" not in asked[2]
    assert asking.serving_rows(world, contract, "ann", [], at=5) == []


def test_serving_rows_do_not_know_the_second_they_are_asked_in(make_world, contract, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0), ("ann", "b", 5, 5.0)])
    at_five, at_six = (asking.serving_rows(world, contract, "ann", ["c"], at=at)[0]["history"] for at in (5, 6))
    assert (at_five, at_six) == (["a"], ["a", "b"])
