"""Continuous training: what a run of one span of time starts from, and what older runs leave that is removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from tfx.dsl.io import fileio

from components.serving_baseline.executor import served_version
from pipeline.config import RunConfig
from pipeline.models import MODELS
from pipeline.training_pipeline import Span
from transform.contract import Contract, ContractError
from transform.impressions import read_vocabularies, write_vocabularies
from transform.warm_start import FOLDER


def start(config: RunConfig, contract: Contract, number: int, last: Mapping[str, Any], root: str) -> Span:
    """What a run of a span starts from: the models being served, and the statistics of the span before.

    A span that is run again starts from what it started from before, so that what did not change is in the cache.

    Args:
        config: Of the run.
        contract: Of the run.
        number: Which span.
        last: Record of the folder's last run; empty if there is none.
        root: The run's folder; vocabularies are written into it.

    Raises:
        ContractError: The configuration has no spans, or names features that are not in the contract.
    """
    if config.spans is None:
        raise ContractError(
            f"--span {number}: expected spans in the configuration, got none: add `spans: {{first: 2026-01-01}}`"
        )
    unknown = sorted(config.spans.drift.keys() - {feature.name for feature in contract.features})
    if unknown:
        raise ContractError(f"spans.drift: expected features of the contract, got {', '.join(unknown)}: rename them")
    warm_start = dict(last.get("warm_start", {})) if last.get("span") == number else {}
    if not warm_start or not all(fileio.isdir(model) for model in warm_start.values()):
        warm_start = _served(config, f"{root}/models")
    statistics = {int(span): uri for span, uri in last.get("statistics_of", {}).items() if fileio.isdir(uri)}
    before = max((span for span in statistics if span < number), default=None)
    return Span(
        number=number,
        window=config.spans.window(number),
        warm_start=warm_start,
        known_vocabularies=_known_vocabularies(warm_start, root),
        previous_statistics="" if before is None else statistics[before],
    )


def _served(config: RunConfig, models: str) -> dict[str, str]:
    """The served models of impressions that left something to start from."""
    names = [name for name in config.models if MODELS[name].examples == "impressions"]
    paths = {name: f"{models}/{name}/{served_version(f'{models}/{name}')}" for name in names}
    return {name: path for name, path in paths.items() if fileio.isdir(f"{path}/{FOLDER}")}


def _known_vocabularies(warm_start: Mapping[str, str], root: str) -> str:
    """A folder of all entries that any of the models knows: those of the first one keep their rows."""
    if not warm_start:
        return ""
    known: dict[str, dict[bytes, None]] = {}
    for model in warm_start.values():
        for vocabulary, entries in read_vocabularies(f"{model}/{FOLDER}").items():
            known.setdefault(vocabulary, {}).update(dict.fromkeys(entries))
    made_of = hashlib.sha256(json.dumps(warm_start, sort_keys=True).encode()).hexdigest()[:16]
    folder = f"{root}/vocabularies/{made_of}"
    write_vocabularies({vocabulary: list(entries) for vocabulary, entries in known.items()}, folder)
    return folder


def collect(connection: proto.ConnectionConfig, root: str, keep: int, needed: set[str]) -> int:
    """Remove what only runs before the last ones made or read: artifacts, vocabularies and versions of models.

    Args:
        connection: Of MLMD, where removed artifacts are marked as deleted; the cache misses them.
        root: The run's folder.
        keep: How many runs, and how many versions of each model, are kept.
        needed: Folders that are kept whatever made them.

    Returns:
        How many folders were removed.
    """
    store = MetadataStore(connection)
    runs = sorted(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)[-keep:]
    executions = [execution.id for run in runs for execution in store.get_executions_by_context(run.id)]
    used = {event.artifact_id for event in store.get_events_by_execution_ids(executions)}
    artifacts = store.get_artifacts()
    kept = {artifact.uri for artifact in artifacts if artifact.id in used} | needed
    old = [a for a in artifacts if a.state == proto.Artifact.LIVE and a.uri not in kept and a.uri.startswith(root)]
    for artifact in old:
        artifact.state = proto.Artifact.DELETED
    store.put_artifacts(old)
    folders = {artifact.uri for artifact in old}
    for model in _children(f"{root}/models"):
        versions = sorted((path for path in _children(model) if path.rpartition("/")[2].isdigit()), key=_version)
        folders |= set(versions[:-keep])
    folders |= set(_children(f"{root}/vocabularies"))
    removed = [folder for folder in folders - needed if fileio.isdir(folder)]
    for folder in removed:
        fileio.rmtree(folder)
    return len(removed)


def _version(path: str) -> int:
    return int(path.rpartition("/")[2])


def _children(folder: str) -> list[str]:
    return [f"{folder}/{name.rstrip('/')}" for name in fileio.listdir(folder)] if fileio.isdir(folder) else []
