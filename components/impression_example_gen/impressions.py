"""What an impression may know: the point-in-time logic, columnar and free of Beam.

An *event* is an interaction with user, video, time and label. Whatever an impression knows about the past (histories,
counters, rates) comes from events of a strictly earlier second, so that two events of one second do not see each other.
Events that yield no impression (neutral ones, and those whose user or video has no row in its table) happened all the
same: they count for later impressions.

Three steps, each over one partition or a whole small table: `prepare` the interactions, `with_videos` (needs all events
of a video), `with_users` (needs all events of a user). Training runs them in Beam (`executor.py`); `serving_rows` runs
them over the same events for a request, which is why both see equal features.

Columns of the tables in between: user_id, video_id, at, label (1, 0, NaN = neutral), counted (it is an event), outcome
(index into OUTCOMES), split (index into SPLITS), and features by their `source`. Letters: N rows, G groups.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.impression_example_gen import features
from components.impression_example_gen.partitions import mix, single_array, stable_hash
from components.world import files, tables
from transform.contract import LIKED_FRAMES, Contract, ContractError, Feature, Kind, Role

SPLITS = ("train", "valid", "test")
NEVER = 1 << 62
OUTCOMES = (
    "impression",
    "neutral",
    "before the span",
    "after the span",
    "missing key",
    "missing label",
    "label out of range",
    "time in milliseconds",
    "time in the future",
    "time not positive",
    "missing weight",
    "unknown video",
    "unknown user",
)
IMPRESSION, NEUTRAL, EARLIER, LATER, MISSING_KEY, MISSING_LABEL, BAD_LABEL, MILLISECONDS, FUTURE = range(9)
NOT_POSITIVE, MISSING_WEIGHT, UNKNOWN_VIDEO, UNKNOWN_USER = range(9, len(OUTCOMES))
FUSED = "content.fused_vector"
# By what an artifact is called, the table in it that tells of videos.
LEARNED = {"content": "content", "topics": "video_topics", "frames": "looks"}
HISTORY_BUCKETS = ("0", "1-5", "6-20", "21+")

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Splits:
    """How impressions are divided.

    Attributes:
        by: "time": by two instants; "hash": by a stable hash of (user, video, at), for published protocols only.
        train: Fraction, as `valid` and `test`; they add up to 1.
        before: For "time": an impression is train before the first instant (unix seconds), else valid before the
            second, else test.
        since: The span's first instant; what happened earlier is known to its impressions and makes none.
        until: The first instant after the span; what happened then or later is not read.
    """

    by: str
    train: float
    valid: float
    test: float
    before: tuple[int, int] = (0, 0)
    since: int = 0
    until: int = NEVER

    @classmethod
    def from_json(cls, text: str) -> Splits:
        """The splits in a text such as `{"by": "time", "train": 0.8, "valid": 0.1, "test": 0.1}`.

        It may have `since` and `until` too.

        Raises:
            ContractError: Not of that form.
        """
        content = json.loads(text)
        since, until = int(content.pop("since", 0)), int(content.pop("until", NEVER))
        if set(content) != {"by", *SPLITS} or content["by"] not in ("time", "hash"):
            raise ContractError(
                f'splits: expected by ("time" or "hash"), train, valid and test, got {text}: mend the config'
            )
        train, valid, test = (float(content[name]) for name in SPLITS)
        if min(train, valid, test) <= 0 or abs(train + valid + test - 1) > 1e-6:
            raise ContractError(
                f"splits: expected three fractions above 0 that add up to 1, got {text}: mend the config"
            )
        return cls(content["by"], train, valid, test, since=since, until=until)

    def cut(self, first: int, width: int, counts: Ints) -> Splits:
        """With the instants at which a histogram of all event times (bins of `width` seconds from `first`) is cut.

        Each instant is the first edge with at least the wanted share of all rows before it.
        """
        wanted = np.array([self.train, self.train + self.valid]) * counts.sum()
        edges = np.searchsorted(np.cumsum(counts), wanted - 1e-6) + 1
        train, valid = (first + int(edge) * width for edge in edges)
        return replace(self, before=(train, valid))

    def holds(self, at: Ints) -> npt.NDArray[np.bool_]:
        """Which times lie in the span."""
        return (at >= self.since) & (at < self.until)

    def assign(self, users: Array, videos: Array, at: Ints) -> npt.NDArray[np.int8]:
        """The split of each row, given hashes of its user and video."""
        if self.by == "time":
            return np.searchsorted(np.array(self.before), at, side="right").astype(np.int8)
        share = (mix(users, videos, at) >> np.uint64(11)) / float(1 << 53)
        return np.searchsorted(np.array([self.train, self.train + self.valid]), share, side="right").astype(np.int8)


def needed(contract: Contract, table: str) -> list[str]:
    """The columns of a table that impressions are made of, the keys first."""
    return list(dict.fromkeys([*tables.KEYS[table], *(column for _, column in contract.needs(table))]))


def optional(contract: Contract, table: str) -> set[str]:
    """Those of the `needed` columns that a world may lack."""
    required = {column for feature, column in contract.needs(table) if not feature.optional}
    return set(needed(contract, table)) - required - set(tables.KEYS[table])


def empty(columns: Sequence[str], table: str, contract: Contract) -> pa.Table:
    """No rows of those columns of a table, in the types that a table with rows would have."""
    types = tables.column_types(table, contract)
    return pa.table({name: pa.array([], types[name]) for name in columns})


def refuse_unclear_ids(rows: pa.Table, key: str, where: str) -> None:
    """Raise a ContractError if rows of users or videos share an id or have none: which is meant is not known."""
    ids = pc.fill_null(single_array(rows[key]), "")
    counts = pc.value_counts(ids)
    twice = [name for name in counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist() if name]
    nameless = pc.sum(pc.equal(ids, "")).as_py()
    got = f"{nameless} without" if nameless else f"several for {min(twice)!r}" if twice else ""
    if got:
        raise ContractError(
            f"{where}: expected one row for each {key}, got {got}: `shortlist check` lists them, "
            "`shortlist import tables` makes a world without them"
        )


def plausible(at: Ints) -> npt.NDArray[np.bool_]:
    """Which times can be unix seconds of an event: one in the future would move the instant that a feed is asked at."""
    return (at > 0) & (at <= time.time())


def prepare(interactions: pa.Table, contract: Contract, splits: Splits) -> pa.Table:
    """Interactions with label, outcome and split; every row of the table is still there."""
    users, videos = (pc.fill_null(single_array(interactions[key]), "") for key in ("user_id", "video_id"))
    at = pc.fill_null(single_array(interactions["at"]), 0).to_numpy()
    raw = _numbers(interactions, contract.label)
    keyed = pc.and_(pc.not_equal(users, ""), pc.not_equal(videos, "")).to_numpy(zero_copy_only=False)
    keyed &= single_array(interactions["at"]).is_valid().to_numpy(zero_copy_only=False)
    label = _label(raw, contract.label)
    outcome = np.where(np.isnan(label), NEUTRAL, IMPRESSION).astype(np.int8)
    used = {f"interactions.{f.column}": f for f in contract.features if f.table == "interactions"}
    data = {
        name: single_array(interactions[f.column]) for name, f in used.items() if f.column in interactions.column_names
    }
    if contract.weight is not None:
        weight = _numbers(interactions, contract.weight)
        weight[np.isnan(weight)] = np.nan if contract.weight.default is None else contract.weight.default
        outcome[(outcome == IMPRESSION) & ~np.isfinite(weight)] = MISSING_WEIGHT
        data[contract.weight.source] = pa.array(weight)
    outcome[~_in_range(raw, contract.label)] = BAD_LABEL
    outcome[~np.isfinite(raw)] = MISSING_LABEL
    believable = plausible(at)
    happened = np.isin(outcome, [IMPRESSION, NEUTRAL, MISSING_WEIGHT]) & keyed & believable & (at < splits.until)
    outcome[at < splits.since] = EARLIER
    outcome[at >= splits.until] = LATER
    outcome[~believable] = FUTURE
    outcome[at > tables.MILLISECONDS_FROM] = MILLISECONDS
    outcome[at <= 0] = NOT_POSITIVE
    outcome[~keyed] = MISSING_KEY
    data[contract.label.source] = pa.array(label)
    split = splits.assign(stable_hash(users), stable_hash(videos), at)
    own = {"user_id": users, "video_id": videos, "at": at, "label": label, "outcome": outcome, "split": split}
    if splits.by == "hash":
        # What was drawn for valid and test is earlier than some rows of train.
        happened &= (split == 0) | (outcome == EARLIER)
    return pa.table({**own, "counted": happened, **data})


def with_videos(events: pa.Table, videos: pa.Table, contract: Contract, *content: pa.Table) -> pa.Table:
    """Events joined with their videos, and what earlier events tell about the video.

    Args:
        events: All events of some videos, as `prepare` makes them.
        videos: At least the rows of those videos that there are.
        contract: The features.
        content: Tables of what was learned of videos, those of `LEARNED`.
    """
    group = _codes(events["video_id"])
    past = _earlier(group, events)
    table = _join(events, "video_id", videos, "videos", UNKNOWN_VIDEO)
    for described in content:
        table = _append(table, _beside(events["video_id"], described, "video_id", "content")[0])
    derived = {
        "derived.video_events": past.events,
        "derived.video_positive_rate": past.positive_rate,
        "derived.video_novelty": _novelty(group, events),
        "derived.video_age_hours": _age_hours(table),
        "derived.modalities": _modalities(table),
    }
    return _append(table, {name: values for name, values in derived.items() if name in _sources(contract)})


def catalogue(videos: pa.Table, contract: Contract, *content: pa.Table) -> tuple[list[Feature], dict[str, pa.Array]]:
    """What is known of videos besides events: the features of role video but for derived ones, and their columns."""
    wanted = [f for f in contract.select(roles=(Role.VIDEO,)) if f.table != "derived"]
    rows = pa.table({f"videos.{name}": single_array(videos[name]) for name in videos.column_names})
    for described in content:
        rows = _append(rows, _beside(videos["video_id"], described, "video_id", "content")[0])
    return wanted, features.columns(wanted, rows)


def with_users(events: pa.Table, users: pa.Table, contract: Contract) -> pa.Table:
    """Events joined with their users, and what earlier events tell about the user.

    Args:
        events: All events of some users, as `with_videos` makes them.
        users: At least the rows of those users that there are.
        contract: The features.
    """
    group, past = _codes(events["user_id"]), _of_users(events)
    hours = events["at"].to_numpy() // 3600 % 24
    derived = {
        "derived.user_events": past.events,
        "derived.user_positive_rate": past.positive_rate,
        **_counters_of_category(group, events),
        **_content_match(events),
        "derived.user_novelty": _novelty(group, events),
        "derived.history_length": np.array(HISTORY_BUCKETS)[np.searchsorted([1, 6, 21], past.positives, side="right")],
        "derived.hour_of_day": np.array([str(hour) for hour in range(24)])[hours],
    }
    table = _join(events, "user_id", users, "users", UNKNOWN_USER)
    table = _append(table, {name: values for name, values in derived.items() if name in _sources(contract)})
    histories = [f for f in contract.select(kinds=(Kind.HISTORY,)) if f.source == "derived.user_history"]
    videos = single_array(events["video_id"])
    return _append(table, {f.name: past.histories(videos, int(f.max_length or 0)) for f in histories})


def with_feedback(impressions: pa.Table, feedback: pa.Table) -> pa.Table:
    """Impressions with the frames that were liked, of the test split alone: nothing may be learned from them.

    Args:
        impressions: As `with_users` makes them.
        feedback: Rows of `frame_feedback`, at least those of the users.
    """
    liked: dict[tuple[str, str], list[str]] = {}
    for row in feedback.sort_by([("frame_index", "ascending")]).to_pylist():
        of_pair = liked.setdefault((row["user_id"], row["video_id"]), [])
        if (row["liked"] or 0) > 0.5 and str(row["frame_index"]) not in of_pair:
            of_pair.append(str(row["frame_index"]))
    keys = zip(*(impressions[name].to_pylist() for name in ("user_id", "video_id", "split")), strict=True)
    frames = [liked.get((user, video), []) if split == SPLITS.index("test") else [] for user, video, split in keys]
    return _append(impressions, {LIKED_FRAMES: pa.array(frames, tables.STRINGS)})


def feature_columns(table: pa.Table, wanted: Sequence[Feature]) -> dict[str, pa.Array]:
    """The raw features of rows that `with_users` made; the ids are the interactions' own."""
    keys = {"users.user_id": table["user_id"], "videos.video_id": table["video_id"]}
    return features.columns(wanted, _append(table, keys))


