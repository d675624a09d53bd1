"""What every importer ends with: the checked world on disk, and an account of it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from components.world import check, tables
from transform.contract import Contract, ContractError


@dataclass(frozen=True)
class ImportSummary:
    """What an import made.

    Attributes:
        world: Folder of the world.
        rows: Rows written, by table.
        rejected: Rows in `rejected.parquet`, by "<table>: <reason>".
        notes: What the user should know about the data.
    """

    world: str
    rows: dict[str, int]
    rejected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_world(out: str, checked: check.Checked, notes: list[str] | None = None) -> ImportSummary:
    """Write the tables of a checked world and its `rejected.parquet`.

    Raises:
        ContractError: The folder holds a table of an earlier import that this one does not make.
    """
    refuse_leftovers(out, checked.tables)
    for table, data in checked.tables.items():
        tables.write_table(out, table, data)
    tables.write_table(out, "rejected", checked.rejected)
    rows = {table: len(data) for table, data in checked.tables.items()}
    return ImportSummary(out, rows, checked.counts, [*(notes or []), *checked.notes])


def refuse_leftovers(out: str, made: Container[str]) -> None:
    """Tables of an earlier import would count as this one's.

    Raises:
        ContractError: The folder holds one that this import does not make.
    """
    left = [table for table in tables.CANONICAL if table not in made and tables.is_there(out, table)]
    if left:
        raise ContractError(
            f"{out}: expected no tables but those of this import, got {' and '.join(left)} of an earlier one, which "
            "would count as its: remove the folder, or give another with --out"
        )


def check_and_write(
    out: str, contract: Contract, now: int | None, notes: list[str], data: dict[str, Any]
) -> ImportSummary:
    """Check the tables `users`, `videos`, `interactions` and, if given, `frame_feedback`, and write what passes.

    Raises:
        ContractError: A table as a whole is wrong, see `components.world.check`.
    """
    checked = check.check_tables(**data, contract=contract, now=check.clock(now))
    return write_world(out, checked, notes)
