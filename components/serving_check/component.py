"""The TFX component between a model and its Pusher: tries the model on a real server.

TFX's InfraValidator does so in Docker or Kubernetes; this one needs neither.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.serving_check.executor import Executor


class ServingCheckSpec(ComponentSpec):
    """`model` in, `blessing` out."""

    PARAMETERS = {"settings_json": ExecutionParameter(type=str)}
    INPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}


class ServingCheck(base_component.BaseComponent):
    """Starts the model server on a candidate, sends it golden requests, and checks answers, latency and memory.

    Args:
        model: With golden requests beside it, as FeedAssembler writes them (Model).
        settings_json: `ServingCheckSettings.model_dump_json()`.

    Outputs: `blessing` (InfraBlessing), as TFX's Pusher takes it, with what was measured in `check.json`.
    """

    SPEC_CLASS = ServingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, settings_json: str) -> None:
        spec = ServingCheckSpec(
            model=model, settings_json=settings_json, blessing=types.Channel(type=standard_artifacts.InfraBlessing)
        )
        super().__init__(spec=spec)
