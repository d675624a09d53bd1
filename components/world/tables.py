"""Canonical tables: reading and writing `<world>/<table>.parquet`, `<world>/<table>.csv` or a folder of Parquet parts.

Whatever a file's own types are, callers see the canonical ones: ids are strings, times are int64 unix seconds, lists
are lists. Columns that this module does not know keep their meaning: numbers are int64 or float64, lists of numbers
are list<float32>, and a contract, where given, decides by the kind of the feature.

In CSV a list is written `a|b`, and an empty cell is missing (a quoted empty one is the empty string).
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from components.world import files
from transform.contract import CONTENT, Contract, ContractError, Kind, did_you_mean

ROW_GROUP = 65_536
MILLISECONDS_FROM = 100_000_000_000  # as seconds this is the year 5138, as milliseconds 1973
STRINGS = pa.list_(pa.string())
FLOATS = pa.list_(pa.float32())

CANONICAL: dict[str, dict[str, pa.DataType]] = {
    "users": {"user_id": pa.string(), "followed_ids": STRINGS},
    "videos": {
        "video_id": pa.string(),
        "title": pa.string(),
        "tags": STRINGS,
        "primary_category": pa.string(),
        "secondary_category": pa.string(),
        "author_id": pa.string(),
        "duration_seconds": pa.float64(),
        "published_at": pa.int64(),
        "media_path": pa.string(),
        "group_id": pa.string(),
        "cover_path": pa.string(),
        "frame_paths": STRINGS,
        "frame_vectors": FLOATS,
    },
    "interactions": {"user_id": pa.string(), "video_id": pa.string(), "at": pa.int64()},
    "content": {"video_id": pa.string(), **dict.fromkeys(CONTENT, FLOATS), "fingerprint": pa.string()},
    "video_topics": {"video_id": pa.string(), "topics": STRINGS, "similarities": FLOATS},
    "looks": {"video_id": pa.string(), "look_vector": FLOATS},
    "frame_feedback": {
        "user_id": pa.string(),
        "video_id": pa.string(),
        "frame_index": pa.int64(),
        "liked": pa.float64(),
    },
}
KEYS: dict[str, tuple[str, ...]] = {
    "users": ("user_id",),
    "videos": ("video_id",),
    "interactions": ("user_id", "video_id", "at"),
    "content": ("video_id",),
    "video_topics": ("video_id",),
    "looks": ("video_id",),
    "frame_feedback": ("user_id", "video_id", "frame_index"),
}
_TYPE_OF_KIND = {
    Kind.ID: pa.string(),
    Kind.IDS: STRINGS,
    Kind.HISTORY: STRINGS,
    Kind.NUMBER: pa.float64(),
    Kind.TEXT: pa.string(),
    Kind.VECTOR: FLOATS,
}
_REMEDY = {
    pa.string(): "cast it to string or integer",
    pa.int64(): "cast it to integer (times: unix seconds, or a Parquet timestamp)",
    pa.float64(): "cast it to a number",
    STRINGS: "write a list<string> column (in CSV: a|b)",
    FLOATS: "write a list<float> column (in CSV: 0.1|0.2)",
}
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"
_NUMBERS = rf"^{_NUMBER}(\|{_NUMBER})*$"


@dataclass(frozen=True)
class Shard:
    """A part of a table that one worker reads.

    Attributes:
        path: The file.
        row_group: Which of its row groups; None for a CSV file, which is one shard.
        rows: How many rows it has; -1 where only reading would tell (CSV).
    """

    path: str
    row_group: int | None
    rows: int


def read_table(
    world: str, table: str, columns: Sequence[str] | None = None, contract: Contract | None = None
) -> pa.Table:
    """A table of a world, in canonical types.

    Args:
        world: Folder, local or remote.
        table: `users`, `videos`, `interactions` or `frame_feedback`.
        columns: Which columns, in this order; None: all.
        contract: Decides the types of the columns its features come from; a CSV column of ids with leading zeros, or of
            `a|b` lists that are not canonical, needs it.

    Returns:
        The table; rows in the order of the file (of the parts by name).

    Raises:
        ContractError: The table or a column is not there, or a column cannot be read as its canonical type.
    """
    parts = [_read_file(path, None, table, columns, contract) for path in table_files(world, table)]
    return pa.concat_tables(parts, promote=True)


def shards(world: str, table: str) -> list[Shard]:
    """The parts of a table, in the order of `read_table`.

    Raises:
        ContractError: The table is not there or is not Parquet.
    """
    found = []
    for path in table_files(world, table):
        if path.endswith(".csv"):
            found.append(Shard(path, None, -1))
            continue
        with files.reading(path) as file, _as_parquet(path):
            metadata = pq.ParquetFile(file).metadata
            found += [Shard(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    return found


def read_shard(
    shard: Shard, table: str, columns: Sequence[str] | None = None, contract: Contract | None = None
) -> pa.Table:
    """A part of a table; arguments and errors as `read_table`."""
    return _read_file(shard.path, shard.row_group, table, columns, contract)


def write_table(world: str, table: str, data: pa.Table) -> None:
    """Write `<world>/<table>.parquet`, in row groups that `shards` hands out."""
    files.make_folder(world)
    with files.writing(files.join(world, f"{table}.parquet")) as file:
        pq.write_table(data, file, row_group_size=ROW_GROUP)


def fingerprint(world: str, needed: Sequence[str]) -> str:
    """What the content of a world's needed tables, and of `frame_feedback` if there, is known by for the cache.

    Local files are known by their bytes, remote ones by size and time of change.
    """
    digest = hashlib.sha256()
    more = [table for table in ("frame_feedback",) if is_there(world, table)]
    for table in (*needed, *more):
        for path in table_files(world, table):
            digest.update(f"{table} {files.identity(path)}\n".encode())
    return digest.hexdigest()[:32]


def table_files(world: str, table: str) -> list[str]:
    """The file, or the parts in the order of their names, that hold a table.

    Raises:
        ContractError: There is none, or there are two forms of the table.
    """
    if not files.is_folder(world):
        raise ContractError(f"{world}: expected a world, a folder with users, videos and interactions: no such folder")
    present = set(files.names(world))  # one listing: remote file systems are asked once
    found = [_form(files.join(world, name)) for name in (f"{table}.parquet", f"{table}.csv", table) if name in present]
    forms = [form for form in found if form]
    if len(forms) > 1:
        raise ContractError(
            f"{world}: the table {table} is there more than once ({', '.join(form[0] for form in forms)}): keep one"
        )
    if not forms:
        raise ContractError(
            f"{world}: the table {table} is missing: "
            f"expected {table}.parquet, {table}.csv or a folder {table}/ of .parquet parts"
        )
    return forms[0]


def is_there(world: str, table: str) -> bool:
    """Whether a world has a table that it may lack."""
    present = set(files.names(world)) if files.is_folder(world) else set()
    return bool(present & {f"{table}.parquet", f"{table}.csv", table})


def _form(path: str) -> list[str]:
    """A file, or the parts in a folder (Spark calls it `users.parquet` too)."""
    if files.is_file(path):
        return [path]
    return [files.join(path, name) for name in files.names(path) if name.endswith(".parquet")]


def conform(data: pa.Table, table: str, contract: Contract | None = None, where: str = "") -> pa.Table:
    """The table with canonical types, and those of the contract's features.

    Args:
        data: Any table.
        table: Which one it is.
        contract: See `read_table`.
        where: Names the source in errors.

    Raises:
        ContractError: A column has a type that cannot be read as the one expected.
    """
    types = column_types(table, contract)
    place = where or table
    arrays = [_convert(data[name], types.get(name), f"{place}, column {name}") for name in data.column_names]
    return pa.table(arrays, names=data.column_names)


def column_types(table: str, contract: Contract | None = None) -> dict[str, pa.DataType]:
    """The type of each column that is known: by the contract's features first used, canonical otherwise."""
    used = contract.features if contract is not None else ()
    from_contract = {f.column: _TYPE_OF_KIND[f.kind] for f in used if f.table == table}
    return {**from_contract, **CANONICAL.get(table, {})}


