"""Your own tables to a world: read in any accepted form, checked against a contract, written as Parquet."""

from __future__ import annotations

import os

from components.importers import sources
from components.importers.summary import ImportSummary, write_world
from components.world import check, files
from transform import contract as contracts
from transform.contract import ContractError


def import_tables(source: str | None, out: str, contract: str = "microvideo", now: int | None = None) -> ImportSummary:
    """Check the tables of a folder and copy what passes into a world.

    Args:
        source: Folder with users, videos and interactions (and frame_feedback), as Parquet, CSV or folders of parts.
            Paths of media in them are kept as they are.
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
    return write_world(out, check.check_world(folder, rules, now))


def _place(folder: str) -> str:
    return folder.rstrip("/") if files.is_remote(folder) else os.path.realpath(folder)
