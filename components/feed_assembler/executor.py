"""Finds the served models, makes one of them, and the requests by which it is warmed up and checked."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import path_utils
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.content_embedder import made_by
from components.feed_assembler import golden
from components.impression_example_gen import asking
from components.impression_example_gen.impressions import LEARNED
from components.serving_baseline.executor import served_version
from serving.topic_queues.queues import of_snapshot
from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import Snapshot
from transform.contract import Contract
from transform.feed import FeedSettings

# What a stage of a feed is, and the model that is it.
STAGES = {"ranker": "ranker", "retriever": "topic_retrieval", "chooser": "jifr"}
_WARM_UP = "assets.extra/tf_serving_warmup_requests"


class Executor(base_executor.BaseExecutor):
    """Writes the SavedModel into `model`, and golden requests beside it."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Assemble what is served.

        Raises:
            ContractError: There are no videos, one is there twice, or a served model is of another contract.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(output_dict["model"])
        stages = served_stages(exec_properties["models"])
        model.set_int_custom_property("assembled", int("ranker" in stages))
        if "ranker" not in stages:
            logging.warning("no ranker is served in %s: there is no feed", exec_properties["models"])
            return
        world, contract = exec_properties["world"], Contract.from_json(exec_properties["contract_json"])
        learned = {name: artifact_utils.get_single_uri(input_dict[name]) for name in LEARNED if input_dict.get(name)}
        settings = FeedSettings.model_validate_json(exec_properties["settings_json"])
        queues = None
        if input_dict.get("queues"):
            snapshot = Snapshot.read(artifact_utils.get_single_uri(input_dict["queues"]))
            queues = of_snapshot(snapshot, QueueSettings.model_validate_json(exec_properties["queues_json"]))
        directory, at = path_utils.serving_model_dir(model.uri), asking.clock(world)
        feed = assemble(exec_properties["exporter"], stages, world, contract, settings, learned, queues)
        feed.save(directory)
        model.set_int_custom_property("rows", len(feed.ids.numpy()))
        other = made_by.differs(stages["ranker"], learned.get("content"))
        model.set_int_custom_property("other_content", int(other))  # for ServingCheck
        golden.write(golden.requests(feed, world, contract, at, learned), model.uri)
        write_warm_up(directory, golden.read(model.uri))


def served_stages(models: str) -> dict[str, str]:
    """Folders of the served models that a feed can be made of, by stage."""
    versions = {stage: served_version(f"{models}/{name}") for stage, name in STAGES.items()}
    return {stage: f"{models}/{STAGES[stage]}/{version}" for stage, version in versions.items() if version}


def assemble(
    exporter: str,
    stages: dict[str, str],
    world: str,
    contract: Contract,
    settings: FeedSettings,
    learned: dict[str, str],
    queues: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """The feed over the videos that a world has now: a `trainer.feed_export.Feed`.

    Args:
        exporter: Dotted path of the module that has `Feed` and `Stages`.
        stages: As `served_stages` gives them, with a `ranker`.
        world: Folder of the tables.
        contract: The features.
        settings: Of the feed.
        learned: As for `asking.serving_rows`.
        queues: Videos by topic, best first, for clients that ask without a store; None: as the retriever has them.

    Raises:
        ContractError: There are no videos, or one is there twice.
    """
    videos = RecordBatchToExamplesEncoder().encode(asking.feed_catalogue(world, contract, asking.clock(world), learned))
    module = importlib.import_module(exporter)
    return module.Feed(module.Stages(**stages), videos, contract, settings, queues)


def write_warm_up(directory: str, logs: list[Any]) -> None:
    """Writes requests into a SavedModel, which a server answers before any traffic reaches it: one a signature."""
    tf.io.gfile.makedirs(f"{directory}/assets.extra")
    with tf.io.TFRecordWriter(f"{directory}/{_WARM_UP}") as writer:
        for log in _one_a_signature(logs):
            writer.write(log.SerializeToString())


def _one_a_signature(logs: list[Any]) -> Iterator[prediction_log_pb2.PredictionLog]:
    for name, asked in {log.request.model_spec.signature_name: log for log in logs}.items():
        for signature in (name, "serving_default") if name == "recommend" else (name,):  # the same, but loaded apart
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(asked.request)
            log.predict_log.request.model_spec.signature_name = signature
            yield log
