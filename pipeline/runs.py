"""Finds runs on disk. Imports nothing slow: the command line asks before it loads TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transform.contract import ContractError


def load_run(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        ContractError: There is none in this folder, or it cannot be read.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise ContractError(f"no run in {folder}: expected {path}; `shortlist run` or `shortlist demo` writes it")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("id", "world", "outcome", "started", "finished", "config", "contract", "models"):
            record[key]
    except (ValueError, KeyError) as error:
        raise ContractError(f"{path}: expected the record of a run, got {error!r}: delete it and run again") from error
    return record


def artifact(run: Mapping[str, Any], name: str) -> str | None:
    """The folder of an artifact that any of a run's models was made with; None if there is none of that name."""
    return next((uris[name] for uris in run.get("artifacts", {}).values() if name in uris), None)


def learned_of_videos(run: Mapping[str, Any]) -> dict[str, str]:
    """Folders of what a run learned of videos, as `components.impression_example_gen.impressions` asks for them."""
    found = {name: artifact(run, name) for name in ("content", "topics", "frames")}
    return {name: uri for name, uri in found.items() if uri is not None}


def newest_run(runs: Path, with_models: bool = False) -> Path:
    """The folder of the run that ended last.

    Args:
        runs: Folder of runs.
        with_models: Whether only runs count that have pushed a model, if there are any.

    Raises:
        ContractError: There is none.
    """
    records = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if with_models:
        records = [path for path in records if (path.parent / "models").is_dir()] or records
    if not records:
        raise ContractError(f"no run.json below {runs}: start with `shortlist demo`, or `shortlist run --config FILE`")
    return records[-1].parent