def shuffle(table: pa.Table) -> pa.Table:
    """The rows in an order that depends on nothing but the rows, and not on time or user."""
    users, videos = (stable_hash(single_array(table[key])) for key in ("user_id", "video_id"))
    return table.take(np.argsort(mix(videos, users, table["at"].to_numpy()), kind="stable"))


def present_columns(world: str, table: str, contract: Contract) -> list[str]:
    """The `needed` columns, without the optional ones that the table lacks; only headers are read.

    Raises:
        ContractError: The table lacks another one.
    """
    there = {path: _column_names(path) for path in tables.table_files(world, table)}
    wanted, may_lack = needed(contract, table), optional(contract, table)
    for path, names in there.items():
        for name in wanted:
            if name not in names and name not in may_lack:
                raise tables.missing_column(path, name, names)
    return [name for name in wanted if all(name in names for names in there.values())]


def _column_names(path: str) -> list[str]:
    with files.reading(path) as file:
        if path.endswith(".csv"):
            return next(csv.reader(file.read(1 << 16).decode("utf-8-sig", "replace").splitlines()), [])
        return list(pq.read_schema(file).names)


@dataclass(frozen=True)
class _Past:
    """For each row, in the order of the rows, what the group's strictly earlier events were.

    `positive_rows` lists the positive events by group and time; those before row i are its entries first[i]:last[i].
    """

    events: Ints
    first: Ints
    last: Ints
    positive_rows: Ints
    order: Ints  # all rows by group and time; the earlier ones of row i are its entries since[i]:until[i]
    since: Ints
    until: Ints

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """For each row the sum over the earlier rows of its group, of values [N, D] that are 0 where none counts."""
        sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values[self.order], axis=0)])
        return np.asarray(sums[self.until] - sums[self.since])

    @property
    def positives(self) -> Ints:
        return self.last - self.first

    @property
    def positive_rate(self) -> npt.NDArray[np.float64]:
        return (self.positives + 1) / (self.events + 2)

    def histories(self, ids: pa.Array, most: int) -> pa.ListArray:
        """The ids of each row's last `most` earlier positive events, most recent last."""
        start = np.maximum(self.first, self.last - most)
        offsets = np.concatenate([[0], np.cumsum(self.last - start)])
        entries = np.repeat(start - offsets[:-1], self.last - start) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), ids.take(self.positive_rows[entries]))


