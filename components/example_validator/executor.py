"""TFX's ExampleValidator, made strict: an anomaly fails the node, and with it the run."""

from __future__ import annotations

import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator import executor as tfx_executor
from tfx.dsl.io import fileio
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils

from transform.contract import ContractError


class AnomaliesFoundError(ContractError):
    """The data does not fit the contract's schema; the message lists every anomaly."""


class Executor(tfx_executor.Executor):
    """Validates statistics against the schema and raises where they do not fit."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        """Validate as TFX does, then stop the run on what was found.

        Raises:
            AnomaliesFoundError: Any split has an anomaly.
        """
        result = super().Do(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict["anomalies"])
        lines = []
        for split in artifact_utils.decode_split_names(artifact.split_names):
            path = os.path.join(artifact_utils.get_split_uri([artifact], split), tfx_executor.DEFAULT_FILE_NAME)
            lines += describe(read_anomalies(path), split)
        if lines:
            raise AnomaliesFoundError(
                "the examples do not fit the schema of the contract: mend the data or the contract\n" + "\n".join(lines)
            )
        return result


def read_anomalies(path: str) -> anomalies_pb2.Anomalies:
    """The anomalies in a `SchemaDiff.pb` file."""
    with fileio.open(path, "rb") as file:
        return anomalies_pb2.Anomalies.FromString(file.read())


def describe(anomalies: anomalies_pb2.Anomalies, split: str) -> list[str]:
    """One line for each anomaly: split, feature, what is wrong."""
    lines = [
        f"  {split}, feature {name!r}: {info.short_description}: {info.description}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"  {split}: {anomalies.dataset_anomaly_info.description}")
    return lines
