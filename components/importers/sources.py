"""Finding and reading the files that an importer starts from."""

from __future__ import annotations

import fnmatch
import gzip

import pyarrow as pa
import pyarrow.csv as pacsv

from components.world import files
from transform.contract import ContractError


def folder(source: str | None, expected: str) -> str:
    """The folder to import from.

    Args:
        source: What the user gave.
        expected: What it should hold, for the error.

    Raises:
        ContractError: None was given, or there is no such folder.
    """
    if source is None:
        raise ContractError(f"expected --from DIR, a folder with {expected}: got none")
    if not files.is_folder(source):
        raise ContractError(f"{source}: expected a folder with {expected}: no such folder")
    return source


def find(source: str, *patterns: str) -> str | None:
    """The first file of the folder, by pattern and then by name, that matches; None where there is none."""
    present = files.names(source)
    for pattern in patterns:
        for name in fnmatch.filter(present, pattern):
            if files.is_file(path := files.join(source, name)):
                return path
    return None


def require(source: str, *patterns: str) -> str:
    """As `find`.

    Raises:
        ContractError: No file matches.
    """
    found = find(source, *patterns)
    if found is None:
        raise ContractError(
            f"{source}: expected a file {' or '.join(patterns)}: there is none among {len(files.names(source))} entries"
        )
    return found


def only(source: str, *patterns: str) -> str:
    """The one file that matches any of the patterns.

    Raises:
        ContractError: No file matches, or several do: which one is meant, nobody but the user knows.
    """
    entries = [name for name in files.names(source) if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    found = [name for name in entries if files.is_file(files.join(source, name))]
    if len(found) > 1:
        raise ContractError(
            f"{source}: expected one file {' or '.join(patterns)}, got {' and '.join(found)}: "
            "keep one, or join them into one"
        )
    return files.join(source, found[0]) if found else require(source, *patterns)


def content(path: str) -> bytes:
    """The bytes of a file, unpacked where its name ends in .gz.

    Raises:
        ContractError: It is named .gz and is not.
    """
    with files.reading(path) as file:
        data = file.read()
    try:
        return gzip.decompress(data) if path.endswith(".gz") else data
    except (OSError, EOFError) as error:
        raise ContractError(f"{path}: not a complete gzip file ({error}): fetch it again") from error


def delimited(path: str, delimiter: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """A Latin-1 file without header or quotes, as the older public data sets come.

    Args:
        path: The file.
        delimiter: Between fields, one or more characters.
        columns: Names and types of its fields, in order.

    Raises:
        ContractError: A line has another number of fields, or a value does not have the type.
    """
    text = content(path).decode("latin-1")
    if len(delimiter) > 1:
        text, delimiter = text.replace(delimiter, "\x1f"), "\x1f"
    try:
        return pacsv.read_csv(
            pa.BufferReader(text.encode("utf-8")),
            read_options=pacsv.ReadOptions(column_names=list(columns), use_threads=False),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types=columns, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path}: expected the fields {', '.join(columns)} in every line: {error}") from error
