"""A folder of videos by class as a world: UCF101 (`<Class>/v_<Class>_gNN_cNN.avi`) and any other `<class>/<file>`.

Source of the layout: Soomro et al., UCF101, 2012; https://www.crcv.ucf.edu/data/UCF101.php.

The class becomes `primary_category`. Files cut from one source share a `group_id`, which splits never separate: their
name up to a last `_c01`, `-clip3`, `_part2` or the like, within the class. Media stay where they are.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from components.clip_example_gen.isolation import Decoder
from components.importers import sources
from components.importers.summary import ImportSummary, refuse_leftovers
from components.world import check, files, tables
from transform.clip_settings import ClipSettings
from transform.contract import ContractError

SUFFIXES = (
    *(".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv", ".3gp"),
    *(".3g2", ".asf", ".f4v", ".m2ts", ".mts", ".mxf", ".ogv", ".vob"),
)
_PART = re.compile(r"[_-](c|clip|part|seg|segment|chunk)[_-]?\d+$", re.IGNORECASE)
_EXPECTED = "a folder for each class with its videos in it"
_NOT_VIDEO = "the file name is not that of a video"
_NO_CLASS = "not in a folder of its class"
_LINK = "a link to a folder"
_NAMED = 5  # of a kind
# Any length and size: a run has limits of its own.
_ANY = ClipSettings(max_pixels=2**31 - 1, max_seconds=1e9, max_frames=2**62, max_decode_seconds=20)


def import_clips(source: str | None, out: str) -> ImportSummary:
    """Write a world of videos, without users or interactions, from a folder of classes.

    Args:
        source: Folder of one folder for each class; local or remote.
        out: Folder of the world.

    Raises:
        ContractError: There is no class folder with a video.
    """
    folder = sources.folder(source, _EXPECTED)
    refuse_leftovers(out, ("videos",))
    root = folder if files.is_remote(folder) else os.path.abspath(folder)
    labels = [name for name in files.names(root) if not os.path.islink(files.join(root, name))]
    found = [(label, name) for label in labels for name in _below(files.join(root, label))]
    rows = _rows(root, [(label, name) for label, name in found if _is_video(name)])
    if not rows:
        raise ContractError(f"{folder}: expected {_EXPECTED}, got none with {', '.join(SUFFIXES)}: check --from")
    unlike = [f"{label}/{name}" for label, name in found if not _is_video(name)]
    others = [(path, _NOT_VIDEO if files.is_file(files.join(root, path)) else _LINK) for path in unlike]
    others += [(name, _LINK) for name in files.names(root) if name not in labels]
    others += [(name, _NO_CLASS) for name in labels if _is_video(name) and files.is_file(files.join(root, name))]
    tables.write_table(out, "videos", tables.conform(pa.Table.from_pylist(rows), "videos"))
    reasons = [("videos", i, why, json.dumps({"media_path": path})) for i, (path, why) in enumerate(others)]
    rejected = [dict(zip(check.REJECTED.names, reason, strict=True)) for reason in reasons]
    tables.write_table(out, "rejected", pa.Table.from_pylist(rejected, check.REJECTED))
    counts = dict(Counter(f"videos: {why}" for _, why in others))
    return ImportSummary(out, {"videos": len(rows)}, counts, _notes(rows))


def _below(folder: str) -> Iterator[str]:
    """Every file of a folder and of the folders in it, as a path within it; links to folders are not followed."""
    names = files.names(folder) if files.is_folder(folder) else []
    for name in (name for name in names if not name.startswith(".")):
        path = files.join(folder, name)
        if files.is_file(path) or os.path.islink(path):  # which may lead back
            yield name
        else:
            yield from (f"{name}/{below}" for below in _below(path))


def _is_video(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _rows(root: str, found: list[tuple[str, str]]) -> list[dict[str, str | float | None]]:
    paths = [files.join(files.join(root, label), name) for label, name in found]
    return [
        {
            "video_id": f"{label}/{name}",
            "primary_category": label,
            "group_id": f"{label}/{_PART.sub('', os.path.splitext(os.path.basename(name))[0])}",
            "duration_seconds": seconds,
            "media_path": path,
        }
        for (label, name), path, seconds in zip(found, paths, _seconds(paths), strict=True)
    ]


def _seconds(paths: list[str]) -> list[float | None]:
    """By the files' headers, which a process of its own reads; what is wrong with a file is told when it is decoded."""
    decoder = Decoder(_ANY)
    try:
        answers = decoder.clips((path, None) for path in paths if not files.is_remote(path))
        return [None if files.is_remote(path) else getattr(next(answers), "seconds", None) for path in paths]
    finally:
        decoder.close()


def _notes(rows: list[dict[str, str | float | None]]) -> list[str]:
    classes, groups = (len({row[name] for row in rows}) for name in ("primary_category", "group_id"))
    broken = [str(row["video_id"]) for row in rows if row["duration_seconds"] is None]
    why = "remote, slow to read, or broken (then no clip comes of them)"
    some = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
    unknown = [f"{len(broken)} videos of unknown duration: {why}: {some}"] if broken else []
    return [f"{classes} classes, {groups} groups that splits keep together", *unknown, check.CLIPS_ONLY]
