"""Runs the pipeline on this machine: LocalDagRunner, MLMD in SQLite, progress on the screen."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import absl.logging
from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from rich.console import Console
from rich.status import Status
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from components.clip_example_gen import media
from components.impression_example_gen.executor import read_summary
from components.serving_baseline.executor import served_version
from components.world import files, tables
from pipeline import spans, training_pipeline
from pipeline.config import RunConfig
from pipeline.errors import RunFailedError
from pipeline.fingerprint import code_fingerprint
from pipeline.judgement import inputs_key, judgement_key
from pipeline.models import CLASSIFIER, COVER_CHOOSER, FEED, MODELS, RANKER, REPRESENTATION, RETRIEVER, check_settings
from pipeline.runs import load_run
from transform import contract as contracts

OF_THE_FEED = {"feed", "serving_check", "queues"}  # parts of a configuration that no model heeds
USED = (CLASSIFIER, REPRESENTATION, RANKER, RETRIEVER, COVER_CHOOSER)  # served models that later steps are made of
_WEIGHTS = ("", ".index", ".data-00000-of-00001", "/saved_model.pb", "/variables/variables.data-00000-of-00001")
Outcome = Literal["pushed", "refused", "failed"]

# What the report needs: component and type of an artifact, and the name it goes by in run.json.
RECORDED = {
    ("ClipExampleGen", "Examples"): "clips",
    ("ContentEmbedder", "shortlist.ContentVectors"): "content",
    ("VideoExampleGen", "Examples"): "videos",
    ("TopicLearner", "shortlist.Topics"): "topics",
    ("TopicQueues", "shortlist.QueueSnapshot"): "queues",
    ("FrameEmbedder", "shortlist.FrameVectors"): "frames",
    ("ImpressionExampleGen", "Examples"): "examples",
    ("StatisticsGen", "ExampleStatistics"): "statistics",
    ("ExampleValidator", "ExampleAnomalies"): "anomalies",
    ("DistributionValidator", "ExampleAnomalies"): "drift",
    ("Trainer", "ModelRun"): "model_run",
    ("Evaluator", "ModelEvaluation"): "evaluation",
    ("Evaluator", "ModelBlessing"): "blessing",
    ("Pusher", "PushedModel"): "pushed",
    ("ServingCheck", "InfraBlessing"): "serving_check",
    ("InfraValidator", "InfraBlessing"): "infra_validation",
}


@dataclass
class Step:
    """One node of the run: seconds it took, whether its outputs came from the cache, rows it made if it counts any."""

    name: str
    seconds: float
    cached: bool
    rows: int | None = None


@dataclass
class Run:
    """What a run did; `run.json` of the run's folder holds the same."""

    id: str
    config: dict[str, Any]
    contract: str
    world: str
    models: str
    started: float
    log: str
    inputs_of: dict[str, str]  # by model
    judgements: dict[str, str]
    finished: float = 0.0
    outcome: Outcome = "failed"
    error: str = ""
    steps: list[Step] = field(default_factory=list)
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    served_version: dict[str, str] = field(default_factory=dict)  # pushed by this run; "" where it was refused
    unchanged: list[str] = field(default_factory=list)  # pushed by an earlier run from the very same inputs
    served_after: dict[str, str] = field(default_factory=dict)  # once the run came to the end of a model
    span: int | None = None
    warm_start: dict[str, str] = field(default_factory=dict)  # by model, the SavedModel that training started from
    # Of the last spans that a model learned from which was pushed: the folder of their statistics, and from when on
    # nothing was learned.
    pushed_spans: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> None:
        """Writes `run.json`; a kill at any moment leaves the last one whole."""
        path = Path(self.models).parent / "run.json"
        path.with_suffix(".part").write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)