def missing_column(where: str, name: str, present: Sequence[str], need: str = "") -> ContractError:
    """The error for a column that is not there."""
    return ContractError(
        f"{where}: the column {name!r}{need} is missing{did_you_mean(name, present)}: "
        f"the file has {', '.join(present)}: add or rename it"
    )


def _read_file(
    path: str, row_group: int | None, table: str, columns: Sequence[str] | None, contract: Contract | None
) -> pa.Table:
    with files.reading(path) as file:
        if path.endswith(".csv"):
            return _read_csv(file.read(), path, table, columns, contract)
        with _as_parquet(path):
            parquet = pq.ParquetFile(file)
            wanted = _wanted(columns, parquet.schema_arrow.names, path)
            threads = not files.is_remote(path)  # see files.reading
            groups = range(parquet.num_row_groups) if row_group is None else [row_group]
            data = parquet.read_row_groups(groups, wanted, use_threads=threads)
    return conform(data.select(wanted), table, contract, path)


@contextmanager
def _as_parquet(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError(
            f"{path}: expected a whole Parquet file: {error}: write it again, or name it .csv if it is CSV"
        ) from error


def _wanted(columns: Sequence[str] | None, present: list[str], path: str) -> list[str]:
    twice = sorted({name for name in present if present.count(name) > 1})
    if twice:
        raise ContractError(f"{path}: the column {twice[0]!r} is there twice: keep one")
    for name in columns or ():
        if name not in present:
            raise missing_column(path, name, present)
    return list(present if columns is None else columns)


def _read_csv(
    content: bytes, path: str, table: str, columns: Sequence[str] | None, contract: Contract | None
) -> pa.Table:
    header = _csv_header(content, path)
    wanted = _wanted(columns, header, path)
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in header},
        include_columns=wanted,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        text = pacsv.read_csv(
            pa.BufferReader(content),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=convert,
        )
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path}: not a CSV file that can be read: {error}") from error
    types = column_types(table, contract)
    arrays = [_parse(text[name], types.get(name), f"{path}, column {name}") for name in wanted]
    return pa.table(arrays, names=wanted)


