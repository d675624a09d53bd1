"""The node that makes ExampleValidator count.

TFX's ExampleValidator and DistributionValidator write anomalies down, and whatever comes after them runs on. They stay
as they are, so that what they wrote is there to be read; this node, which everything after it waits for, fails on it.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.anomaly_gate.executor import Executor


class AnomalyGateSpec(ComponentSpec):
    """`anomalies` in, nothing out."""

    PARAMETERS = {"complaint": ExecutionParameter(type=str)}
    INPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}
    OUTPUTS: dict[str, ChannelParameter] = {}


class AnomalyGate(base_component.BaseComponent):
    """Fails where any split has an anomaly.

    Args:
        anomalies: Channel of ExampleAnomalies.
        complaint: What it means to the user that there are any, and the remedy.
    """

    SPEC_CLASS = AnomalyGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, anomalies: types.BaseChannel, complaint: str) -> None:
        super().__init__(spec=AnomalyGateSpec(anomalies=anomalies, complaint=complaint))
