"""The graph: clips, videos and interactions to gated, pushed models. One definition for every engine that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.components import (
    DistributionValidator,
    ExampleValidator,
    Pusher,
    StatisticsGen,
    Transform,
)
from tfx.dsl.components.base import base_node
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import distribution_validator_pb2, infra_validator_pb2, pusher_pb2, transform_pb2
from tfx.types import artifact_utils, standard_artifacts

from components.anomaly_gate.component import AnomalyGate
from components.clip_example_gen.component import ClipExampleGen
from components.content_embedder.component import ContentEmbedder
from components.content_pusher.component import ContentPusher
from components.contract_schema.component import ContractSchema
from components.evaluator.component import Evaluator
from components.example_schema.component import ExampleSchema
from components.feed_assembler.component import FeedAssembler
from components.feed_assembler.executor import STAGES
from components.frame_embedder.component import FrameEmbedder
from components.impression_example_gen.component import ImpressionExampleGen
from components.impression_example_gen.impressions import SPLITS
from components.pushed_content.component import PushedContent
from components.serving_baseline.component import ServingBaseline
from components.serving_check.component import ServingCheck
from components.serving_check.infra_validator import InfraValidator
from components.serving_check.settings import ServingCheckSettings
from components.topic_learner.component import TopicLearner
from components.topic_learner.settings import TopicSettings
from components.topic_queues.component import TopicQueues
from components.trainer.component import Trainer
from components.video_example_gen.component import VideoExampleGen
from pipeline import evaluation
from pipeline.config import RunConfig
from pipeline.models import (
    CLASSES,
    CLASSIFIER,
    COVERS,
    EXPORTERS,
    FEED,
    MODELS,
    PREPROCESSING,
    RANKING,
    REPRESENTATION,
    RETRIEVAL,
    Examples,
)
from transform import videos
from transform.clip_settings import ClipSettings
from transform.contract import Contract, Kind
from transform.feed import FeedSettings

HANDED_OVER = "components.trainer.workers.run_fn"
# Part of a run, for an engine that lets each have its own pace: what is learned of videos, or all that comes after.
Stream = Literal["content", "feed"]
_LEARNED = "content"  # the folder beside the models that one stream leaves for the other
_UNFIT = "the examples do not fit the schema of the contract: mend the data or the contract"
_DRIFTED = "the examples are unlike those of the span before: mend the data, or allow the feature more in spans.drift"


@dataclass(frozen=True)
class Locations:
    """Where a run reads and writes; every path may be local, gs:// or s3://.

    Attributes:
        world: Folder of canonical tables.
        fingerprint: Identity of the world's content and of the code, so that what either changes is not taken from the
            cache; empty where nothing is cached.
        root: Folder of artifacts and checkpoints.
        models: Push destination; each model has a folder of versions in it.
        clips_fingerprint: As `fingerprint`, of the world's media.
        videos_fingerprint: As `fingerprint`, of the world's covers and frames.
        weights: By model, what the files that its settings name are known by, so that others train anew.
        training_jobs: By model, the TFJob that trains it on several workers.
    """

    world: str
    fingerprint: str
    root: str
    models: str
    clips_fingerprint: str = ""
    videos_fingerprint: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    training_jobs: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """What a run of one span of time starts from.

    Attributes:
        number: Which span.
        window: Its first instant and the first one after it, unix seconds.
        warm_start: By model, the SavedModel that training starts from; those that are not named start anew.
        known_vocabularies: Folder of the entries that keep their rows; "" where there are none.
        previous_statistics: Folder of the statistics of the span before; "" where there is none.
    """

    number: int
    window: tuple[int, int]
    warm_start: Mapping[str, str] = field(default_factory=dict)
    known_vocabularies: str = ""
    previous_statistics: str = ""


@dataclass(frozen=True)
class _Source:
    """Examples that models learn from, with what goes before and beside them.

    Attributes:
        kind: Which.
        nodes: All up to the examples.
        examples: The node that makes them.
        schema: The node of their schema.
        parameters: What Transform and Trainer are told.
        waits_for: What must be done before Transform.
        shape: Of what is in the examples, where a model can read one shape only.
        frames: What the frames of videos look like, where that is known.
    """

    kind: Examples
    nodes: list[base_node.BaseNode]
    examples: base_node.BaseNode
    schema: base_node.BaseNode
    parameters: dict[str, Any]
    waits_for: list[base_node.BaseNode]
    shape: str | None = None
    frames: types.BaseChannel | None = None


@dataclass(frozen=True)
class _Run:
    """What every part of the graph is built from; see `components`."""

    config: RunConfig
    contract: Contract
    at: Locations
    judgements: dict[str, str]
    span: Span | None

    def add_models(self, source: _Source, nodes: list[base_node.BaseNode]) -> dict[str, base_node.BaseNode]:
        """Add examples to the nodes, with all models that learn from them; give their Pushers by name."""
        nodes += source.nodes
        names = [name for name in self.config.models if MODELS[name].examples == source.kind]
        if not names:
            return {}
        transform = _transform(source, source.kind if len(self.config.models) > 1 else "")
        nodes.append(transform)
        pushers = {}
        for name in names:
            chain = _model_nodes(name, self, source, transform)
            nodes += chain
            pushers[name] = chain[-1]
        return pushers

    def served_model(self, name: str, pushers: dict[str, base_node.BaseNode]) -> dict[str, Any]:
        """What a node is told that runs a served model: where it is, and which Pusher or version it depends on."""
        pusher = pushers.get(name)
        return {
            "push_destination": f"{self.at.models}/{name}",
            "pushed_model": pusher.outputs["pushed_model"] if pusher else None,
            "served_version": "" if pusher else self.judgements.get(name, ""),
        }


def components(
    config: RunConfig,
    contract: Contract,
    at: Locations,
    judgements: dict[str, str],
    span: Span | None = None,
    stream: Stream | None = None,
) -> list[base_node.BaseNode]:
    """All nodes of a run in topological order: clips to content vectors, videos to topics, then impressions.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        judgements: For each model, what its judgement is cached under, see `pipeline.judgement`; for those that
            describe videos or make up the feed, where the run does not train them, the version being served.
        span: The time that impressions are of; None: all there is.
        stream: `content`: what is learned of videos, which is left beside the models; `feed`: the models of impressions
            and the feed, with what was left there last. None: both, one after the other.
    """
    run, nodes = _Run(config, contract, at, judgements, span), list[base_node.BaseNode]()
    learned = _pushed_content(run, nodes) if stream == "feed" else _content(run, nodes)
    if stream == "content":
        settings = json.dumps(_settings_of_content(config))
        return [*nodes, ContentPusher(f"{at.models}/{_LEARNED}", settings, **learned)]
    of_impressions = any(MODELS[name].examples == "impressions" for name in config.models)
    pushers: dict[str, base_node.BaseNode] = {}
    queues = None
    if learned["topics"] is not None and (of_impressions or config.feed is not None):
        counter = TopicQueues(
            world=at.world,
            world_fingerprint=at.fingerprint,
            contract_json=contract.to_json(),
            queues_json=config.queues.model_dump_json() if config.queues.shared else "{}",
            topics=learned["topics"],
        )
        nodes.append(counter)
        queues = counter.outputs["snapshot"]
    if of_impressions:
        pushers = run.add_models(_impressions(run, learned), nodes)
    if config.feed is not None:
        nodes += _feed_nodes(run, config.feed, pushers, learned, queues)
    return nodes


def _content(run: _Run, nodes: list[base_node.BaseNode]) -> dict[str, types.BaseChannel | None]:
    """Add the nodes that learn of videos; give their outputs: `content`, `topics` and `frames`."""
    config, at = run.config, run.at
    clip_examples = content = topics = frames = None
    if config.clips is not None:
        source = _clips(run, config.clips)
        clip_examples = source.examples.outputs["examples"]
        content = ContentEmbedder(
            examples=clip_examples,
            clip_shape=config.clips.shape,
            store=f"{at.root}/content",
            **run.served_model(CLASSIFIER, run.add_models(source, nodes)),
        )
        nodes.append(content)
    if config.topics is not None:
        source = _videos(run, config.topics, clip_examples)
        topics = TopicLearner(
            examples=source.examples.outputs["examples"],
            store=f"{at.root}/topics",
            settings_json=config.topics.model_dump_json(),
            **run.served_model(REPRESENTATION, run.add_models(source, nodes)),
        )
        nodes.append(topics)
    if config.frames is not None:
        frames = FrameEmbedder(
            world=at.world,
            world_fingerprint=at.videos_fingerprint,
            settings_json=config.frames.model_dump_json(),
            clips=clip_examples,
        )
        nodes.append(frames)
    made = {"content": content, "topics": topics, "frames": frames}
    return {name: node.outputs[name] if node else None for name, node in made.items()}


def _pushed_content(run: _Run, nodes: list[base_node.BaseNode]) -> dict[str, types.BaseChannel | None]:
    """As `_content`, of what the other stream pushed."""
    wanted = _settings_of_content(run.config)
    pushed = PushedContent(f"{run.at.models}/{_LEARNED}", json.dumps(wanted))
    nodes.append(pushed)
    return {name: pushed.outputs[name] if name in wanted else None for name in ("content", "topics", "frames")}


def _settings_of_content(config: RunConfig) -> dict[str, Any]:
    """By what is learned of videos, its settings."""
    settings = {"content": config.clips, "topics": config.topics, "frames": config.frames}
    return {name: found.model_dump(mode="json") for name, found in settings.items() if found is not None}


def _feed_nodes(
    run: _Run,
    settings: FeedSettings,
    pushers: dict[str, base_node.BaseNode],
    learned: dict[str, types.BaseChannel | None],
    queues: types.BaseChannel | None,
) -> list[base_node.BaseNode]:
    """What is served, joined in one model, tried and pushed."""
    before = {name: run.served_model(name, pushers) for name in STAGES.values()}
    versions = {FEED: run.judgements.get(FEED, ""), **{n: told["served_version"] for n, told in before.items()}}
    feed = FeedAssembler(
        world=run.at.world,
        world_fingerprint=run.at.fingerprint,
        contract_json=run.contract.to_json(),
        settings_json=settings.model_dump_json(),
        queues_json=run.config.queues.model_dump_json(exclude={"store"}),
        exporter=EXPORTERS[FEED],
        models=run.at.models,
        served_versions=json.dumps(versions),
        pushed={stage: before[name]["pushed_model"] for stage, name in STAGES.items()},
        learned=learned,
        queues=queues,
    )
    check = _serving_check(run.config.serving_check, feed)
    pusher = _pusher(run, FEED, model=feed.outputs["model"], infra_blessing=check.outputs["blessing"])
    return [feed, check, pusher.with_id(f"Pusher.{FEED}")]


def _serving_check(settings: ServingCheckSettings, feed: base_node.BaseNode) -> base_node.BaseNode:
    if settings.by == "model_server":
        return ServingCheck(model=feed.outputs["model"], settings_json=settings.model_dump_json())
    image, _, tag = settings.image.rpartition(":")  # a registry's address may have a port
    spec = infra_validator_pb2.ServingSpec(
        tensorflow_serving=infra_validator_pb2.TensorFlowServing(image_name=image, tags=[tag]),
        model_name=FEED,
    )
    getattr(spec, "local_docker" if settings.by == "docker" else "kubernetes").SetInParent()
    limits = infra_validator_pb2.ValidationSpec(max_loading_time_seconds=int(settings.startup_seconds))
    return InfraValidator(model=feed.outputs["model"], serving_spec=spec, validation_spec=limits)


def _pusher(run: _Run, name: str, **channels: types.BaseChannel) -> Pusher:
    """A model pushed to its folder below the push destination."""
    folder = pusher_pb2.PushDestination.Filesystem(base_directory=f"{run.at.models}/{name}")
    return Pusher(push_destination=pusher_pb2.PushDestination(filesystem=folder), **channels)


def _clips(run: _Run, settings: ClipSettings) -> _Source:
    """The world's media as clips. Their examples need no validation: ClipExampleGen alone gives them their shape."""
    examples = ClipExampleGen(
        world=run.at.world,
        world_fingerprint=run.at.clips_fingerprint,
        contract_json=run.contract.to_json(),
        settings_json=settings.to_json(),
        splits_json=run.config.clip_splits.model_dump_json(),
    )
    schema = ExampleSchema(module="transform.clips").with_id("ClipSchema")
    parameters = {"clips": settings.to_json(), "fingerprint": run.at.clips_fingerprint}
    return _Source("clips", [examples, schema], examples, schema, parameters, [], settings.shape)