def _csv_header(content: bytes, path: str) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        bad = content[error.start : error.start + 1]
        raise ContractError(
            f"{path}, line {line}: expected UTF-8 text, got the byte {bad!r}: convert the file "
            "(for Latin-1: iconv -f latin1 -t utf-8)"
        ) from error
    start = text[: 1 << 16]
    header = [] if "\0" in start else next(csv.reader(start.splitlines()), [])
    if not header:
        raise ContractError(
            f"{path}: expected CSV with a header line, got {'binary data' if start else 'an empty file'}"
        )
    return header


def _convert(column: pa.ChunkedArray, to: pa.DataType | None, where: str) -> pa.ChunkedArray:
    """A column of a typed file in the type expected, or in the plain form of its own where none is."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_fixed_size_list(column.type):
        column = pa.chunked_array([_any_size(chunk) for chunk in column.chunks], pa.list_(column.type.value_type))
    target = _plain_type(column.type) if to is None else to
    kind = column.type
    if kind.equals(target):
        return column
    if pa.types.is_timestamp(kind) and pa.types.is_int64(target):
        return pc.cast(pc.cast(column, pa.timestamp("s", tz=kind.tz), safe=False), target)
    if not pa.types.is_null(kind) and not _compatible(kind, target):
        raise ContractError(f"{where}: expected {target}, got {kind}: {_REMEDY.get(target, 'change its type')}")
    try:
        return pc.cast(
            column, options=pc.CastOptions(target_type=target, allow_invalid_utf8=True, allow_float_truncate=False)
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ContractError(
            f"{where}: expected {target}, got {kind}: {error}: {_REMEDY.get(target, 'change its type')}"
        ) from error


def _any_size(chunk: pa.FixedSizeListArray) -> pa.ListArray:
    """Arrow casts no fixed-size list."""
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    ends = np.cumsum(np.where(valid, chunk.type.list_size, 0))
    offsets = pa.array(np.append(0, ends), pa.int32(), mask=np.append(~valid, False))
    return pa.ListArray.from_arrays(offsets, chunk.flatten())


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The form in which a column that nothing is known about is handed on."""
    types = pa.types
    tests: list[tuple[Callable[[pa.DataType], bool], pa.DataType]] = [
        (types.is_integer, pa.int64()),
        (types.is_timestamp, pa.int64()),
        (types.is_floating, pa.float64()),
        (types.is_decimal, pa.float64()),
        (types.is_large_string, pa.string()),
        (types.is_binary, pa.string()),
        (types.is_large_binary, pa.string()),
    ]
    if _is_list(kind) and _is_number(kind.value_type):
        return FLOATS
    if _is_list(kind) and _compatible(kind.value_type, pa.string()):
        return STRINGS
    return next((plain for test, plain in tests if test(kind)), kind)


