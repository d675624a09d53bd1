"""The graph: interactions to gated, pushed models. One definition for every engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.components import Evaluator, Pusher, StatisticsGen, Trainer, Transform
from tfx.dsl.components.base import base_node
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2

from components.contract_schema.component import ContractSchema
from components.example_validator.component import ExampleValidator
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
        world_fingerprint: Content identity of the world, so that changed data is not taken from the cache.
        root: Folder of artifacts and checkpoints.
        models: Push destination; each model has a folder of versions in it.
    """

    world: str
    world_fingerprint: str
    root: str
    models: str


def components(
    config: RunConfig, contract: Contract, at: Locations, served: dict[str, str]
) -> list[base_node.BaseNode]:
    """All nodes of a run in topological order.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        served: For each model, the version that was being served when its current one was judged; a cache key.
    """
    contract_json = contract.to_json()
    examples = ImpressionExampleGen(
        world=at.world,
        world_fingerprint=at.world_fingerprint,
        contract_json=contract_json,
        splits_json=config.splits.model_dump_json(),
    )
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = ContractSchema(contract_json=contract_json)
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    nodes: list[base_node.BaseNode] = [examples, statistics, schema, validator]
    for name in config.models:
        nodes += _model_nodes(name, config, contract, at, served.get(name, ""), nodes[:4])
    return nodes


def _model_nodes(
    name: str,
    config: RunConfig,
    contract: Contract,
    at: Locations,
    served_version: str,
    shared: list[base_node.BaseNode],
) -> list[base_node.BaseNode]:
    """Transform to Pusher of one model."""
    examples, _, schema, validator = shared
    model, entry = config.models[name], MODELS[name]
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn=entry.preprocessing_fn,
        custom_config={"contract": contract.to_json()},
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "valid"]),
        disable_statistics=True,  # StatisticsGen has them, and nobody reads these
    )
    transform.add_upstream_node(validator)
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
            "checkpoint_dir": f"{at.root}/checkpoints/{name}",
        },
    )
    destination = f"{at.models}/{name}"
    baseline = ServingBaseline(
        candidate=trainer.outputs["model"], push_destination=destination, served_version=served_version
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
    served: dict[str, str],
    metadata: object | None = None,
    cache: bool = True,
) -> tfx_pipeline.Pipeline:
    """The TFX pipeline of a run, for a local or a Kubeflow runner.

    Args:
        config: What to run.
        contract: The features.
        at: Where.
        served: See `components`.
        metadata: MLMD connection; None where the engine brings its own.
        cache: Whether a node whose inputs did not change is skipped.
    """
    return tfx_pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=f"{at.root}/artifacts",
        components=components(config, contract, at, served),
        enable_cache=cache,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(config.beam_args),
    )