def _videos(run: _Run, settings: TopicSettings, clips: types.BaseChannel | None) -> _Source:
    """What is known of each video; VideoExampleGen alone gives these examples their shape."""
    examples = VideoExampleGen(
        world=run.at.world,
        world_fingerprint=run.at.videos_fingerprint,
        contract_json=run.contract.to_json(),
        cover_size=settings.cover_size,
        splits_json=run.config.video_splits.model_dump_json(),
        clips=clips,
    )
    schema = ExampleSchema(module="transform.videos").with_id("VideoSchema")
    parameters = {"fingerprint": run.at.videos_fingerprint}
    return _Source("videos", [examples, schema], examples, schema, parameters, [], videos.shape(settings.cover_size))


def _impressions(run: _Run, learned: dict[str, types.BaseChannel | None]) -> _Source:
    contract_json, splits = run.contract.to_json(), run.config.splits.model_dump()
    if run.span:
        splits |= dict(zip(("since", "until"), run.span.window, strict=True))
    examples = ImpressionExampleGen(
        world=run.at.world,
        world_fingerprint=run.at.fingerprint,
        contract_json=contract_json,
        splits_json=json.dumps(splits),
        content=learned["content"],
        topics=learned["topics"],
        frames=learned["frames"],
    )
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = ContractSchema(contract_json=contract_json)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"], complaint=_UNFIT)
    nodes = [examples, statistics, schema, validator, gate, *_drift_nodes(run, statistics)]
    parameters = {"contract": contract_json, "fingerprint": run.at.fingerprint}
    if run.span and run.span.known_vocabularies:
        parameters["known_vocabularies"] = run.span.known_vocabularies
    gates = [node for node in nodes if isinstance(node, AnomalyGate)]
    return _Source("impressions", nodes, examples, schema, parameters, gates, frames=learned["frames"])