def _earlier(group: Ints, events: pa.Table, ties: Array | None = None) -> _Past:
    """The past of each row within its group; `ties` orders the events of one second, so that input order does not."""
    at = events["at"].to_numpy()
    counted = events["counted"].to_numpy()
    positive = counted & (events["label"].to_numpy() == 1)
    order = np.lexsort((at, group) if ties is None else (ties, at, group))
    first_of_group = _run_starts(group[order])
    first_of_instant = _run_starts(group[order], at[order])
    number, hits = (np.concatenate([[0], np.cumsum(mask[order])]) for mask in (counted, positive))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return _Past(
        events=(number[first_of_instant] - number[first_of_group])[back],
        first=hits[first_of_group][back],
        last=hits[first_of_instant][back],
        positive_rows=order[positive[order]],
        order=order,
        since=first_of_group[back],
        until=first_of_instant[back],
    )


def _of_users(events: pa.Table) -> _Past:
    return _earlier(_codes(events["user_id"]), events, ties=stable_hash(single_array(events["video_id"])))


def _run_starts(*keys: Array) -> Ints:
    """For each position, where the run of equal keys that it is in starts."""
    starts = np.zeros(len(keys[0]), bool)
    starts[:1] = True
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


def _novelty(group: Ints, events: pa.Table) -> Array:
    """ "known" where the group has an impression in the train split, as far as can be seen here."""
    labelled = events["counted"].to_numpy() & ~np.isnan(events["label"].to_numpy())
    train = labelled & (events["split"].to_numpy() == 0)
    return np.where(np.bincount(group, weights=train)[group] > 0, "known", "new")


