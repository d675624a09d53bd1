"""The graph: clips and interactions to gated, pushed models. One definition for every engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfx.components import Evaluator, ExampleValidator, Pusher, StatisticsGen, Transform
from tfx.dsl.components.base import base_node
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import pusher_pb2, transform_pb2

from components.anomaly_gate.component import AnomalyGate
from components.clip_example_gen.component import ClipExampleGen
from components.clip_schema.component import ClipSchema
from components.content_embedder.component import ContentEmbedder
from components.contract_schema.component import ContractSchema
from components.impression_example_gen.component import ImpressionExampleGen
from components.serving_baseline.component import ServingBaseline
from components.trainer.component import Trainer
from pipeline.config import RunConfig
from pipeline.evaluation import clip_eval_config, eval_config
from pipeline.models import CLASSIFIER, MODELS
from transform.clip_settings import ClipSettings
from transform.contract import Contract


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
    """

    world: str
    fingerprint: str
    root: str
    models: str
    clips_fingerprint: str = ""


@dataclass(frozen=True)
class _Stream:
    """Examples that models learn from, with what goes before and beside them.

    Attributes:
        nodes: All of the stream up to the examples.
        examples: The node that makes them.
        schema: The node of their schema.
        parameters: What Transform and Trainer are told.
        waits_for: What must be done before Transform.
    """

    nodes: list[base_node.BaseNode]
    examples: base_node.BaseNode
    schema: base_node.BaseNode
    parameters: dict[str, Any]
    waits_for: list[base_node.BaseNode]


def components(
    config: RunConfig, contract: Contract, at: Locations, judgements: dict[str, str]
) -> list[base_node.BaseNode]:
    """All nodes of a run in topological order: clips to content vectors, then impressions.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        judgements: For each model, what its judgement is cached under, see `pipeline.judgement`; for the classifier,
            where the run does not train it, the version being served.
    """
    of = {kind: [n for n in config.models if MODELS[n].examples == kind] for kind in ("clips", "impressions")}
    nodes: list[base_node.BaseNode] = []
    content = None
    if config.clips is not None:
        stream = _clips(config, config.clips, contract, at)
        chains = {name: _model_nodes(name, config, contract, at, judgements, stream) for name in of["clips"]}
        pusher = chains[CLASSIFIER][-1] if CLASSIFIER in chains else None
        content = ContentEmbedder(
            examples=stream.examples.outputs["examples"],
            push_destination=f"{at.models}/{CLASSIFIER}",
            clip_shape=config.clips.shape,
            store=f"{at.root}/content",
            pushed_model=pusher.outputs["pushed_model"] if pusher else None,
            served_version="" if pusher else judgements.get(CLASSIFIER, ""),
        )
        nodes += [*stream.nodes, *(node for chain in chains.values() for node in chain), content]
    if of["impressions"]:
        stream = _impressions(config, contract, at, content)
        nodes += stream.nodes
        for name in of["impressions"]:
            nodes += _model_nodes(name, config, contract, at, judgements, stream)
    return nodes


def _clips(config: RunConfig, settings: ClipSettings, contract: Contract, at: Locations) -> _Stream:
    """The world's media as clips. Their examples need no validation: ClipExampleGen alone gives them their shape."""
    examples = ClipExampleGen(
        world=at.world,
        world_fingerprint=at.clips_fingerprint,
        contract_json=contract.to_json(),
        settings_json=settings.to_json(),
        splits_json=config.clip_splits.model_dump_json(),
    )
    schema = ClipSchema()
    parameters = {"clips": settings.to_json(), "fingerprint": at.clips_fingerprint}
    return _Stream([examples, schema], examples, schema, parameters, [])


def _impressions(config: RunConfig, contract: Contract, at: Locations, content: base_node.BaseNode | None) -> _Stream:
    contract_json = contract.to_json()
    examples = ImpressionExampleGen(
        world=at.world,
        world_fingerprint=at.fingerprint,
        contract_json=contract_json,
        splits_json=config.splits.model_dump_json(),
        content=content.outputs["content"] if content else None,
    )
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = ContractSchema(contract_json=contract_json)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"])
    nodes = [examples, statistics, schema, validator, gate]
    parameters = {"contract": contract_json, "fingerprint": at.fingerprint}
    return _Stream(nodes, examples, schema, parameters, [gate])


def _model_nodes(
    name: str, config: RunConfig, contract: Contract, at: Locations, judgements: dict[str, str], stream: _Stream
) -> list[base_node.BaseNode]:
    """Transform to Pusher of one model."""
    model, entry = config.models[name], MODELS[name]
    examples, schema = stream.examples.outputs["examples"], stream.schema.outputs["schema"]
    of_clips = entry.examples == "clips"
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn=entry.preprocessing_fn,
        custom_config=stream.parameters,
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=[] if of_clips else ["train", "valid"]),
        materialize=not of_clips,  # pixels stay where they are; the trainer applies the graph to the texts
        disable_statistics=True,  # StatisticsGen has them, and nobody reads these
    )
    for node in stream.waits_for:
        transform.add_upstream_node(node)
    trainer = Trainer(
        run_fn=entry.run_fn,
        examples=examples if of_clips else transform.outputs["transformed_examples"],
        raw_examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        custom_config={
            **stream.parameters,
            "model": model.model,
            "training": model.training,
            "checkpoint_dir": f"{at.root}/checkpoints/{name}",
        },
    )
    destination = f"{at.models}/{name}"
    baseline = ServingBaseline(
        candidate=trainer.outputs["model"],
        push_destination=destination,
        served_version=judgements.get(name, ""),
        clip_shape=config.clips.shape if of_clips and config.clips else None,
    )
    evaluator = Evaluator(
        examples=examples,
        example_splits=["test"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["baseline"],
        eval_config=(
            clip_eval_config(model, entry.prediction_key)
            if of_clips
            else eval_config(contract, model, entry.prediction_key)
        ),
        schema=schema,
    )
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=destination)
        ),
    )
    chain = [transform, trainer, baseline, evaluator, pusher]
    if len(config.models) > 1:
        chain = [node.with_id(f"{type(node).__name__}.{name}") for node in chain]
    return chain


def build(
    config: RunConfig,
    contract: Contract,
    at: Locations,
    judgements: dict[str, str],
    metadata: object | None = None,
    cache: bool = True,
) -> tfx_pipeline.Pipeline:
    """The TFX pipeline of a run, for a local or a Kubeflow runner.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        judgements: See `components`.
        metadata: MLMD connection; None where the engine brings its own.
        cache: Whether a node whose inputs did not change is skipped.
    """
    return tfx_pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=f"{at.root}/artifacts",
        components=components(config, contract, at, judgements),
        enable_cache=cache,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(config.beam_args),
    )