def _drift_nodes(run: _Run, statistics: base_node.BaseNode) -> list[base_node.BaseNode]:
    """The train split held against that of the span before."""
    drift = run.config.spans.drift if run.config.spans else {}
    if not drift or not run.span or not run.span.previous_statistics:
        return []
    before = Importer(
        source_uri=run.span.previous_statistics,
        artifact_type=standard_artifacts.ExampleStatistics,
        properties={"split_names": artifact_utils.encode_split_names(list(SPLITS))},
    ).with_id("PreviousStatistics")
    comparators = []
    for name, distance in drift.items():
        measure = "jensen_shannon_divergence" if run.contract.feature(name).kind is Kind.NUMBER else "infinity_norm"
        comparators.append({"path": {"step": [name]}, "distribution_comparator": {measure: {"threshold": distance}}})
    validator = DistributionValidator(
        statistics=statistics.outputs["statistics"],
        baseline_statistics=before.outputs["result"],
        config=distribution_validator_pb2.DistributionValidatorConfig(default_slice_config={"feature": comparators}),
        include_split_pairs=[("train", "train")],
    )
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"], complaint=_DRIFTED)
    return [before, validator, gate.with_id("AnomalyGate.drift")]


def _transform(source: _Source, name: str) -> base_node.BaseNode:
    """What all models of one source share. Pictures stay where they are; the trainer applies the graph to the texts."""
    materialize = source.kind == "impressions"
    transform = Transform(
        examples=source.examples.outputs["examples"],
        schema=source.schema.outputs["schema"],
        preprocessing_fn=PREPROCESSING[source.kind],
        custom_config=source.parameters,
        splits_config=transform_pb2.SplitsConfig(
            analyze=["train"], transform=["train", "valid"] if materialize else []
        ),
        materialize=materialize,
        disable_analyzer_cache=True,  # for ranges of spans; a fifth of the time otherwise
        disable_statistics=True,  # StatisticsGen has them, and nobody reads these
    )
    for node in source.waits_for:
        transform.add_upstream_node(node)
    return transform.with_id(f"Transform.{name}" if name else "Transform")


