"""The schema as an artifact, without a schema file that somebody has to carry to the workers.

It does what TFX's ImportSchemaGen does, but takes the contract itself: a compiled pipeline is complete without a path.
"""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.contract_schema.executor import Executor


class ContractSchemaSpec(ComponentSpec):
    """`contract_json` in, `schema` out."""

    PARAMETERS = {"contract_json": ExecutionParameter(type=str)}
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {"schema": ChannelParameter(type=standard_artifacts.Schema)}


class ContractSchema(base_component.BaseComponent):
    """Derives the TFMD schema of raw examples from a contract.

    Args:
        contract_json: `Contract.to_json()`.

    Outputs: `schema` (Schema).
    """

    SPEC_CLASS = ContractSchemaSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, contract_json: str) -> None:
        schema = types.Channel(type=standard_artifacts.Schema)
        super().__init__(spec=ContractSchemaSpec(contract_json=contract_json, schema=schema))
