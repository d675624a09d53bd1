"""The TFX component that takes up what another pipeline has learned of videos."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.content_embedder.artifact import ContentVectors
from components.frame_embedder.artifact import FrameVectors
from components.pushed_content.executor import Executor
from components.topic_learner.artifact import Topics


class PushedContentSpec(ComponentSpec):
    """A folder of versions in; what was learned of videos out."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {
        "content": ChannelParameter(type=ContentVectors),
        "topics": ChannelParameter(type=Topics),
        "frames": ChannelParameter(type=FrameVectors),
    }


class PushedContent(base_component.BaseComponent):
    """Copies the newest version that ContentPusher finished, so that a later one disturbs nobody.

    Args:
        push_destination: As given to ContentPusher.
        settings_json: By output that is wanted (`content`, `topics`, `frames`), the settings it must have been learned
            by; others stay empty.

    Outputs: `content` (ContentVectors), `topics` (Topics) and `frames` (FrameVectors).
    """

    SPEC_CLASS = PushedContentSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, push_destination: str, settings_json: str) -> None:
        spec = PushedContentSpec(
            push_destination=push_destination,
            settings_json=settings_json,
            content=types.Channel(type=ContentVectors),
            topics=types.Channel(type=Topics),
            frames=types.Channel(type=FrameVectors),
        )
        super().__init__(spec=spec)