def _model_nodes(name: str, run: _Run, source: _Source, transform: base_node.BaseNode) -> list[base_node.BaseNode]:
    """Trainer to Pusher of one model."""
    model, entry = run.config.models[name], MODELS[name]
    examples, schema = source.examples.outputs["examples"], source.schema.outputs["schema"]
    of_covers = {"cover_size": run.config.topics.cover_size} if run.config.topics and source.kind == "videos" else {}
    job = run.at.training_jobs.get(name)
    trainer = Trainer(
        run_fn=HANDED_OVER if job else entry.run_fn,
        examples=transform.outputs["transformed_examples"] if source.kind == "impressions" else examples,
        raw_examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        custom_config={
            **source.parameters,
            "model": {**model.model, **of_covers},
            "training": model.training,
            "checkpoint_dir": f"{run.at.root}/checkpoints/{name}",
            "weights": run.at.weights.get(name, ""),
            "warm_start": run.span.warm_start.get(name, "") if run.span else "",
            **({"training_job": job, "run_fn": entry.run_fn} if job else {}),
        },
        frames=source.frames if entry.frames else None,
    )
    baseline = ServingBaseline(
        candidate=trainer.outputs["model"],
        push_destination=f"{run.at.models}/{name}",
        served_version=run.judgements.get(name, ""),
        clip_shape=source.shape,
    )
    evaluator = Evaluator(
        examples=examples,
        example_splits=["test"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["baseline"],
        eval_config=_eval_config(name, run),
        schema=schema,
    )
    pusher = _pusher(run, name, model=trainer.outputs["model"], model_blessing=evaluator.outputs["blessing"])
    chain = [trainer, baseline, evaluator, pusher]
    if len(run.config.models) > 1:
        chain = [node.with_id(f"{type(node).__name__}.{name}") for node in chain]
    return chain


def _eval_config(name: str, run: _Run) -> tfma.EvalConfig:
    model, metrics = run.config.models[name], MODELS[name].metrics
    if metrics is RANKING:
        return evaluation.eval_config(run.contract, model)
    if metrics is RETRIEVAL:
        return evaluation.retrieval_eval_config(run.contract, model)
    if metrics is COVERS:
        return evaluation.cover_eval_config(run.contract, model)
    return evaluation.clip_eval_config(model) if metrics is CLASSES else evaluation.video_eval_config(model)


def build(
    config: RunConfig,
    contract: Contract,
    at: Locations,
    judgements: dict[str, str],
    metadata: object | None = None,
    cache: bool = True,
    span: Span | None = None,
    stream: Stream | None = None,
) -> tfx_pipeline.Pipeline:
    """The TFX pipeline of a run, for a local or a Kubeflow runner.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        judgements: See `components`.
        metadata: MLMD connection; None where the engine brings its own.
        cache: Whether a node whose inputs did not change is skipped.
        span: See `components`.
        stream: See `components`.
    """
    return tfx_pipeline.Pipeline(
        pipeline_name=f"{config.name}-{stream}" if stream else config.name,
        pipeline_root=f"{at.root}/artifacts",
        components=components(config, contract, at, judgements, span, stream),
        enable_cache=cache,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(config.beam_args),
    )
