"""What a world's videos and their media are known by."""

from __future__ import annotations

import hashlib

from components.world import files, tables


def fingerprint(world: str, column: str = "media_path", optional: bool = False) -> str:
    """What a world's videos and their files are known by, so that an unchanged world hits the cache and no other does.

    Args:
        world: Folder of the table `videos`.
        column: Which of its columns holds the paths.
        optional: Whether a table may lack the column.

    Raises:
        ContractError: There is no table of videos, or it lacks the column.
    """
    digest = hashlib.sha256()
    for path in tables.table_files(world, "videos"):
        digest.update(f"{files.identity(path)}\n".encode())
    rows = tables.read_table(world, "videos", None if optional else [column])
    for path in rows[column].to_pylist() if column in rows.column_names else ():
        digest.update(f"{path} {files.sketch(files.locate(world, path)) if path else None}\n".encode())
    return digest.hexdigest()[:32]