def _age_hours(table: pa.Table) -> npt.NDArray[np.float64]:
    if "videos.published_at" not in table.column_names:
        return np.full(len(table), np.nan)
    published = table["videos.published_at"].cast(pa.float64()).to_numpy()
    return np.maximum(table["at"].to_numpy() - published, 0) / 3600


def _join(events: pa.Table, key: str, others: pa.Table, table: str, unknown: int) -> pa.Table:
    """The other table's columns beside the events, as `<table>.<column>`; rows without a partner are so marked."""
    columns, found = _beside(events[key], others, key, table)
    outcome = events["outcome"].to_numpy().copy()
    happened = np.isin(outcome, [IMPRESSION, NEUTRAL, MISSING_WEIGHT])
    outcome[happened & ~found] = unknown
    position = events.column_names.index("outcome")
    events = events.set_column(position, "outcome", pa.array(outcome))
    return _append(events, columns)


def _beside(
    ids: pa.ChunkedArray, others: pa.Table, key: str, table: str
) -> tuple[dict[str, pa.Array], npt.NDArray[np.bool_]]:
    """The other table's columns in the rows of the ids, as `<table>.<column>`, null where it has no such id; and where
    it has."""
    where = single_array(pc.index_in(ids, value_set=single_array(others[key])))
    names = [name for name in others.column_names if name != key]
    columns = {f"{table}.{name}": single_array(others[name]).take(where) for name in names}
    return columns, where.is_valid().to_numpy(zero_copy_only=False)


