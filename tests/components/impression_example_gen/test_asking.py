"""What a request for a feed tells of a user, and the tables of videos: together they are the rows of impressions."""

import math

import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.impression_example_gen import asking
from components.world import tables
from transform import feed
from transform.contract import ContractError

CATEGORY = {"a": "pets", "b": "pets", "c": "games", "d": ""}
_rows = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob"]),
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(1, 9),
        st.sampled_from([1.0, 3.0, 5.0]),
    ),
    max_size=15,
)


def videos_by_id(batch: pa.RecordBatch) -> dict[str, dict]:
    """By id, each feature's values in an encoded example; features without any are left out."""
    found = {}
    for record in RecordBatchToExamplesEncoder().encode(batch):
        values = {}
        for name, feature in tf.train.Example.FromString(record).features.feature.items():
            values[name] = [*feature.bytes_list.value, *feature.float_list.value, *feature.int64_list.value]
        found[values["video_id"][0].decode()] = values
    return found


@settings(max_examples=25)
@given(rows=_rows, at=st.integers(2, 10), user=st.sampled_from(["ann", "bob", "nobody"]))
def test_user_and_video_put_together_are_the_row_of_an_impression(
    make_world, contract, tmp_path_factory, rows, at, user
):
    world = make_world(tmp_path_factory.mktemp("world"), [("eve", "a", 1, 5.0), *rows])
    context = asking.user_context(world, contract, user, at)
    catalogue = videos_by_id(asking.feed_catalogue(world, contract, at))
    for expected in asking.serving_rows(world, contract, user, None, at):
        video = expected["video_id"]
        events, rate = context.categories.get(CATEGORY[video], feed.NEVER_MET)
        assert (expected["taste_events"], expected["taste_rate"]) == pytest.approx((events, rate))
        for feature in contract.inputs:
            if feature.about == "user":
                assert context.features.get(feature.name) == expected.get(feature.name)
            elif feature.about == "video":
                values = [v.decode() if isinstance(v, bytes) else v for v in catalogue[video][feature.name]]
                wanted = expected.get(feature.name)
                if wanted is None:
                    assert values in ([""], [0.0, 0.0]) or math.isnan(values[0])
                else:
                    assert values == pytest.approx(wanted if isinstance(wanted, list) else [wanted])
        published = {"a": 0, "b": 7200, "c": feed.UNKNOWN_TIME, "d": 0}[video]
        assert catalogue[video][feed.PUBLISHED_AT] == [published]
        assert catalogue[video][feed.PRIMARY_CATEGORY] == [CATEGORY[video].encode()]


def test_popularity_counts_what_was_liked_before_the_instant(make_world, contract, tmp_path):
    events = [("ann", "a", 1, 5.0), ("bob", "a", 2, 5.0), ("bob", "b", 2, 1.0), ("ann", "c", 9, 5.0)]
    catalogue = videos_by_id(asking.feed_catalogue(make_world(tmp_path, events), contract, at=9))
    assert {video: values[feed.POSITIVES] for video, values in catalogue.items()} == {
        "a": [2.0],
        "b": [0.0],
        "c": [0.0],
        "d": [0.0],
    }


def test_seen_is_every_video_the_user_met_in_order_of_their_ids(make_world, contract, tmp_path):
    world = make_world(tmp_path, [("ann", "c", 1, 5.0), ("ann", "a", 2, 1.0), ("bob", "b", 3, 5.0)])
    assert asking.user_context(world, contract, "ann", 10).seen == ["a", "c"]
    assert asking.user_context(world, contract, "ann", 2).seen == ["c"]  # only what was before
    assert asking.user_context(world, contract, "nobody", 10).seen == []


def test_all_that_the_user_clicked_is_told_however_short_the_contracts_histories_are(make_world, contract, tmp_path):
    """What topic queues ask for: the contract's history ends at two."""
    events = [
        ("ann", "d", 3, 5.0),
        ("ann", "a", 1, 5.0),
        ("ann", "b", 2, 5.0),
        ("ann", "c", 4, 1.0),
        ("ann", "a", 4, 5.0),
    ]
    context = asking.user_context(make_world(tmp_path, events), contract, "ann", 10)
    assert (context.features["history"], context.clicked) == (["d", "a"], ["a", "b", "d", "a"])


def test_the_clock_is_the_second_after_the_last_event_that_can_be_one(make_world, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 5, 5.0), ("ann", "b", None, 5.0), ("ann", "c", 1_700_000_000_000, 5.0)])
    assert asking.clock(world) == 6


def test_a_video_without_an_id_is_in_no_table(make_world, contract, entities, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0)])
    nameless = entities["videos"].slice(0, 1).set_column(0, "video_id", pa.array([None], pa.string()))
    tables.write_table(world, "videos", pa.concat_tables([entities["videos"], nameless]))
    assert set(videos_by_id(asking.feed_catalogue(world, contract, at=5))) == {"a", "b", "c", "d"}


def test_a_contract_with_one_of_the_counters_by_category_gets_both(make_world, contract, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0)])
    one = contract.model_copy(update={"features": tuple(f for f in contract.features if f.name != "taste_rate")})
    assert asking.user_context(world, one, "ann", 5).categories == {"pets": (1, 0.5)}


def test_two_videos_of_one_id_are_refused(make_world, contract, entities, tmp_path):
    world = make_world(tmp_path, [("ann", "a", 1, 5.0)])
    twice = pa.concat_tables([entities["videos"], entities["videos"].slice(0, 1)])
    tables.write_table(world, "videos", twice)
    with pytest.raises(ContractError, match="expected one row for each video_id, got several for 'a'"):
        asking.feed_catalogue(world, contract, at=5)
