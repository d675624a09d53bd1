"""A contract that has every kind and every derivation, and ways to make a small world and its impressions."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.impression_example_gen import features, impressions, partitions
from components.world import tables
from transform.contract import Contract, parse

CONTRACT = """
name: small
vocabularies: {user: {}, video: {}, tag: {}, word: {}, hour: {}, country: {}, device: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user, source: users.user_id}
  - {name: country, kind: id, role: user, vocabulary: country, source: users.country, optional: true}
  - {name: history, kind: history, role: user, vocabulary: video, max_length: 2, source: derived.user_history}
  - {name: user_events, kind: number, role: user, source: derived.user_events}
  - {name: user_rate, kind: number, role: user, source: derived.user_positive_rate}
  - {name: video_id, kind: id, role: video, vocabulary: video, source: videos.video_id}
  - {name: title, kind: text, role: video, vocabulary: word, max_length: 4, source: videos.title}
  - {name: tags, kind: ids, role: video, vocabulary: tag, max_length: 4, source: videos.tags}
  - {name: seconds, kind: number, role: video, source: videos.duration_seconds}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look, optional: true}
  - {name: video_events, kind: number, role: video, source: derived.video_events}
  - {name: video_rate, kind: number, role: video, source: derived.video_positive_rate}
  - {name: age, kind: number, role: video, source: derived.video_age_hours}
  - {name: hour, kind: id, role: context, vocabulary: hour, source: derived.hour_of_day}
  - {name: taste_events, kind: number, role: context, source: derived.user_category_events}
  - {name: taste_rate, kind: number, role: context, source: derived.user_category_positive_rate}
  - {name: device, kind: id, role: context, vocabulary: device, source: interactions.device, optional: true}
  - {name: liked, kind: number, role: label, source: interactions.rating, minimum: 1, maximum: 5,
     positive_above: 3, negative_below: 3}
  - {name: user_novelty, kind: id, role: slice, source: derived.user_novelty}
  - {name: video_novelty, kind: id, role: slice, source: derived.video_novelty}
  - {name: history_length, kind: id, role: slice, source: derived.history_length}
"""
USERS = pa.table({"user_id": ["ann", "bob", "eve"], "country": ["nl", None, "de"]})
VIDEOS = pa.table(
    {
        "video_id": ["a", "b", "c", "d"],
        "title": ["Cats, cats", None, "Chess", "Rain"],
        "tags": [["pets", "fun"], [], None, ["calm"]],
        "duration_seconds": [10.0, None, 30.0, 40.0],
        "primary_category": ["pets", "pets", "games", None],
        "published_at": [0, 7200, None, 0],
        "look": pa.array([[1.0, 0.0], None, [0.25, 0.5], [0.0, 1.0]], pa.list_(pa.float32())),
    }
)


@pytest.fixture(scope="session")
def contract() -> Contract:
    return parse(CONTRACT)


@pytest.fixture(scope="session")
def entities() -> dict[str, pa.Table]:
    """The users and videos of `make_world`, by table."""
    return {"users": USERS, "videos": VIDEOS}


@pytest.fixture(scope="session")
def make_events():
    """A table of interactions from (user, video, at, rating) rows."""

    def make(rows: list[tuple[Any, Any, Any, Any]]) -> pa.Table:
        columns = list(zip(*rows, strict=True)) or [[], [], [], []]
        types = (pa.string(), pa.string(), pa.int64(), pa.float64())
        names = ("user_id", "video_id", "at", "rating")
        return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)

    return make


@pytest.fixture(scope="session")
def make_world(make_events):
    """A world folder with the three tables."""

    def make(folder: Path, rows: list[tuple[Any, Any, Any, Any]], users=USERS, videos=VIDEOS) -> str:
        for name, table in (("users", users), ("videos", videos), ("interactions", make_events(rows))):
            tables.write_table(str(folder), name, table)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def run_steps(contract, make_events):
    """All rows after the three steps of the pure logic, over `parts` partitions.

    One dict a row, missing values as None. Besides the features, a row has outcome, split and at.
    """

    def run(rows: list[tuple[Any, Any, Any, Any]], splits=None, parts: int = 1) -> list[dict[str, Any]]:
        splits = splits or impressions.Splits("time", 0.8, 0.1, 0.1, before=(1 << 40, 1 << 41))
        prepared = impressions.prepare(make_events(rows), contract, splits)
        result = []
        by_user: dict[int, list[bytes]] = {}
        for _, events in partitions.split(prepared, "video_id", parts):
            joined = impressions.with_videos(partitions.from_bytes([events]), VIDEOS, contract)
            for owner, part in partitions.split(joined, "user_id", parts):
                by_user.setdefault(owner, []).append(part)
        for part in by_user.values():
            done = impressions.with_users(partitions.from_bytes(part), USERS, contract)
            columns = impressions.feature_columns(done, contract.features)
            values = features.rows(contract.features, columns)
            for row, outcome, split, at in zip(
                values, *(done[n].to_pylist() for n in ("outcome", "split", "at")), strict=True
            ):
                own = {"outcome": impressions.OUTCOMES[outcome], "split": impressions.SPLITS[split], "at": at}
                result.append({**{f.name: row.get(f.name) for f in contract.features}, **own})
        return sorted(result, key=lambda row: (row["at"], str(row["user_id"]), str(row["video_id"]), repr(row)))

    return run


@pytest.fixture(scope="session")
def decode():
    """A serialized tf.Example as a dict, with what is missing left out, as in a request row."""
    import tensorflow as tf

    def one(serialized: bytes, contract: Contract) -> dict[str, Any]:
        example, row = tf.train.Example.FromString(serialized), {}
        for feature in contract.features:
            value = example.features.feature[feature.name]
            listed = [v.decode() for v in value.bytes_list.value] or list(value.float_list.value)
            kind = feature.kind.value
            if kind in ("ids", "history"):
                row[feature.name] = listed
            elif kind == "vector":
                assert len(listed) == feature.dimension
                row |= {feature.name: listed} if any(listed) else {}
            else:
                (scalar,) = listed
                row |= (
                    {} if scalar == "" or (isinstance(scalar, float) and math.isnan(scalar)) else {feature.name: scalar}
                )
        return row

    return one
