"""What a request knows: the point-in-time logic of `impressions`, read from a world at one instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.impression_example_gen import features
from components.impression_example_gen.impressions import (
    FUSED,
    LEARNED,
    NEUTRAL,
    Splits,
    catalogue,
    feature_columns,
    plausible,
    prepare,
    present_columns,
    profiles,
    refuse_unclear_ids,
    unit_vectors,
    with_users,
    with_videos,
)
from components.impression_example_gen.partitions import single_array
from components.world import tables
from transform import feed
from transform.contract import Contract, Feature

_NOBODY = "\0"  # no id of a user
_EVENT = ["user_id", "video_id", "at", "label", "outcome", "split", "counted"]
_BY_CATEGORY = ("derived.user_category_events", "derived.user_category_positive_rate")


@dataclass(frozen=True)
class UserContext:
    """What is known of a user at an instant, as `serving.requests.to_feed_example` takes it.

    Attributes:
        features: Those about the user, by name; a missing value is left out.
        now: The instant, unix seconds.
        seen: Videos the user had any event with, in order of their ids.
        clicked: Videos of the user's positive events, most recent last.
        categories: Of each primary category the user had events with: how many, and the rate of positive ones.
        profile: The content that the user took to, see `impressions.profiles`; empty where not known.
    """

    features: dict[str, Any]
    now: int
    seen: list[str]
    clicked: list[str] = field(default_factory=list)
    categories: dict[str, tuple[float, float]] = field(default_factory=dict)
    profile: list[float] = field(default_factory=list)

    @property
    def told(self) -> dict[str, Any]:
        """What `to_feed_example` is told besides the features, by keyword."""
        return {"now": self.now, "exclude": self.seen, "categories": self.categories, "profile": self.profile}


def clock(world: str) -> int:
    """The instant after a world's last event, unix seconds: when its requests are asked."""
    at = pc.fill_null(tables.read_table(world, "interactions", ["at"])["at"], 0).to_numpy()
    return int(at[plausible(at)].max(initial=0)) + 1


