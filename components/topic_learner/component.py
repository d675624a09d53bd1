"""The TFX component that turns covers, titles and tags of videos into topics."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.topic_learner.artifact import Topics
from components.topic_learner.executor import Executor


class TopicLearnerSpec(ComponentSpec):
    """Videos, the representation being served and settings in; `topics` out."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "served_version": ExecutionParameter(type=str),
        "store": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "pushed_model": ChannelParameter(type=standard_artifacts.PushedModel, optional=True),
    }
    OUTPUTS = {"topics": ChannelParameter(type=Topics)}


class TopicLearner(base_beam_component.BaseBeamComponent):
    """Learns tag vectors, clusters videos, names the clusters, and carries ids on from the last execution.

    Where no representation was ever pushed, topics are those of tags alone.

    Args:
        examples: Videos of all splits (Examples of `transform.videos`).
        push_destination: Folder of the served versions of the representation, as given to Pusher.
        store: Folder that remembers where the last execution's topics are.
        settings_json: `TopicSettings.model_dump_json()`.
        pushed_model: Output of the Pusher that must be done before; None: the run pushes no representation.
        served_version: The version served when the pipeline was started, where the run pushes none: no other use than
            that the cache is missed when another is. The executor looks for itself.

    Outputs: `topics` (Topics), with the custom properties `videos`, `topics`, and `mean_topics`, `unassigned` and
    `without_topic` as `components.topic_learner.topics.report` says.
    """

    SPEC_CLASS = TopicLearnerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        push_destination: str,
        store: str,
        settings_json: str = "{}",
        pushed_model: types.BaseChannel | None = None,
        served_version: str = "",
    ) -> None:
        spec = TopicLearnerSpec(
            examples=examples,
            push_destination=push_destination,
            store=store,
            settings_json=settings_json,
            pushed_model=pushed_model,
            served_version=served_version,
            topics=types.Channel(type=Topics),
        )
        super().__init__(spec=spec)
