"""What a world's videos and their media are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from components.world import files, tables

MEDIA, PICTURES = ("media_path",), ("cover_path", "frame_paths")


def fingerprint(world: str, columns: Sequence[str] = MEDIA) -> str:
    """What a world's videos and their files are known by, so that an unchanged world hits the cache and no other does.

    Args:
        world: Folder of the table `videos`.
        columns: Which of its columns hold paths, or lists of them; a table may lack those of `PICTURES`.

    Raises:
        ContractError: There is no table of videos, or it lacks a column.
    """
    digest = hashlib.sha256()
    for path in tables.table_files(world, "videos"):
        digest.update(f"{files.identity(path)}\n".encode())
    rows = tables.read_table(world, "videos")
    for column in columns:
        if column not in rows.column_names and column in PICTURES:
            continue
        if column not in rows.column_names:
            raise tables.missing_column(f"{world}, videos", column, rows.column_names)
        for given in rows[column].to_pylist():
            for path in given if isinstance(given, list) else [given]:
                digest.update(f"{path} {files.sketch(files.locate(world, path)) if path else None}\n".encode())
    return digest.hexdigest()[:32]
