"""The TFX component that hands what was learned of videos to pipelines that run at another pace."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.content_embedder.artifact import ContentVectors
from components.content_pusher.executor import Executor
from components.frame_embedder.artifact import FrameVectors
from components.topic_learner.artifact import Topics


class ContentPusherSpec(ComponentSpec):
    """What was learned of videos in, nothing out."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
    }
    INPUTS = {
        "content": ChannelParameter(type=ContentVectors, optional=True),
        "topics": ChannelParameter(type=Topics, optional=True),
        "frames": ChannelParameter(type=FrameVectors, optional=True),
    }
    OUTPUTS: dict[str, ChannelParameter] = {}


class ContentPusher(base_component.BaseComponent):
    """Copies what was learned of videos into a new version below a folder, where PushedContent finds it.

    Args:
        push_destination: Folder of versions, each a folder named by the second it was pushed in.
        settings_json: By input, the settings that it was learned by.
        content: Content vectors of videos (ContentVectors).
        topics: Topics of videos (Topics).
        frames: Looks of videos (FrameVectors).
    """

    SPEC_CLASS = ContentPusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        push_destination: str,
        settings_json: str,
        content: types.BaseChannel | None = None,
        topics: types.BaseChannel | None = None,
        frames: types.BaseChannel | None = None,
    ) -> None:
        spec = ContentPusherSpec(
            push_destination=push_destination,
            settings_json=settings_json,
            content=content,
            topics=topics,
            frames=frames,
        )
        super().__init__(spec=spec)
