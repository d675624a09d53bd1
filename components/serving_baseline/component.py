"""The TFX component that finds the model to be beaten.

TFX's own way, a Resolver node, does not run on open-source Kubeflow Pipelines.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.serving_baseline.executor import Executor


class ServingBaselineSpec(ComponentSpec):
    """`candidate` in, `baseline` out."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=str),
        "served_version": ExecutionParameter(type=str),
        "clip_shape": ExecutionParameter(type=str, optional=True),
    }
    INPUTS = {"candidate": ChannelParameter(type=standard_artifacts.Model)}
    OUTPUTS = {"baseline": ChannelParameter(type=standard_artifacts.Model)}


class ServingBaseline(base_component.BaseComponent):
    """Hands on the model now being served; the first time, nothing.

    Nothing too where the served model reads clips of another shape or a feature in another form, and could not be
    asked about the examples of this run.

    Args:
        candidate: The model just trained (Model).
        push_destination: Folder of the served versions, as given to Pusher.
        served_version: The version served when the pipeline was started: no other use than that the cache is missed
            when another is. The executor looks for itself.
        clip_shape: `ClipSettings.shape` of the examples, where they are clips.

    Outputs: `baseline` (Model), with the custom property `served_version`, "" where it is empty.
    """

    SPEC_CLASS = ServingBaselineSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self, candidate: types.BaseChannel, push_destination: str, served_version: str, clip_shape: str | None = None
    ) -> None:
        spec = ServingBaselineSpec(
            candidate=candidate,
            push_destination=push_destination,
            served_version=served_version,
            clip_shape=clip_shape,
            baseline=types.Channel(type=standard_artifacts.Model),
        )
        super().__init__(spec=spec)