def _compatible(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether values of `kind` mean the same as `target`; a string never becomes a number or a list in silence."""
    types = pa.types
    if _is_list(target):
        return _is_list(kind) and _compatible(kind.value_type, target.value_type)
    if types.is_string(target):
        texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        return (
            types.is_integer(kind) or types.is_boolean(kind) or any(test(kind) for test in texts) or types.is_null(kind)
        )
    return _is_number(kind) or types.is_boolean(kind) or types.is_null(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _parse(column: pa.ChunkedArray, to: pa.DataType | None, where: str) -> pa.ChunkedArray:
    """A column of CSV text in the type expected, or in the one its values show where none is."""
    target = _guess(column) if to is None else to
    if target == pa.string():
        return column
    flat = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if _is_list(target):
        return pa.chunked_array([_parse_lists(flat, target, where)])
    return pa.chunked_array([_parse_numbers(flat, target, where)])


def _guess(column: pa.ChunkedArray) -> pa.DataType:
    """The type that all values can be read as: numbers (but not `007`), `|` lists of numbers, else text."""
    matches = pc.all(pc.match_substring_regex(column, _NUMBERS)).as_py()
    if column.null_count == len(column) or not matches:
        return pa.string()
    if pc.any(pc.match_substring(column, "|")).as_py():
        return FLOATS
    return pa.float64() if pc.any(pc.match_substring_regex(column, r"[.eE]")).as_py() else pa.int64()


def _parse_numbers(text: pa.Array, target: pa.DataType, where: str) -> pa.Array:
    try:
        return pc.cast(text, target)
    except pa.ArrowInvalid:
        pass
    try:
        return pc.cast(pc.cast(text, pa.float64()), target)  # 12.0 for an integer; true/false are refused below
    except pa.ArrowInvalid as error:
        row, value = _first_unreadable(text, whole=pa.types.is_integer(target))
        raise ContractError(f"{where}, row {row}: expected {target}, got {value!r}: {_REMEDY[target]}") from error


def _first_unreadable(text: pa.Array, whole: bool) -> tuple[int, str]:
    for row, value in enumerate(text.to_pylist()):
        readable = value is None or re.fullmatch(
            r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", value, re.IGNORECASE
        )
        if not readable or (whole and value is not None and not float(value).is_integer()):
            return row, value
    return len(text), "a number out of range"


def _parse_lists(text: pa.Array, target: pa.DataType, where: str) -> pa.Array:
    parts = pc.split_pattern(text, "|")
    empty = pc.fill_null(pc.equal(text, ""), False)
    values = pc.if_else(empty, pa.scalar([], parts.type), parts)
    if target == STRINGS:
        return values
    try:
        return pc.cast(values, target)
    except pa.ArrowInvalid as error:
        row = next(
            i
            for i, value in enumerate(values.to_pylist())
            if value and _first_unreadable(pa.array(value), False)[0] < len(value)
        )
        raise ContractError(
            f"{where}, row {row}: expected numbers with | between them, got {text[row].as_py()!r}"
        ) from error