def serving_rows(
    world: str,
    contract: Contract,
    user_id: str,
    video_ids: Sequence[str] | None,
    at: int,
    learned: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Request rows for showing videos to a user: what an impression at that instant would know.

    Args:
        world: Folder of the tables.
        contract: The features; those of role user, video and context are in the rows.
        user_id: May be unknown: the user's own features are then missing.
        video_ids: The candidates; None: every video.
        at: Unix seconds; only events before it are known.
        learned: Folders of what was learned of videos, by the names of `LEARNED`.

    Returns:
        One row for each candidate, in their order; a missing value is left out. Features from columns of the
        interactions are missing: whoever asks knows them (the device, say) and may add them.
    """
    users, videos, past = (_read_needed(world, name, contract) for name in ("users", "videos", "interactions"))
    past = prepare(past, contract, Splits("time", 1, 0, 0))
    described = _read_described(contract, learned or {})
    ids = pa.array(videos["video_id"].to_pylist() if video_ids is None else list(video_ids), pa.string())
    if len(ids) == 0:
        return []
    asked = _questions(ids, user_id, at, past.schema)
    seen = past.filter(pc.is_in(past["video_id"], value_set=ids))
    candidates = with_videos(pa.concat_tables([seen, asked]).combine_chunks(), videos, contract, *described)[
        len(seen) :
    ]
    own = with_videos(past.filter(pc.equal(past["user_id"], user_id)), videos, contract, *described)
    rows = with_users(pa.concat_tables([own, candidates], promote=True).combine_chunks(), users, contract)[len(own) :]
    return features.rows(contract.inputs, feature_columns(rows, contract.inputs))


def user_context(
    world: str, contract: Contract, user_id: str, at: int, learned: Mapping[str, str] | None = None
) -> UserContext:
    """What a request for a feed tells of a user; arguments as for `serving_rows`."""
    users, videos, past = (_read_needed(world, name, contract) for name in ("users", "videos", "interactions"))
    past = prepare(past.filter(pc.equal(past["user_id"], user_id)), contract, Splits("time", 1, 0, 0))
    past = past.filter(pc.less(past["at"], at))
    own = with_videos(past, videos, contract, *_read_described(contract, learned or {}))
    categories = _categories(own)
    asked = _questions(pa.array([_NOBODY] * (1 + len(categories))), user_id, at, past.schema)
    if "videos.primary_category" in own.column_names:  # the first question is about the user alone
        asked = asked.append_column("videos.primary_category", pa.array([None, *categories], pa.string()))
    table = pa.concat_tables([own, asked], promote=True).combine_chunks()
    rows = with_users(table, users, contract)[len(own) :]
    about = [f for f in contract.inputs if f.about == "user"]
    (known,) = features.rows(about, feature_columns(rows[:1], about))
    counters = (
        rows[name].to_pylist() if name in rows.column_names else [never] * len(rows)
        for name, never in zip(_BY_CATEGORY, feed.NEVER_MET, strict=True)
    )
    return UserContext(
        features=known,
        now=at,
        seen=sorted(set(own["video_id"].to_pylist())),
        clicked=own.filter(pc.and_(own["counted"], pc.equal(own["label"], 1))).sort_by("at")["video_id"].to_pylist(),
        categories=dict(zip(categories, list(zip(*counters, strict=True))[1:], strict=False)),
        profile=profiles(table)[len(own)].tolist() if FUSED in table.column_names else [],
    )


def _categories(own: pa.Table) -> list[str]:
    if "videos.primary_category" not in own.column_names:
        return []
    return sorted(set(pc.fill_null(own["videos.primary_category"], "").to_pylist()))


def feed_catalogue(world: str, contract: Contract, at: int, learned: Mapping[str, str] | None = None) -> pa.RecordBatch:
    """Examples of all videos as the tables of a feed take them, in the form that tfx_bsl's encoder takes.

    Args:
        world: Folder of the tables.
        contract: The features.
        at: Unix seconds; only events before it are known.
        learned: As for `serving_rows`.

    Raises:
        ContractError: Two videos have one id.
    """
    videos, past = (_read_needed(world, name, contract) for name in ("videos", "interactions"))
    videos = videos.filter(pc.not_equal(pc.fill_null(videos["video_id"], ""), "")).combine_chunks()
    refuse_unclear_ids(videos, "video_id", f"{world}, videos")
    past = prepare(past, contract, Splits("time", 1, 0, 0)).select(_EVENT)
    past = past.filter(pc.less(past["at"], at))
    asked = _questions(single_array(videos["video_id"]), _NOBODY, at, past.schema)
    # Counters from the events, which are many, without what is known of their videos, which is much.
    everything = pa.concat_tables([past, asked]).combine_chunks()
    counted = with_videos(everything, videos.select(["video_id"]), contract)[len(past) :]
    rows = with_videos(asked, videos, contract, *_read_described(contract, learned or {}))
    for name in {"derived.video_events", "derived.video_positive_rate"} & set(rows.column_names):
        rows = rows.set_column(rows.column_names.index(name), name, counted[name])
    about = [f for f in contract.inputs if f.about == "video"]
    batch = features.examples(about, feature_columns(rows, about))
    more = _of_feed(rows, past)
    return pa.RecordBatch.from_arrays([*batch.columns, *more.values()], [*batch.schema.names, *more])


def _of_feed(rows: pa.Table, past: pa.Table) -> dict[str, pa.Array]:
    """What a feed needs to know of videos besides their features."""
    positive = past.filter(pc.and_(past["counted"], pc.equal(past["label"], 1)))["video_id"]
    counts = {entry["values"]: entry["counts"] for entry in positive.value_counts().to_pylist()}
    more = {feed.POSITIVES: pa.array([[counts.get(v, 0)] for v in rows["video_id"].to_pylist()], tables.FLOATS)}
    columns = {
        feed.PUBLISHED_AT: ("videos.published_at", pa.int64(), feed.UNKNOWN_TIME),
        feed.PRIMARY_CATEGORY: ("videos.primary_category", pa.string(), ""),
    }
    for name, (column, kind, missing) in columns.items():
        if column in rows.column_names:
            values = pc.fill_null(single_array(rows[column]).cast(kind), missing)
            values = values.cast(pa.binary()) if kind == pa.string() else values
            more[name] = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)
    if FUSED in rows.column_names:
        vectors = unit_vectors(single_array(rows[FUSED]))
        more[feed.FUSED_VECTOR] = pa.array([v if v.any() else [] for v in vectors], tables.FLOATS)
    return more


def read_catalogue(
    world: str, contract: Contract, learned: Mapping[str, str] | None = None
) -> tuple[list[Feature], dict[str, pa.Array]]:
    """`catalogue` of all videos of a world; arguments as for `serving_rows`.

    Raises:
        ContractError: Two videos have one id.
    """
    videos = _read_needed(world, "videos", contract)
    refuse_unclear_ids(videos, "video_id", f"{world}, videos")
    return catalogue(videos, contract, *_read_described(contract, learned or {}))


def _read_described(contract: Contract, learned: Mapping[str, str]) -> list[pa.Table]:
    return [_read_needed(learned[name], table, contract) for name, table in LEARNED.items() if name in learned]


def _read_needed(world: str, table: str, contract: Contract) -> pa.Table:
    """The needed columns of a table, without the optional ones that it lacks."""
    found = tables.read_table(world, table, present_columns(world, table, contract), contract)
    return found.combine_chunks()


def _questions(ids: pa.Array, user_id: str, at: int, schema: pa.Schema) -> pa.Table:
    """Rows that ask and are no events, in the columns of `prepare`."""
    number = len(ids)
    known = {
        "user_id": pa.array([user_id] * number, pa.string()),
        "video_id": ids,
        "at": pa.array(np.full(number, at)),
        "label": pa.array(np.full(number, np.nan, np.float32)),
        "outcome": pa.array(np.full(number, NEUTRAL, np.int8)),
        "split": pa.array(np.full(number, -1, np.int8)),
        "counted": pa.array(np.zeros(number, bool)),
    }
    return pa.table([known.get(f.name, pa.nulls(number, f.type)) for f in schema], schema=schema)