def _modalities(table: pa.Table) -> Array:
    """Names of the content vectors that are there, joined by "+"."""
    there = np.full(len(table), "", dtype=object)
    for name in ("visual", "audio", "text"):
        if (column := f"content.{name}_vector") not in table.column_names:
            continue
        present = single_array(table[column]).is_valid().to_numpy(zero_copy_only=False)
        there[present] = [f"{before}+{name}" if before else name for before in there[present]]
    return np.where(there == "", "none", there).astype(str)


def _label(raw: Array, label: Feature) -> npt.NDArray[np.float32]:
    """1, 0, or NaN where the event is neutral (or has no label)."""
    values = np.full(len(raw), np.nan, np.float32)
    values[raw > label.positive_above] = 1
    values[raw < label.negative_below] = 0
    return values


def _in_range(values: Array, feature: Feature) -> npt.NDArray[np.bool_]:
    lowest, highest = feature.minimum, feature.maximum
    low = np.zeros(len(values), bool) if lowest is None else values < lowest
    high = np.zeros(len(values), bool) if highest is None else values > highest
    return ~(low | high)


def _numbers(table: pa.Table, feature: Feature) -> npt.NDArray[np.float64]:
    if feature.column not in table.column_names:
        return np.full(len(table), np.nan)
    return np.array(pc.fill_null(single_array(table[feature.column]).cast(pa.float64()), np.nan))


def _codes(column: pa.ChunkedArray) -> Ints:
    """A number from 0 to G - 1 for each row, equal where the key is."""
    return np.asarray(single_array(column).dictionary_encode().indices.to_numpy(), np.int64)


def _counters_of_category(group: Ints, events: pa.Table) -> dict[str, Array]:
    """What earlier events tell about user and category; nothing in a world without categories."""
    if "videos.primary_category" not in events.column_names:
        return {}
    past = _earlier(_by_category(group, events), events)
    return {
        "derived.user_category_events": past.events,
        "derived.user_category_positive_rate": past.positive_rate,
    }


def profiles(events: pa.Table) -> npt.NDArray[np.float64]:
    """For each row, the content its user took to before, [N, D]; zeros where that is not known.

    It is sum_i (y_i - r) v_i over the user's earlier events with label y_i and unit vector v_i, r their share of
    positives: what the user took to, against what the user was shown.

    Args:
        events: All events of some users with the column `FUSED`.
    """
    past = _of_users(events)
    vectors = unit_vectors(single_array(events[FUSED]))
    label = np.nan_to_num(events["label"].to_numpy())[:, np.newaxis]
    counted = (events["counted"].to_numpy() & ~np.isnan(events["label"].to_numpy()))[:, np.newaxis]
    number, positives = past.total(counted.astype(float)), past.total(counted * label)
    rate = positives / np.maximum(number, 1)
    profile = past.total(counted * label * vectors) - rate * past.total(counted * vectors)
    return np.where(np.linalg.norm(profile, axis=1, keepdims=True) > 1e-6, profile, 0.0)


def _content_match(events: pa.Table) -> dict[str, Array]:
    """Cosine of the video's fused vector and the user's profile; NaN where either is unknown."""
    if FUSED not in events.column_names:
        return {}
    profile, vectors = profiles(events), unit_vectors(single_array(events[FUSED]))
    known = profile.any(axis=1) & vectors.any(axis=1)
    cosine = (profile * vectors).sum(axis=1) / np.where(known, np.linalg.norm(profile, axis=1), 1)
    return {"derived.content_match": np.where(known, cosine, np.nan)}


def unit_vectors(column: pa.ListArray) -> npt.NDArray[np.float64]:
    """[N, D] of length 1; zeros where there is none."""
    present = pc.fill_null(pc.list_value_length(column), 0).to_numpy() > 0
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    dense = np.zeros((len(column), len(values) // max(int(present.sum()), 1)))
    dense[present] = values.reshape(-1, dense.shape[1]) if len(values) else 0
    return dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)


def _by_category(group: Ints, events: pa.Table) -> Ints:
    """A number for each row, equal where both the group and the video's primary category are; none is one too."""
    category = _codes(pa.chunked_array([pc.fill_null(single_array(events["videos.primary_category"]), "")]))
    return np.asarray(np.unique(group * (category.max(initial=0) + 1) + category, return_inverse=True)[1], np.int64)


def _append(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values) if isinstance(values, np.ndarray) else values)
    return table


def _sources(contract: Contract) -> set[str]:
    return {feature.source for feature in contract.features}
