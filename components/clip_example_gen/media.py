"""What a world's videos and their media are known by."""

from __future__ import annotations

import hashlib

from components.world import files, tables


def fingerprint(world: str) -> str:
    """What a world's videos and media are known by, so that an unchanged world hits the cache and no other does.

    Raises:
        ContractError: There is no table of videos, or it has no media_path.
    """
    digest = hashlib.sha256()
    for path in tables.table_files(world, "videos"):
        digest.update(f"{files.identity(path)}\n".encode())
    for path in tables.read_table(world, "videos", ["media_path"])["media_path"].to_pylist():
        digest.update(f"{path} {files.sketch(files.locate(world, path)) if path else None}\n".encode())
    return digest.hexdigest()[:32]
