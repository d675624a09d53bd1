"""The TFX component that makes one model of a feed."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.content_embedder.artifact import ContentVectors
from components.feed_assembler.executor import Executor
from components.frame_embedder.artifact import FrameVectors
from components.topic_learner.artifact import Topics
from components.topic_queues.artifact import QueueSnapshot


class FeedAssemblerSpec(ComponentSpec):
    """A world, and models being served, in; `model` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "contract_json": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
        "queues_json": ExecutionParameter(type=str),
        "exporter": ExecutionParameter(type=str),
        "models": ExecutionParameter(type=str),
        "served_versions": ExecutionParameter(type=str),
    }
    INPUTS = {
        "pushed_ranker": ChannelParameter(type=standard_artifacts.PushedModel, optional=True),
        "pushed_retriever": ChannelParameter(type=standard_artifacts.PushedModel, optional=True),
        "pushed_chooser": ChannelParameter(type=standard_artifacts.PushedModel, optional=True),
        "content": ChannelParameter(type=ContentVectors, optional=True),
        "topics": ChannelParameter(type=Topics, optional=True),
        "frames": ChannelParameter(type=FrameVectors, optional=True),
        "queues": ChannelParameter(type=QueueSnapshot, optional=True),
    }
    OUTPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}


class FeedAssembler(base_component.BaseComponent):
    """Joins the served ranker, retrieval model and chooser of covers, and what is known of videos, in one SavedModel.

    A retrieval model or chooser that was never pushed is left out: then all videos are candidates, or none has a cover.
    Without a ranker there is no feed: the model is empty, and the custom property `assembled` 0.

    Args:
        world: Folder of the tables.
        world_fingerprint: What they are known by: no other use than that unchanged ones hit the cache.
        contract_json: `Contract.to_json()`.
        settings_json: `FeedSettings.model_dump_json()`.
        queues_json: `QueueSettings.model_dump_json()`, by which a snapshot becomes queues; its store is not looked at.
        exporter: Dotted path of the module that makes the SavedModel: components import no trainer.
        models: Push destination; each model has a folder of versions in it.
        served_versions: Those served when the pipeline was started of the models that the run does not push: no other
            use than that the cache is missed when others are. The executor looks for itself.
        pushed: Outputs of Pushers that must be done before: `ranker`, `retriever`, `chooser`.
        learned: Outputs of ContentEmbedder, TopicLearner and FrameEmbedder: `content`, `topics`, `frames`.
        queues: Output of TopicQueues, whose queues the feed holds for clients without a store; None: those that the
            served retrieval model holds, if any.

    Outputs: `model` (Model), with requests that warm it up, and golden ones beside it (see `golden`).
    """

    SPEC_CLASS = FeedAssemblerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        world: str,
        world_fingerprint: str,
        contract_json: str,
        settings_json: str,
        queues_json: str,
        exporter: str,
        models: str,
        served_versions: str,
        pushed: dict[str, types.BaseChannel | None],
        learned: dict[str, types.BaseChannel | None],
        queues: types.BaseChannel | None = None,
    ) -> None:
        spec = FeedAssemblerSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            contract_json=contract_json,
            settings_json=settings_json,
            queues_json=queues_json,
            exporter=exporter,
            models=models,
            served_versions=served_versions,
            **{f"pushed_{name}": channel for name, channel in pushed.items()},
            **learned,
            queues=queues,
            model=types.Channel(type=standard_artifacts.Model),
        )
        super().__init__(spec=spec)
