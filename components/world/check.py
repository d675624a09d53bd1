"""The check of a world: what is wrong with rows is quarantined and counted, what is wrong with a file stops.

A row fault costs a row (a duplicate, an unknown user, a label that is NaN); a file fault means that the table is not
what the contract is about (a missing column, a wrong type, every time in milliseconds), and no row of it can be
trusted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.world import files, tables
from transform.contract import Contract, ContractError, Feature, Kind, Role

CHECKED = ("users", "videos", "interactions")
FEEDBACK = "frame_feedback"
CLIPS_ONLY = "no users and no interactions: enough to train the video classifier, not the recommenders"
REJECTED = pa.schema([("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())])

_Mask = npt.NDArray[np.bool_]


@dataclass
class Checked:
    """A world after the check.

    Attributes:
        users: Rows that passed; likewise `videos`, `interactions` and `frame_feedback`, which has no column where there
            is no such table.
        rejected: Rows that did not: table, row (index in the source, from 0), reason, content (JSON).
        counts: How many rows were rejected, by "<table>: <reason>", most frequent first.
        notes: What is odd but does no harm, such as optional columns that are not there.
    """

    users: pa.Table
    videos: pa.Table
    interactions: pa.Table
    rejected: pa.Table
    counts: dict[str, int]
    notes: list[str]
    frame_feedback: pa.Table = field(default_factory=lambda: pa.table({}))

    @property
    def tables(self) -> dict[str, pa.Table]:
        """What passed of each table that is there."""
        given = {name: getattr(self, name) for name in (*CHECKED, FEEDBACK)}
        return {name: table for name, table in given.items() if table.column_names}


def check_world(world: str, contract: Contract, now: int | None = None) -> Checked:
    """Read the tables of a world and check them; arguments, result and errors as `check_tables`.

    A world of clips, which has neither users nor interactions, is checked for what the classifier needs.
    """
    present = {name.partition(".")[0] for name in files.names(world)} if files.is_folder(world) else set()
    if "videos" in present and not present & {"users", "interactions"}:
        return _check_clips(world, clock(now))
    wanted = (*CHECKED, FEEDBACK) if FEEDBACK in present else CHECKED
    loaded = {table: tables.read_table(world, table, contract=contract) for table in wanted}
    sources = {table: ", ".join(tables.table_files(world, table)[:1]) for table in wanted}
    return check_tables(**loaded, contract=contract, now=clock(now), sources=sources)


def check_tables(
    users: pa.Table,
    videos: pa.Table,
    interactions: pa.Table,
    contract: Contract,
    now: int,
    sources: Mapping[str, str] | None = None,
    frame_feedback: pa.Table | None = None,
) -> Checked:
    """Separate the rows that fit the contract from those that do not.

    Args:
        users: Canonical users.
        videos: Canonical videos.
        interactions: Canonical interactions.
        contract: Which columns must be there, of what type and in which range.
        now: Unix seconds; later events are faults.
        sources: By table, what errors call it; the name of the table where absent.
        frame_feedback: Canonical feedback on frames, if there is any.

    Returns:
        Kept and rejected rows; every input row is in exactly one of them.

    Raises:
        ContractError: A table as a whole is wrong: empty, a column missing or of the wrong type, all times in
            milliseconds, all vectors of another length, or no row left.
    """
    check = _Check(contract, now, dict(sources or {}))
    kept_users = check.table("users", users)
    kept_videos = check.table("videos", videos)
    known = {"user_id": kept_users["user_id"], "video_id": kept_videos["video_id"]}
    kept = check.table("interactions", interactions, known)
    liked = check.feedback(frame_feedback, known) if frame_feedback is not None else pa.table({})
    rejected = pa.concat_tables([REJECTED.empty_table(), *check.rejected])
    counts = dict(sorted(check.counts.items(), key=lambda item: -item[1]))
    return Checked(kept_users, kept_videos, kept, rejected, counts, check.notes, liked)


def _check_clips(world: str, now: int) -> Checked:
    """A world of clips: every video has an id and a media file that is there."""
    videos = tables.read_table(world, "videos")
    if "media_path" not in videos.column_names:
        raise tables.missing_column(f"{world}, videos", "media_path", videos.column_names)
    nothing = Contract.model_construct(name="clips", vocabularies={}, features=())  # asks for no column
    check = _Check(nothing, now, {})
    paths = [path or "" for path in videos["media_path"].to_pylist()]
    absent = np.array([not files.is_file(files.locate(world, path)) for path in paths], np.bool_)
    kept = check.table("videos", videos, further={"media_path is not a file": absent})
    none = pa.table({})
    rejected = pa.concat_tables([REJECTED.empty_table(), *check.rejected])
    return Checked(none, kept, none, rejected, check.counts, [*check.notes, CLIPS_ONLY])


def clock(now: int | None) -> int:
    """Unix seconds: those given, or of the clock."""
    return int(time.time()) if now is None else now


@dataclass
class _Faults:
    """The first reason found for each row of a table."""

    rows: int
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.code = np.full(self.rows, -1, dtype=np.int32)

    def mark(self, faulty: _Mask, reason: str) -> None:
        """Give the rows that are still good this reason."""
        self.code[faulty & self.good] = len(self.reasons)
        self.reasons.append(reason)

    @property
    def good(self) -> _Mask:
        return self.code < 0

    def counts(self) -> dict[str, int]:
        number = np.bincount(self.code[~self.good], minlength=len(self.reasons))
        return {reason: int(n) for reason, n in zip(self.reasons, number, strict=True) if n}


@dataclass
class _Check:
    """One run of the check, over the tables in turn."""

    contract: Contract
    now: int
    sources: dict[str, str]
    rejected: list[pa.Table] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def feedback(self, data: pa.Table, known: Mapping[str, pa.ChunkedArray]) -> pa.Table:
        """The rows of `frame_feedback` that pass."""
        for column in tables.CANONICAL[FEEDBACK]:
            if column not in data.column_names:
                raise tables.missing_column(self.sources.get(FEEDBACK, FEEDBACK), column, data.column_names)
        if len(data) == 0:
            self.notes.append(f"{FEEDBACK} has no row: nothing is known of frames")
            return data
        data = tables.conform(data, FEEDBACK)
        further = {
            "duplicate frame_index": _repeated_rows(data.select(tables.KEYS[FEEDBACK])),
            "frame_index below 0": _bools(pc.less(data["frame_index"], 0)),
            "liked is missing or NaN": _missing(data["liked"]) | _bools(pc.is_nan(data["liked"])),
        }
        return self.table(FEEDBACK, data, known, further)

    def table(
        self,
        name: str,
        data: pa.Table,
        known: Mapping[str, pa.ChunkedArray] | None = None,
        further: Mapping[str, _Mask] | None = None,
    ) -> pa.Table:
        """The rows of a table that pass, `further` faults by reason included; the others are noted and counted."""
        where = self.sources.get(name, name)
        if len(data) == 0:
            raise ContractError(f"{where}: expected rows, got an empty table: check the export that wrote it")
        self._columns(name, data, where)
        data = tables.conform(data, name, self.contract, where)
        types = tables.column_types(name, self.contract)
        faults = _Faults(len(data))
        _mark_text(faults, data, [name for name in data.column_names if name in types])
        for key in tables.KEYS[name]:
            faults.mark(_missing(data[key]), f"missing {key}")
        self._times(faults, name, data, where)
        for feature in self._features(name, data):
            _mark_feature(faults, feature, data[feature.column], where)
        for key, ids in (known or {}).items():
            faults.mark(~_bools(pc.is_in(data[key], value_set=ids.combine_chunks())), f"unknown {key}")
        for reason, faulty in (further or {}).items():
            faults.mark(faulty, reason)
        if name in ("users", "videos"):
            key = tables.KEYS[name][0]
            faults.mark(_repeated(data[key], faults.good), f"duplicate {key}")
        return self._split(name, data, faults, where)

    def _columns(self, name: str, data: pa.Table, where: str) -> None:
        for key in tables.KEYS[name]:
            if key not in data.column_names:
                raise tables.missing_column(where, key, data.column_names)
        for feature, column in self.contract.needs(name):
            if column in data.column_names:
                continue
            if not feature.optional:
                raise tables.missing_column(
                    where, column, data.column_names, f" (feature {feature.name!r} of the contract)"
                )
            self.notes.append(f"{name} has no column {column!r}: the optional feature {feature.name!r} stays empty")

    def _features(self, name: str, data: pa.Table) -> list[Feature]:
        return [f for f in self.contract.features if f.table == name and f.column in data.column_names]

    def _times(self, faults: _Faults, name: str, data: pa.Table, where: str) -> None:
        for column in ("at", "published_at"):
            if column not in tables.CANONICAL[name] or column not in data.column_names:
                continue
            times = data[column]
            fine = _bools(pc.greater(times, tables.MILLISECONDS_FROM))
            if fine.any() and fine.sum() == len(times) - times.null_count:
                raise ContractError(
                    f"{where}, column {column}, row 0: expected unix seconds, got milliseconds or finer in every row "
                    f"(the first is {times.drop_null()[0].as_py()}): divide the column by 1000"
                )
            faults.mark(fine, f"{column} in milliseconds, expected unix seconds")
            faults.mark(_bools(pc.greater(times, self.now)), f"{column} in the future")
            if column == "at":
                faults.mark(_bools(pc.less_equal(times, 0)), "at is not positive")

    def _split(self, name: str, data: pa.Table, faults: _Faults, where: str) -> pa.Table:
        counts = faults.counts()
        self.counts.update({f"{name}: {reason}": number for reason, number in counts.items()})
        if counts:
            self.rejected.append(_rejected(name, data, faults))
        if not faults.good.any() and name != FEEDBACK:
            worst = max(counts, key=lambda reason: counts[reason])
            raise ContractError(
                f"{where}: no row is left, {counts[worst]} of {len(data)} for one reason: {worst}: mend the table"
            )
        return data.filter(pa.array(faults.good)) if counts else data


def _mark_feature(faults: _Faults, feature: Feature, column: pa.ChunkedArray, where: str) -> None:
    if feature.kind is Kind.VECTOR:
        _mark_vector(faults, feature, column, where)
    if feature.kind is not Kind.NUMBER:
        return
    if feature.role in (Role.LABEL, Role.WEIGHT) and feature.default is None:
        faults.mark(_missing(column) | _bools(pc.is_nan(column)), f"{feature.column} is missing or NaN")
    faults.mark(_bools(pc.is_inf(column)), f"{feature.column} is infinite")
    if feature.minimum is not None:
        faults.mark(_bools(pc.less(column, feature.minimum)), f"{feature.column} below {feature.minimum:g}")
    if feature.maximum is not None:
        faults.mark(_bools(pc.greater(column, feature.maximum)), f"{feature.column} above {feature.maximum:g}")


def _mark_vector(faults: _Faults, feature: Feature, column: pa.ChunkedArray, where: str) -> None:
    lengths = _numbers(pc.fill_null(pc.list_value_length(column), 0))
    given = lengths > 0  # null and [] both say that the vector is missing
    wrong = given & (lengths != feature.dimension)
    if given.any() and bool(np.all(wrong[given])):
        row = int(np.argmax(given))
        raise ContractError(
            f"{where}, column {feature.column}, row {row}: expected {feature.dimension} values, got {lengths[row]}: "
            f"set the dimension of {feature.name!r} in the contract"
        )
    faults.mark(wrong, f"{feature.column} has not {feature.dimension} values")
    values = column.combine_chunks().flatten()
    bad = np.repeat(np.arange(len(lengths)), lengths)[~_bools(pc.fill_null(pc.is_finite(values), False))]
    holds_nan = np.zeros(len(lengths), dtype=np.bool_)
    holds_nan[bad] = True
    faults.mark(holds_nan, f"{feature.column} holds NaN")


def _mark_text(faults: _Faults, data: pa.Table, names: Sequence[str]) -> None:
    """Rows whose text is not UTF-8; looked for value by value only in a column that Arrow finds invalid."""
    for name in names:
        if not _is_valid(data[name]):
            faults.mark(_not_utf8(data[name]), f"{name} is not UTF-8")


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _not_utf8(column: pa.ChunkedArray) -> _Mask:
    is_text = pa.types.is_string(column.type)
    raw = pc.cast(column, pa.binary() if is_text else pa.list_(pa.binary())).to_pylist()
    return np.array(
        [any(not _decodes(value) for value in ([row] if is_text else row or [])) for row in raw], dtype=np.bool_
    )


def _decodes(value: bytes | None) -> bool:
    try:
        (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _missing(column: pa.ChunkedArray) -> _Mask:
    empty = _numbers(column.is_null()).astype(np.bool_)
    return empty | _bools(pc.equal(column, "")) if pa.types.is_string(column.type) else empty


def _repeated(ids: pa.ChunkedArray, among: _Mask) -> _Mask:
    """Whether an earlier row, among those given, has the same id."""
    codes = _numbers(pc.fill_null(ids.combine_chunks().dictionary_encode().indices, -1))
    rows = np.flatnonzero(among)
    first = rows[np.unique(codes[rows], return_index=True)[1]]
    repeated = among.copy()
    repeated[first] = False
    return repeated


def _repeated_rows(data: pa.Table) -> _Mask:
    """Which rows are equal to an earlier one."""
    keys = list(zip(*(data[name].to_pylist() for name in data.column_names), strict=True))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return np.array([first[key] != row for row, key in enumerate(keys)], np.bool_)


def _rejected(name: str, data: pa.Table, faults: _Faults) -> pa.Table:
    rows = np.flatnonzero(~faults.good)
    printable = data.take(pa.array(rows))
    for index, column in enumerate(data.column_names):
        if pa.types.is_string(data[column].type):
            raw = pc.cast(printable[column], pa.binary()).to_pylist()
            text = [None if value is None else value.decode("utf-8", "replace") for value in raw]
            printable = printable.set_column(index, column, pa.array(text, pa.string()))
        elif data[column].type == tables.STRINGS:
            raw = pc.cast(printable[column], pa.list_(pa.binary())).to_pylist()
            lists = [None if row is None else [(v or b"").decode("utf-8", "replace") for v in row] for row in raw]
            printable = printable.set_column(index, column, pa.array(lists, tables.STRINGS))
    content = [json.dumps(_jsonable(row), ensure_ascii=False, default=str) for row in printable.to_pylist()]
    reasons = [faults.reasons[code] for code in faults.code[rows]]
    return pa.table([[name] * len(rows), rows, reasons, content], schema=REJECTED)


def _jsonable(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become their names."""
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _bools(values: pa.ChunkedArray | pa.Array) -> _Mask:
    """A boolean column as NumPy; null is False."""
    return _numbers(pc.fill_null(values, False)).astype(np.bool_)


def _numbers(values: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = (
        values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    )
    return array
