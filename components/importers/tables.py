"""Your own tables to a world: read in any accepted form, checked against a contract, written as Parquet."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pyarrow as pa

from components.clip_example_gen.media import MEDIA, PICTURES
from components.importers import sources
from components.importers.summary import ImportSummary, write_world
from components.world import check, files
from transform import contract as contracts
from transform.contract import ContractError


def import_tables(source: str | None, out: str, contract: str = "microvideo", now: int | None = None) -> ImportSummary:
    """Check the tables of a folder and copy what passes into a world.

    Args:
        source: Folder with users, videos and interactions (and frame_feedback), as Parquet, CSV or folders of parts.
            Relative paths of media in them start there.
        out: Folder of the world; not the source.
        contract: Name or path of the contract that says which columns must be there.
        now: Unix seconds; the clock where absent.

    Raises:
        ContractError: A table is missing or wrong as a whole, or source and world are the same folder.
    """
    folder = sources.folder(source, "the tables users, videos and interactions")
    if _place(folder) == _place(out):
        raise ContractError(f"{out}: expected a world apart from the source, got the same folder: choose another --out")
    rules = contracts.load(contract)
    checked = check.check_world(folder, rules, now)
    return write_world(out, replace(checked, videos=_located(checked.videos, folder)))


def _located(videos: pa.Table, folder: str) -> pa.Table:
    """With the paths of media as they are to be found from the world, which lies elsewhere."""
    folder = folder if files.is_remote(folder) else os.path.abspath(folder)
    for column in (name for name in (*MEDIA, *PICTURES) if name in videos.column_names):
        of_rows = [_locate(folder, given) for given in videos[column].to_pylist()]
        place = videos.column_names.index(column)
        videos = videos.set_column(place, column, pa.array(of_rows, videos[column].type))
    return videos


def _locate(folder: str, given: Any) -> Any:
    """A path or a list of them; nothing stays nothing."""
    if isinstance(given, list):
        return [_locate(folder, path) for path in given]
    return files.locate(folder, given) if given else given


def _place(folder: str) -> str:
    return folder.rstrip("/") if files.is_remote(folder) else os.path.realpath(folder)
