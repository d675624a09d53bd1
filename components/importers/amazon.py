"""Amazon 5-core reviews as a world: products stand for videos, reviews for reactions.

Source: McAuley et al., Image-based recommendations on styles and substitutes, SIGIR 2015 (2014 files, whose metadata
are Python literals) and Ni et al., EMNLP 2019 (2018 files, JSON); https://jmcauley.ucsd.edu/data/amazon/.

Review times are days: reviews of one day do not see each other. Review texts are left out: they are written after the
event, so no impression may know them.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from components.importers import sources
from components.importers.summary import ImportSummary, write_world
from components.world import check, files
from components.world.tables import FLOATS, STRINGS
from transform import contract
from transform.contract import ContractError

_REVIEW = {"reviewerID": pa.string(), "asin": pa.string(), "overall": pa.float64(), "unixReviewTime": pa.int64()}
_COLUMN = {"reviewerID": "user_id", "asin": "video_id", "overall": "rating", "unixReviewTime": "at"}
_IMAGE = np.dtype([("asin", "S10"), ("values", "<f4", 4096)])
_IMAGES_AT_ONCE = 2048
_NOT_A_RECORD = "metadata line is neither JSON nor a Python literal with an asin"

Record = dict[str, Any]


def import_amazon(source: str | None, out: str, images: bool = False, now: int | None = None) -> ImportSummary:
    """Write a world from a folder of Amazon files.

    Args:
        source: Folder with one review file (`*_5.json`, or `reviews*.json`; may be gzipped), and optionally the
            metadata (`meta_*.json`) and the image vectors (`image_features_*.b`).
        out: Folder of the world.
        images: Whether to read the image vectors. Their 4,096 values are projected at random (Gaussian, seeded) to the
            dimension D of the contract's `visual_vector`, which keeps distances to about 1/sqrt(D).
        now: Unix seconds; the clock where absent.

    Raises:
        ContractError: A file is missing or malformed.
    """
    folder = sources.folder(source, "Amazon reviews (*_5.json or *_5.json.gz)")
    reviews = _reviews(sources.only(folder, "*_5.json", "*_5.json.gz", "reviews*.json", "reviews*.json.gz"))
    ids = _distinct(reviews["video_id"])
    videos, unreadable, notes = _videos(folder, ids)
    rules = contract.load("amazon")
    if images:
        path = sources.require(folder, "image_features*.b")
        vectors = _image_vectors(path, ids, rules.feature("visual_vector").dimension or 0)
        videos = videos.append_column("visual_vector", vectors)
    users = pa.table({"user_id": _distinct(reviews["user_id"])})
    checked = check.check_tables(users, videos, reviews, rules, check.clock(now))
    if len(unreadable):
        checked.rejected = pa.concat_tables([checked.rejected, unreadable])
        checked.counts[f"videos: {_NOT_A_RECORD}"] = len(unreadable)
    return write_world(out, checked, notes)


def _reviews(path: str) -> pa.Table:
    try:
        data = pajson.read_json(
            pa.BufferReader(sources.content(path)),
            parse_options=pajson.ParseOptions(explicit_schema=pa.schema(_REVIEW), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path}: expected one JSON object a line with {', '.join(_REVIEW)}: {error}") from error
    for name in _REVIEW:
        if data[name].null_count == len(data):
            raise ContractError(f"{path}: no line has the field {name!r}: expected a review file of the 5-core set")
    return data.select(list(_REVIEW)).rename_columns([_COLUMN[name] for name in _REVIEW])


def _distinct(ids: pa.ChunkedArray) -> list[str]:
    found: list[str] = pc.unique(ids.drop_null()).to_pylist()
    return found


def _videos(folder: str, ids: list[str]) -> tuple[pa.Table, pa.Table, list[str]]:
    """The table of videos, metadata lines that could not be read, and notes."""
    meta = "meta*.json", "meta*.json.gz"
    path = sources.only(folder, *meta) if sources.find(folder, *meta) else None
    if path is None:
        note = "no meta_*.json beside the reviews: videos have no title, categories, brand or price"
        return pa.table({"video_id": ids}), check.REJECTED.empty_table(), [note]
    records, bad = _metadata(path, set(ids))
    given = [records.get(video_id, {}) for video_id in ids]
    paths = [_categories(record) for record in given]
    videos = pa.table(
        {
            "video_id": ids,
            "title": [_text(record.get("title")) for record in given],
            "tags": pa.array(paths, STRINGS),
            "primary_category": [path[0] if path else "" for path in paths],
            "secondary_category": [path[1] if len(path) > 1 else "" for path in paths],
            "author_id": [_text(record.get("brand")) for record in given],
            "price": pa.array([_price(record.get("price")) for record in given], pa.float64()),
        }
    )
    rejected = [
        ["videos"] * len(bad),
        list(bad),
        [_NOT_A_RECORD] * len(bad),
        [json.dumps(line) for line in bad.values()],
    ]
    return videos, pa.table(rejected, schema=check.REJECTED), [f"metadata of {len(records):,} of {len(ids):,} videos"]


def _metadata(path: str, ids: set[str]) -> tuple[dict[str, Record], dict[int, str]]:
    """Records of the wanted ids (the first of each), and the lines that are no records, by index."""
    records: dict[str, Record] = {}
    bad: dict[int, str] = {}
    for index, line in enumerate(sources.content(path).decode("utf-8", "replace").splitlines()):
        record = _record(line)
        if record is None:
            bad[index] = line
        elif record["asin"] in ids:
            records.setdefault(record["asin"], record)
    return records, bad


def _record(line: str) -> Record | None:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(line)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("asin"), str):
            return value
    return None


def _categories(record: Record) -> list[str]:
    """The path of categories from the top: `categories` holds several (2014), `category` one (2018)."""
    paths = record.get("categories") or [record.get("category") or []]
    if not isinstance(paths, list):
        return []
    first = paths[0] if isinstance(paths[0], list) else paths
    return [_text(name) for name in first]


def _text(value: Any) -> str:
    return html.unescape(value).strip() if isinstance(value, str) else ""


def _price(value: Any) -> float | None:
    """12.99, "$12.99" and the lower end of "$9.99 - $12.99"."""
    if isinstance(value, int | float):
        return float(value)
    match = re.match(r"\s*\$?\s*([0-9][0-9,]*(?:\.[0-9]+)?)", value) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


def _image_vectors(path: str, ids: list[str], width: int) -> pa.Array:
    """Projected image vectors in the order of `ids`, null where the file has none."""
    projection = np.random.default_rng(0).standard_normal((4096, width)).astype(np.float32) / np.float32(np.sqrt(width))
    row_of = {video_id.encode(): row for row, video_id in enumerate(ids)}
    vectors: list[npt.NDArray[np.float32] | None] = [None] * len(ids)
    for block in _image_blocks(path):
        rows = [row_of.get(asin) for asin in block["asin"].tolist()]
        known = [i for i, row in enumerate(rows) if row is not None]
        for i, vector in zip(known, block["values"][known] @ projection, strict=True):
            vectors[rows[i] or 0] = vector
    return pa.array(vectors, FLOATS)


def _image_blocks(path: str) -> Iterator[npt.NDArray[np.void]]:
    with files.reading(path) as file:
        while data := file.read(_IMAGE.itemsize * _IMAGES_AT_ONCE):
            if len(data) % _IMAGE.itemsize:
                raise ContractError(
                    f"{path}: expected records of {_IMAGE.itemsize} bytes (asin and 4,096 float32), got "
                    f"{len(data) % _IMAGE.itemsize} bytes too many at the end: fetch the file again"
                )
            yield np.frombuffer(data, _IMAGE)