def run(
    config: RunConfig, world: str, folder: Path, console: Console, log: Path, span_number: int | None = None
) -> Run:
    """Run the pipeline to its end and write `run.json`.

    Args:
        config: What to run.
        world: Folder of canonical tables.
        folder: The run's folder; what an earlier run finished in it is taken from the cache.
        console: Where progress goes.
        log: Where everything else goes; named in errors.
        span_number: The span of time whose impressions are taken; None: all there are.

    Raises:
        ContractError: The world, the contract or the data does not fit.
        RunFailedError: A node failed.
    """
    contract = contracts.load(config.contract)
    check_models(config, contract)
    folder = folder.resolve()
    last = _last_run(folder, config.name)
    frames = config.frames.model_dump() if config.frames else {}
    at = training_pipeline.Locations(
        world=str(Path(world).resolve()) if "://" not in world else world,
        fingerprint=f"{tables.fingerprint(world, config.tables)}-{code_fingerprint()}",
        root=str(folder),
        models=str(folder / "models"),
        clips_fingerprint=f"{media.fingerprint(world)}-{code_fingerprint()}" if config.clips else "",
        videos_fingerprint=(
            f"{media.fingerprint(world, media.PICTURES)}-{_named_files(frames)}-{code_fingerprint()}"
            if config.topics or config.frames
            else ""
        ),
        weights={name: _named_files(model.model) for name, model in config.models.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    connection = metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite"))
    started = time.time()
    served = {name: served_version(f"{at.models}/{name}") for name in {*config.models, *USED, FEED}}
    span = None if span_number is None else spans.start(config, contract, span_number, last, str(folder), served)
    fingerprints = {"impressions": at.fingerprint, "clips": at.clips_fingerprint, "videos": at.videos_fingerprint}
    shared = config.model_dump_json(exclude={"models", *OF_THE_FEED}), contract.to_json(), at.world
    day = json.dumps(span and asdict(span))  # of no matter to models of clips and videos
    days = {name: day if MODELS[name].examples == "impressions" else "" for name in config.models}
    inputs = {
        name: inputs_key(*shared, days[name], model.model_dump_json(), fingerprints[MODELS[name].examples])
        for name, model in config.models.items()
    }
    if config.feed:
        inputs[FEED] = inputs_key(
            *shared, config.model_dump_json(include=OF_THE_FEED), day, fingerprints["impressions"]
        )
    judgements = {name: judgement_key(last, name, inputs[name], served[name], started) for name in inputs}
    record = Run(
        id=folder.name,
        config=config.model_dump(mode="json"),
        contract=contract.to_json(),
        world=at.world,
        models=at.models,
        started=started,
        log=str(log),
        inputs_of=inputs,
        judgements=judgements,
        served_after={
            name: served[name] for name in inputs if judgements[name] == last.get("judgements", {}).get(name)
        },
        span=span_number,
        warm_start=dict(span.warm_start) if span else {},
        pushed_spans=last.get("pushed_spans", {}),
    )
    history = History(connection, config)
    record.artifacts = {name: {} for name in history.pushed}
    known = {**{name: served[name] for name in USED}, **judgements}
    pipeline = training_pipeline.build(config, contract, at, known, connection, span=span)
    try:
        with _progress(console, record, history, span):
            LocalDagRunner().run(pipeline)
        _conclude(record, history)
    except contracts.ContractError as error:
        record.error = str(error)
        raise
    except Exception as error:
        record.error = f"{type(error).__name__}: {error}"
        raise RunFailedError(
            f"step {_running(record)} failed: {record.error.splitlines()[0]}. Everything it printed is in {log}"
        ) from error
    finally:
        record.finished = time.time()
        ran = {step.name for step in record.steps}
        record.artifacts = {name: history.artifacts(name, ran) for name in history.pushed}
        record.write()
    if span and config.spans:
        _collect(record, span, config.spans.keep, connection, console)
    return record


def _note_span(record: Run, span: training_pipeline.Span, made: Mapping[str, str]) -> None:
    """Note what the next span needs of one that a served model learned from, whatever becomes of other models."""
    learned_until = read_summary(made["examples"])["splits"].get("valid_from", span.window[1])
    record.pushed_spans[str(span.number)] = {"statistics": made["statistics"], "valid_from": learned_until}


def _collect(
    record: Run, span: training_pipeline.Span, keep: int, connection: proto.ConnectionConfig, console: Console
) -> None:
    """Remove what old runs left."""
    record.pushed_spans = dict(sorted(record.pushed_spans.items(), key=lambda entry: int(entry[0]))[-keep:])
    record.write()
    compared = {about["statistics"] for about in record.pushed_spans.values()}
    needed = {*span.warm_start.values(), span.known_vocabularies, *compared}
    removed = spans.collect(connection, str(Path(record.models).parent), keep, needed, record.config["models"])
    if removed:
        console.print(f"[dim]{removed} folders that only runs before the last {keep} had were removed[/]")


def check_models(config: RunConfig, contract: contracts.Contract) -> None:
    """Refuse settings of models that do not fit, or not each other.

    Raises:
        ContractError: The message names the setting and the remedy.
    """
    read = contract.needs("content") if "interactions" in config.tables else []
    content = [feature.dimension for feature, _ in read if feature.dimension]
    for name, model in config.models.items():
        check_settings(name, model.model, model.training, config.clips, content)


def _named_files(settings: Any) -> str:
    """What the files are known by that settings name: weights, checkpoints and SavedModels."""
    if isinstance(settings, Mapping):
        return "".join(_named_files(value) for value in settings.values())
    return "".join(files.sketch(settings + end) for end in _WEIGHTS) if isinstance(settings, str) else ""


def _last_run(folder: Path, name: str) -> dict[str, Any]:
    """The record of the last run in a folder; empty if there is none.

    Raises:
        ContractError: It is of another configuration, whose models and judgements are not this one's.
    """
    if not (folder / "run.json").is_file():
        return {}
    last = load_run(folder)
    if last["config"]["name"] != name:
        raise contracts.ContractError(
            f"{folder} holds runs of {last['config']['name']!r}, this is {name!r}: give a folder of its own with --id"
        )
    return last


def _running(record: Run) -> str:
    return record.steps[-1].name if record.steps else "set-up"


def _conclude(record: Run, history: History) -> None:
    """Read from MLMD whether the run's models were pushed."""
    for name in history.pushed:
        record.served_version[name] = history.pushed_version(name)
    record.unchanged = [name for name in history.pushed if history.push_was_cached(name)]
    blessed = [history.blessed(name) for name in history.pushed]
    record.outcome = "pushed" if all(blessed) else "refused"


@contextmanager
def _progress(console: Console, record: Run, history: History, span: training_pipeline.Span | None) -> Iterator[None]:
    """Print a line for each step as LocalDagRunner says that it starts and ends."""
    with console.status("Starting") as status:
        watcher = _StepWatcher(console, status, record, history, span)
        logger = logging.getLogger("absl")
        absl.logging.set_verbosity(absl.logging.INFO)  # by default absl falls silent once flags are parsed
        logger.addHandler(watcher)
        try:
            yield
        finally:
            logger.removeHandler(watcher)


class _StepWatcher(logging.Handler):
    """LocalDagRunner has no hook for progress, but logs "Component X is running." and "... is finished."."""

    def __init__(
        self,
        console: Console,
        status: Status,
        record: Run,
        history: History,
        span: training_pipeline.Span | None,
    ) -> None:
        super().__init__(logging.INFO)
        self._console, self._status, self._record, self._history = console, status, record, history
        self._span = span
        self._began = time.time()

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split()
        if len(words) != 4 or words[0] != "Component" or words[2] != "is":
            return
        if words[3] == "running.":
            self._began = time.time()
            self._status.update(f"{words[1]} ...")
            self._record.steps.append(Step(words[1], 0.0, cached=False))
        elif words[3] == "finished.":
            step = self._record.steps[-1]
            step.seconds = time.time() - self._began
            step.cached, step.rows = self._history.last_execution(step.name)
            if model := self._history.pushed_by(step.name):
                self._end_model(model)
            rows = f"{step.rows:>9,} rows" if step.rows is not None else ""
            cached = "  (cached)" if step.cached else ""
            self._console.print(f"  {step.name:<24} {step.seconds:6.1f} s {rows:>15}{cached}", highlight=False)
            if (judged := self._history.judged_by(step.name)) and not self._history.blessed(judged):
                self._console.print(f"  [red]{judged} is refused by its gates[/]: it is not pushed", highlight=False)

    def _end_model(self, model: str) -> None:
        """Write down that a model's Pusher ended: a run that is killed later goes on behind it."""
        record, history = self._record, self._history
        record.served_after[model] = served_version(f"{record.models}/{model}")
        of_impressions = model in MODELS and MODELS[model].examples == "impressions"
        if self._span and of_impressions and history.pushed_version(model):
            _note_span(record, self._span, history.artifacts(model, {step.name for step in record.steps}))
        record.write()


class History:
    """What MLMD knows of this and earlier runs of one pipeline.

    Args:
        connection: The run's MLMD connection.
        config: The run.

    Attributes:
        pushed: Names of what the run judges and pushes: its models and, if it assembles one, the feed.
    """

    def __init__(self, connection: proto.ConnectionConfig, config: RunConfig) -> None:
        self._connection = connection
        self._pipeline = config.name
        self._several = len(config.models) > 1
        self.pushed = [*config.models, *([FEED] if config.feed else [])]
        self._check = "ServingCheck" if config.serving_check.by == "model_server" else "InfraValidator"

    def _node(self, component: str, model: str) -> str:
        """What a model's node is called: with the model's name where a run has several models."""
        return f"{component}.{model}" if self._several or model == FEED else component

    def pushed_by(self, node: str) -> str | None:
        """The model that a node pushes, if it does."""
        return next((model for model in self.pushed if node == self._node("Pusher", model)), None)

    def judged_by(self, node: str) -> str | None:
        """The model that a node judges, if it does."""
        return next((model for model in self.pushed if node == self._judge(model)), None)

    def _judge(self, model: str) -> str:
        return self._check if model == FEED else self._node("Evaluator", model)

    def _store(self) -> MetadataStore:
        return MetadataStore(self._connection)

    def last_execution(self, node: str) -> tuple[bool, int | None]:
        """Whether the node's newest execution was cached, and the rows it made, if it counts any."""
        store = self._store()
        execution = self._newest(store, node)
        if execution is None:
            return False, None
        rows = [
            a.custom_properties["rows"].int_value for a in _outputs(store, execution) if "rows" in a.custom_properties
        ]
        return execution.last_known_state == proto.Execution.CACHED, rows[0] if rows else None

    def artifacts(self, model: str, nodes: set[str]) -> dict[str, str]:
        """Folders of what the newest execution of the named nodes made, by the names in `RECORDED`.

        Args:
            model: Nodes of other models (`NODE.MODEL`) are left out.
            nodes: Ids of nodes.
        """
        store = self._store()
        found: dict[str, str] = {}
        for node in nodes:
            execution = self._newest(store, node)
            component, _, owner = node.partition(".")
            if execution is None or owner not in ("", model):
                continue
            for output in _outputs(store, execution):
                kind = component, store.get_artifact_types_by_id([output.type_id])[0].name
                if kind in RECORDED:
                    found[RECORDED[kind]] = output.uri
        return found

    def blessed(self, model: str) -> bool:
        """Whether the model of the newest run passed its gates."""
        store = self._store()
        execution = self._newest(store, self._judge(model))
        assert execution is not None, "the run ended, so it was judged"
        return any(
            a.custom_properties["blessed"].int_value == 1
            for a in _outputs(store, execution)
            if "blessed" in a.custom_properties
        )

    def pushed_version(self, model: str) -> str:
        """The version the newest run of Pusher pushed; empty if it pushed none."""
        store = self._store()
        execution = self._newest(store, self._node("Pusher", model))
        if execution is None:
            return ""
        versions = [a.custom_properties["pushed_version"].string_value for a in _outputs(store, execution)]
        return next((version for version in versions if version), "")

    def push_was_cached(self, model: str) -> bool:
        """Whether the newest run left a model as an earlier one pushed it."""
        return self.last_execution(self._node("Pusher", model))[0]

    def _newest(self, store: MetadataStore, node: str) -> proto.Execution | None:
        contexts = {context.name: context.id for context in store.get_contexts_by_type("node")}
        context = contexts.get(f"{self._pipeline}.{node}")
        executions = store.get_executions_by_context(context) if context is not None else []
        return max(executions, key=lambda execution: execution.id, default=None)


def _outputs(store: MetadataStore, execution: proto.Execution) -> list[proto.Artifact]:
    events = store.get_events_by_execution_ids([execution.id])
    return store.get_artifacts_by_id([e.artifact_id for e in events if e.type == proto.Event.OUTPUT])
