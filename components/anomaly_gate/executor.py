"""Reads anomalies, and raises where there are any."""

from __future__ import annotations

import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

from transform.contract import ContractError


class AnomaliesFoundError(ContractError):
    """The data does not fit the contract's schema; the message lists every anomaly."""


class Executor(base_executor.BaseExecutor):
    """Stops the run on anomalies."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Read what ExampleValidator wrote of each split.

        Raises:
            AnomaliesFoundError: Any split has an anomaly.
        """
        artifact = artifact_utils.get_single_instance(input_dict["anomalies"])
        lines = []
        for split in artifact_utils.decode_split_names(artifact.split_names):
            path = os.path.join(artifact_utils.get_split_uri([artifact], split), DEFAULT_FILE_NAME)
            with fileio.open(path, "rb") as file:
                lines += describe(anomalies_pb2.Anomalies.FromString(file.read()), split)
        if lines:
            raise AnomaliesFoundError(
                "the examples do not fit the schema of the contract: mend the data or the contract\n" + "\n".join(lines)
            )


def describe(anomalies: anomalies_pb2.Anomalies, split: str) -> list[str]:
    """One line for each anomaly: split, feature, what is wrong."""
    lines = [
        f"  {split}, feature {name!r}: {info.short_description}: {info.description}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"  {split}: {anomalies.dataset_anomaly_info.description}")
    return lines
