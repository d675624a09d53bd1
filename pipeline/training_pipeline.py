"""The graph: interactions to gated, pushed models. One definition for every engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.components import Evaluator, ExampleValidator, Pusher, StatisticsGen, Trainer, Transform
from tfx.dsl.components.base import base_node
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2

from components.anomaly_gate.component import AnomalyGate
from components.contract_schema.component import ContractSchema
from components.impression_example_gen.component import ImpressionExampleGen
from components.serving_baseline.component import ServingBaseline
from pipeline.config import RunConfig
from pipeline.evaluation import eval_config
from pipeline.models import MODELS
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
    """

    world: str
    fingerprint: str
    root: str
    models: str


def components(
    config: RunConfig, contract: Contract, at: Locations, judgements: dict[str, str]
) -> list[base_node.BaseNode]:
    """All nodes of a run in topological order.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        judgements: For each model, what its judgement is cached under, see `pipeline.judgement`.
    """
    contract_json = contract.to_json()
    examples = ImpressionExampleGen(
        world=at.world,
        world_fingerprint=at.fingerprint,
        contract_json=contract_json,
        splits_json=config.splits.model_dump_json(),
    )
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = ContractSchema(contract_json=contract_json)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"])
    shared: list[base_node.BaseNode] = [examples, statistics, schema, validator, gate]
    nodes = list(shared)
    for name in config.models:
        nodes += _model_nodes(name, config, contract, at, judgements.get(name, ""), shared)
    return nodes


def _model_nodes(
    name: str,
    config: RunConfig,
    contract: Contract,
    at: Locations,
    judgement: str,
    shared: list[base_node.BaseNode],
) -> list[base_node.BaseNode]:
    """Transform to Pusher of one model."""
    examples, _, schema, _, gate = shared
    model, entry = config.models[name], MODELS[name]
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn=entry.preprocessing_fn,
        custom_config={"contract": contract.to_json(), "fingerprint": at.fingerprint},
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "valid"]),
        disable_statistics=True,  # StatisticsGen has them, and nobody reads these
    )
    transform.add_upstream_node(gate)
    trainer = Trainer(
        run_fn=entry.run_fn,
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["valid"]),
        custom_config={
            "contract": contract.to_json(),
            "model": model.model,
            "training": model.training,
            "fingerprint": at.fingerprint,
            "checkpoint_dir": f"{at.root}/checkpoints/{name}",
        },
    )
    destination = f"{at.models}/{name}"
    baseline = ServingBaseline(
        candidate=trainer.outputs["model"], push_destination=destination, served_version=judgement
    )
    evaluator = Evaluator(
        examples=examples.outputs["examples"],
        example_splits=["test"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["baseline"],
        eval_config=eval_config(contract, model, entry.prediction_key),
        schema=schema.outputs["schema"],
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
