"""The node that makes ExampleValidator count.

TFX's ExampleValidator writes anomalies down, and whatever comes after it runs on. It stays as it is, so that what it
wrote is there to be read; this node, which everything after it waits for, fails on it.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.anomaly_gate.executor import Executor


class AnomalyGateSpec(ComponentSpec):
    """`anomalies` in, nothing out."""

    PARAMETERS: dict[str, ExecutionParameter] = {}
    INPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}
    OUTPUTS: dict[str, ChannelParameter] = {}


class AnomalyGate(base_component.BaseComponent):
    """Fails where any split has an anomaly.

    Args:
        anomalies: Channel of ExampleAnomalies.
    """

    SPEC_CLASS = AnomalyGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, anomalies: types.BaseChannel) -> None:
        super().__init__(spec=AnomalyGateSpec(anomalies=anomalies))
