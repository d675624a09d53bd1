"""The check: row faults are quarantined, each with its reason; nothing is lost on the way."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.world.check import Checked, check_tables, check_world
from components.world.tables import write_table
from transform import contract
from transform.contract import ContractError

NOW = 2_000
RULES = contract.parse(
    """
name: tiny
vocabularies: {user_id: {}, video_id: {}, tag: {}, word: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 4, source: videos.title}
  - {name: tags, kind: ids, role: video, vocabulary: tag, max_length: 4, source: videos.tags}
  - {name: duration, kind: number, role: video, source: videos.duration_seconds, minimum: 0}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look, optional: true}
  - {name: age, kind: number, role: video, source: derived.video_age_hours}
  - {name: taste, kind: number, role: context, source: derived.user_category_events}
  - {name: liked, kind: number, role: label, source: interactions.rating, minimum: 1, maximum: 5,
     positive_above: 3, negative_below: 3}
"""
)


def users(**columns):
    return pa.table({"user_id": ["u1", "u2"], **columns})


def videos(**columns):
    return pa.table(
        {
            "video_id": ["v1", "v2"],
            "title": ["one", "two"],
            "tags": [["a", "b"], []],
            "duration_seconds": [10.0, None],
            "published_at": [500, 600],
            "primary_category": ["a", None],
            **columns,
        }
    )


def interactions(**columns):
    return pa.table(
        {
            "user_id": ["u1", "u1", "u2"],
            "video_id": ["v1", "v2", "v1"],
            "at": [1000, 1001, 1002],
            "rating": [5.0, 3.0, 1.0],
            **columns,
        }
    )


def check(users=users(), videos=videos(), interactions=interactions(), now=NOW) -> Checked:  # noqa: B008
    return check_tables(users, videos, interactions, RULES, now)


def test_a_sound_world_passes_whole():
    checked = check()
    assert checked.users == users()
    assert checked.interactions == interactions()
    assert (len(checked.videos), len(checked.rejected), checked.counts) == (2, 0, {})


def test_an_optional_column_that_is_absent_is_only_noted():
    assert check().notes == ["videos has no column 'look': the optional feature 'look' stays empty"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", "u9", "unknown user_id"),
        ("video_id", "v9", "unknown video_id"),
        ("user_id", None, "missing user_id"),
        ("video_id", "", "missing video_id"),
        ("at", None, "missing at"),
        ("at", 1_600_000_000_000, "at in milliseconds, expected unix seconds"),
        ("at", NOW + 1, "at in the future"),
        ("at", -5, "at is not positive"),
        ("at", 0, "at is not positive"),
        ("rating", float("nan"), "rating is missing or NaN"),
        ("rating", None, "rating is missing or NaN"),
        ("rating", 0.5, "rating below 1"),
        ("rating", 6.0, "rating above 5"),
        ("rating", float("inf"), "rating is infinite"),
    ],
)
def test_a_faulty_interaction_is_quarantined_with_its_reason(column, value, reason):
    sound = interactions()[column].to_pylist()
    checked = check(
        interactions=interactions(**{column: pa.array([sound[0], value, sound[2]], interactions()[column].type)})
    )
    assert checked.counts == {f"interactions: {reason}": 1}
    assert checked.interactions["at"].to_pylist()[::1] == [1000, 1002]
    (row,) = checked.rejected.to_pylist()
    assert (row["table"], row["row"], row["reason"]) == ("interactions", 1, reason)
    shown = str(value) if isinstance(value, float) and not np.isfinite(value) else value
    assert json.loads(row["content"])[column] == shown


def test_the_moment_of_the_check_itself_is_not_the_future():
    assert check(interactions=interactions(at=[1000, 1001, NOW])).counts == {}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"published_at": [500, 1_600_000_000_000]}, "published_at in milliseconds, expected unix seconds"),
        ({"published_at": [500, NOW + 1]}, "published_at in the future"),
        ({"duration_seconds": [1.0, -1.0]}, "duration_seconds below 0"),
        ({"look": [[1.0, 2.0], [1.0]]}, "look has not 2 values"),
        ({"look": [[1.0, 2.0], [1.0, float("nan")]]}, "look holds NaN"),
    ],
)
def test_a_faulty_video_goes_and_takes_its_interactions_along(columns, reason):
    checked = check(videos=videos(**columns))
    assert checked.videos["video_id"].to_pylist() == ["v1"]
    assert checked.counts == {f"videos: {reason}": 1, "interactions: unknown video_id": 1}  # v2 occurs once


@pytest.mark.parametrize(("default", "counts"), [(1.0, {}), (None, {"interactions: importance is missing or NaN": 1})])
def test_a_missing_weight_is_a_fault_unless_it_has_a_default(default, counts):
    weight = contract.Feature(
        name="importance", role="weight", source="interactions.importance", kind="number", default=default
    )
    rules = RULES.model_copy(update={"features": (*RULES.features, weight)})
    checked = check_tables(users(), videos(), interactions(importance=pa.array([2.0, None, 3.0])), rules, NOW)
    assert checked.counts == counts


def test_a_missing_vector_is_no_fault():
    assert check(videos=videos(look=[[1.0, 2.0], None])).counts == {}
    assert check(videos=videos(look=[[], [1.0, 2.0]])).counts == {}


def test_of_duplicate_ids_the_first_sound_row_stays():
    twice = videos(video_id=["v1", "v1"], duration_seconds=[-1.0, 7.0])
    checked = check(videos=twice, interactions=interactions(video_id=["v1"] * 3))
    assert checked.videos["duration_seconds"].to_pylist() == [7.0]
    checked = check(users=pa.table({"user_id": ["u1", "u2", "u1"], "n": [1, 2, 3]}))
    assert checked.users["n"].to_pylist() == [1, 2]
    assert checked.counts == {"users: duplicate user_id": 1}
    assert checked.rejected["row"].to_pylist() == [2]


def test_text_that_is_not_utf8_is_quarantined_and_shown_with_replacements():
    titles = pa.array([b"one", "café".encode("latin-1")], pa.binary())
    checked = check(videos=videos(title=titles))
    assert checked.counts["videos: title is not UTF-8"] == 1
    assert json.loads(checked.rejected["content"][0].as_py())["title"] == "caf\ufffd"


def test_a_list_with_text_that_is_not_utf8_is_quarantined():
    checked = check(videos=videos(tags=pa.array([[b"a"], [b"ok", b"\xff"]])))
    assert checked.counts["videos: tags is not UTF-8"] == 1
    assert checked.videos["video_id"].to_pylist() == ["v1"]


def test_a_column_that_nobody_asked_for_costs_nothing():
    """Bytes that are no text, and lists of what is neither numbers nor text."""
    boxes = pa.array([[{"x": 1}], None], pa.list_(pa.struct([("x", pa.int64())])))
    checked = check(videos=videos(thumbnail=pa.array([b"\xff\xd8", b"\x89"]), boxes=boxes))
    assert checked.counts == {}
    assert checked.videos["boxes"].to_pylist() == [[{"x": 1}], None]


def test_integer_ids_meet_string_ids():
    checked = check(users=pa.table({"user_id": [1, 2]}), interactions=interactions(user_id=["1", "2", "3"]))
    assert checked.users["user_id"].to_pylist() == ["1", "2"]
    assert checked.counts == {"interactions: unknown user_id": 1}


def without(table, column):
    return table.drop([column])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"users": users().slice(0, 0)}, r"users: expected rows, got an empty table"),
        ({"interactions": without(interactions(), "at")}, r"interactions: the column 'at' is missing: the file has"),
        (
            {"interactions": without(interactions(), "rating")},
            r"'rating' \(feature 'liked' of the contract\) is missing",
        ),
        ({"videos": without(videos(), "published_at")}, r"'published_at' \(feature 'age' of the contract\) is missing"),
        (
            {"videos": without(videos(), "primary_category")},
            r"'primary_category' \(feature 'taste' of the contract\) is",
        ),
        ({"videos": without(videos(), "title").append_column("titel", [["a", "b"]])}, r"did you mean 'titel'\?"),
        (
            {"interactions": interactions(rating=["5", "3", "1"])},
            r"column rating: expected double, got string: cast it",
        ),
        (
            {"interactions": interactions(at=["a", "b", "c"])},
            r"column at: expected int64, got string: cast it to integer",
        ),
        ({"interactions": interactions(at=[1.5, 2.0, 3.0])}, r"column at: expected int64, got double: .*truncated"),
        (
            {"videos": videos(tags=["a|b", "c"])},
            r"column tags: expected list<item: string>, got string: write a list<str",
        ),
        (
            {"users": pa.table({"user_id": [1.0, 2.0]})},
            r"column user_id: expected string, got double: cast it to string",
        ),
        (
            {"interactions": interactions(at=[1_600_000_000_000, None, 1_600_000_000_001])},
            r"column at, row 0: expected unix seconds, got milliseconds or finer in every row .*divide .* by 1000",
        ),
        ({"videos": videos(look=[None, [1.0, 2.0, 3.0]])}, r"column look, row 1: expected 2 values, got 3"),
        (
            {"interactions": interactions(user_id=["x", "y", None])},
            r"no row is left, 2 of 3 for one reason: unknown user_id",
        ),
    ],
)
def test_a_faulty_table_stops_with_where_what_and_remedy(tables, message):
    with pytest.raises(ContractError, match=message):
        check(**tables)


def test_the_check_of_a_folder_names_the_file(tmp_path):
    for name, data in (("users", users()), ("videos", videos(tags=["a", "b"])), ("interactions", interactions())):
        write_table(str(tmp_path), name, data)
    with pytest.raises(ContractError, match=r"videos\.parquet, column tags: expected list"):
        check_world(str(tmp_path), RULES)
    write_table(str(tmp_path), "videos", videos())
    checked = check_world(str(tmp_path), RULES, NOW)
    assert checked.interactions == interactions()
    assert check_world(str(tmp_path), RULES).counts == {}  # by the clock, 1970 is past


ids = st.sampled_from(["a", "b", "c", "", None])
times = st.sampled_from([1, 50, NOW, NOW + 1, 10**12, -1, None])
ratings = st.sampled_from([1.0, 3.0, 5.0, 9.0, float("nan"), None])


@settings(max_examples=60)
@given(
    st.lists(ids, max_size=6),
    st.lists(ids, max_size=6),
    st.lists(st.tuples(ids, ids, times, ratings), max_size=20),
)
def test_every_row_is_either_kept_or_rejected_and_counted(user_ids, video_ids, events):
    # One sound row each, so that no table is refused as a whole.
    user_ids, video_ids, events = ["a", *user_ids], ["a", *video_ids], [("a", "a", 1, 5.0), *events]
    some_videos = pa.table(
        {
            "video_id": pa.array(video_ids, pa.string()),
            "title": ["t"] * len(video_ids),
            "tags": pa.array([[]] * len(video_ids), pa.list_(pa.string())),
            "duration_seconds": [1.0] * len(video_ids),
            "published_at": [0] * len(video_ids),
            "primary_category": ["a"] * len(video_ids),
        }
    )
    columns = ("user_id", pa.string()), ("video_id", pa.string()), ("at", pa.int64()), ("rating", pa.float64())
    values = zip(*events, strict=True)
    given_tables = {
        "users": pa.table({"user_id": pa.array(user_ids, pa.string())}),
        "videos": some_videos,
        "interactions": pa.table({name: pa.array(v, kind) for (name, kind), v in zip(columns, values, strict=True)}),
    }
    checked = check(**given_tables)
    rejected = checked.rejected["table"].to_pylist()
    for name, data in given_tables.items():
        assert len(getattr(checked, name)) + rejected.count(name) == len(data)
        assert sum(n for reason, n in checked.counts.items() if reason.startswith(f"{name}: ")) == rejected.count(name)
    # Oracle: what is kept is exactly what a plain reading of the rules keeps.
    sound = {i for i in user_ids if i}, {i for i in video_ids if i}
    kept = [
        e for e in events if e[0] in sound[0] and e[1] in sound[1] and e[2] in (1, 50, NOW) and e[3] in (1.0, 3.0, 5.0)
    ]
    assert [tuple(row.values()) for row in checked.interactions.to_pylist()] == kept
    assert checked.users["user_id"].to_pylist() == list(dict.fromkeys(i for i in user_ids if i))


def test_feedback_on_frames_is_checked_where_it_is_given():
    feedback = {
        "user_id": ["u1", "u2", "gone", "u1", "u1", "u1"],
        "video_id": ["v1", "v2", "v1", "v1", "v2", "v1"],
        "frame_index": [0, 3, 1, -1, 2, 0],
        "liked": [1.0, 0.0, 1.0, 1.0, None, 1.0],
    }
    given = (users(), videos(), interactions(), RULES, NOW)
    checked = check_tables(*given, frame_feedback=pa.table(feedback))
    assert checked.frame_feedback.num_rows == 2
    assert checked.tables["frame_feedback"] is checked.frame_feedback
    reasons = ("unknown user_id", "frame_index below 0", "liked is missing or NaN", "duplicate frame_index")
    assert checked.counts == {f"frame_feedback: {reason}": 1 for reason in reasons}
    assert set(check_tables(*given).tables) == {"users", "videos", "interactions"}
    nothing = check_tables(*given, frame_feedback=pa.table(feedback).slice(0, 0))
    assert nothing.notes == [*checked.notes, "frame_feedback has no row: nothing is known of frames"]
    assert check_tables(*given, frame_feedback=pa.table(feedback).slice(2, 1)).frame_feedback.num_rows == 0
    del feedback["liked"]
    with pytest.raises(ContractError, match="liked"):
        check_tables(*given, frame_feedback=pa.table(feedback))
