"""The TFX component that counts what topic queues start from."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.topic_learner.artifact import Topics
from components.topic_queues.artifact import QueueSnapshot
from components.topic_queues.executor import Executor


class TopicQueuesSpec(ComponentSpec):
    """A world, a contract and topics in; `snapshot` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "contract_json": ExecutionParameter(type=str),
        "queues_json": ExecutionParameter(type=str),
    }
    INPUTS = {"topics": ChannelParameter(type=Topics, optional=True)}
    OUTPUTS = {"snapshot": ChannelParameter(type=QueueSnapshot)}


class TopicQueues(base_beam_component.BaseBeamComponent):
    """Counts how often every video was shown and clicked, and joins its topics.

    Each interaction that ImpressionExampleGen counts as an event is an exposure, and a click if its label is positive.

    Args:
        world: Folder of the tables videos and interactions.
        world_fingerprint: `components.world.tables.fingerprint(world)`: no other use than that unchanged worlds hit the
            cache, and changed ones do not.
        contract_json: `Contract.to_json()`.
        queues_json: `QueueSettings` as JSON, with the store that is to start from the snapshot; without one none does.
        topics: Topics of videos (Topics); None: the primary category of a video is its topic.

    Outputs: `snapshot` (QueueSnapshot), with the custom properties `videos`, `shown`, `clicked` and `rejected`.
    """

    SPEC_CLASS = TopicQueuesSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        world: str,
        world_fingerprint: str,
        contract_json: str,
        queues_json: str = "{}",
        topics: types.BaseChannel | None = None,
    ) -> None:
        spec = TopicQueuesSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            contract_json=contract_json,
            queues_json=queues_json,
            topics=topics,
            snapshot=types.Channel(type=QueueSnapshot),
        )
        super().__init__(spec=spec)
