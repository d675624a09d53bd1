"""Continuous training: what a run of one span of time starts from, and what older runs leave that is removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore

from components.world import files
from pipeline.config import RunConfig, SpanSettings
from pipeline.models import MODELS
from pipeline.training_pipeline import Span
from transform.contract import Contract, ContractError, Kind
from transform.impressions import read_vocabularies, write_vocabularies
from transform.warm_start import FOLDER


def start(
    config: RunConfig,
    contract: Contract,
    number: int,
    last: Mapping[str, Any],
    root: str,
    versions: Mapping[str, str],
) -> Span:
    """What a run of a span starts from: the models being served, and what is known of the span before.

    A span that is run again starts from what it started from before, so that what did not change is in the cache.

    Args:
        config: Of the run.
        contract: Of the run.
        number: Which span.
        last: Record of the folder's last run; empty if there is none.
        root: The run's folder; vocabularies are written into it.
        versions: By model, the version being served; "" where there is none.

    Raises:
        ContractError: The configuration has no spans, compares features that cannot be, or a later span was pushed.
    """
    if config.spans is None:
        raise ContractError(
            f"--span {number}: expected spans in the configuration, got none: add `spans: {{first: 2026-01-01}}`"
        )
    _check_drift(config.spans, contract)
    pushed = {int(span): about for span, about in last.get("pushed_spans", {}).items() if int(span) != number}
    if later := max((span for span in pushed if span > number), default=None):
        raise ContractError(
            f"--span {number}: span {later} was pushed from {root}, whose models know what came after: run it in a "
            "folder of its own (--id)"
        )
    before, last_pushed = pushed.get(number - 1, {}), pushed.get(max(pushed, default=-1), {})
    since, until = config.spans.window(number)
    warm_start = _warm_start(config, number, last, {name: f"{root}/models/{name}/{v}" for name, v in versions.items()})
    return Span(
        number=number,
        # What the span before was validated and tested on is learned now.
        window=(min(since, before.get("valid_from", since)), until),
        warm_start=warm_start,
        known_vocabularies=_known_vocabularies(warm_start, root),
        previous_statistics=last_pushed.get("statistics", ""),  # a day that was refused is no measure
    )


def _check_drift(spans: SpanSettings, contract: Contract) -> None:
    fit = {f.name for f in contract.features if f.kind is not Kind.VECTOR}
    unfit = sorted(spans.drift.keys() - fit)
    if unfit:
        raise ContractError(
            f"spans.drift: expected features of the contract that are no vectors, got {', '.join(unfit)}: take them out"
        )


def _warm_start(config: RunConfig, number: int, last: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, str]:
    """The served models of impressions that left something to start from; of a span run again, those of before."""
    names = [name for name in config.models if MODELS[name].examples == "impressions"]
    served = {name: paths[name] for name in names if files.is_folder(f"{paths[name]}/{FOLDER}")}
    if last.get("span") != number:
        return served
    started = {name: path for name, path in last["warm_start"].items() if name in names}
    for path in started.values():
        if not files.is_folder(path):
            raise ContractError(
                f"{path}: span {number} started from this model, which is gone: go on with the next span"
            )
    return {**{name: path for name, path in served.items() if name not in last["config"]["models"]}, **started}


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


def collect(
    connection: proto.ConnectionConfig, root: str, keep: int, needed: set[str], trained: Collection[str]
) -> int:
    """Remove what only runs before the last ones made or read: artifacts, vocabularies and versions of models.

    And what steps left that came to no end: outputs that MLMD does not know, and checkpoints of the models whose
    trainings have ended. Nobody else may be running in the folder.

    Args:
        connection: Of MLMD, where removed artifacts are marked as deleted; the cache misses them.
        root: The run's folder.
        keep: How many runs, and how many versions of each model, are kept.
        needed: Folders that are kept whatever made them.
        trained: Models whose trainings have ended.

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
    folders = {artifact.uri for artifact in old}
    for model in _children(f"{root}/models"):
        folders |= {f"{model}/{version}" for version in files.versions(model)[:-keep]}
    folders |= set(_children(f"{root}/vocabularies"))
    folders |= {folder for model in trained for folder in _children(f"{root}/checkpoints/{model}")}
    known = {_identity(artifact.uri) for artifact in artifacts}
    folders |= {folder for folder in _outputs(f"{root}/artifacts") if _identity(folder) not in known}
    removed = [folder for folder in folders - needed if files.is_folder(folder)]
    for folder in removed:
        files.remove_folder(folder)
    for artifact in old:
        artifact.state = proto.Artifact.DELETED
    store.put_artifacts(old)
    return len(removed)


def _outputs(root: str) -> set[str]:
    """The folder of each output of each execution of each step."""
    outputs = [output for step in _children(root) for output in _children(step) if not output.endswith("/.system")]
    return {folder for output in outputs for folder in _children(output)}


def _identity(output: str) -> tuple[str, ...]:
    """Step, name and execution: MLMD knows outputs by the path of the day, and the folder may have moved since."""
    return tuple(output.rsplit("/", 3)[1:])


def _children(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in files.names(folder)] if files.is_folder(folder) else []
