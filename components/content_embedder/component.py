"""The TFX component that turns clips into content vectors."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.content_embedder.artifact import ContentVectors
from components.content_embedder.executor import Executor


class ContentEmbedderSpec(ComponentSpec):
    """Clips and the classifier being served in; `content` out."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "served_version": ExecutionParameter(type=str),
        "store": ExecutionParameter(type=str),
        "clip_shape": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "pushed_model": ChannelParameter(type=standard_artifacts.PushedModel, optional=True),
    }
    OUTPUTS = {"content": ChannelParameter(type=ContentVectors)}


class ContentEmbedder(base_beam_component.BaseBeamComponent):
    """Runs the classifier that is being served over every clip, and keeps what it made of unchanged ones.

    Where no classifier was ever pushed there are no vectors: every modality of every video counts as missing.

    Args:
        examples: Clips of all splits, as ClipExampleGen writes them (Examples).
        push_destination: Folder of the served versions, as given to Pusher.
        clip_shape: `ClipSettings.shape` of the clips.
        store: Folder that remembers where the last execution's vectors are.
        pushed_model: Output of the Pusher that must be done before; None: the run pushes no classifier.
        served_version: The version served when the pipeline was started, where the run pushes none: no other use than
            that the cache is missed when another is. The executor looks for itself.

    Outputs: `content` (ContentVectors), with the custom properties `rows`, `embedded` and `reused`.
    """

    SPEC_CLASS = ContentEmbedderSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        push_destination: str,
        clip_shape: str,
        store: str,
        pushed_model: types.BaseChannel | None = None,
        served_version: str = "",
    ) -> None:
        spec = ContentEmbedderSpec(
            examples=examples,
            push_destination=push_destination,
            store=store,
            clip_shape=clip_shape,
            pushed_model=pushed_model,
            served_version=served_version,
            content=types.Channel(type=ContentVectors),
        )
        super().__init__(spec=spec)
