"""Reads anomalies, and raises where there are any."""

from __future__ import annotations

import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio

from transform.contract import ContractError


class AnomaliesFoundError(ContractError):
    """The data is not as it should be; the message lists every anomaly."""


class Executor(base_executor.BaseExecutor):
    """Stops the run on anomalies."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Read what was written of each split.

        Raises:
            AnomaliesFoundError: Any split has an anomaly.
        """
        (artifact,) = input_dict["anomalies"]
        lines = []
        paths = sorted(fileio.glob(os.path.join(artifact.uri, "Split*", DEFAULT_FILE_NAME)))
        if not paths:
            raise FileNotFoundError(f"{artifact.uri}: expected {DEFAULT_FILE_NAME} of each split, got none")
        for path in paths:
            split = os.path.basename(os.path.dirname(path)).partition("-")[2].partition("_")[0]
            with fileio.open(path, "rb") as file:
                lines += describe(anomalies_pb2.Anomalies.FromString(file.read()), split)
        if lines:
            raise AnomaliesFoundError("\n".join([exec_properties["complaint"], *lines]))


def describe(anomalies: anomalies_pb2.Anomalies, split: str) -> list[str]:
    """One line for each anomaly: split, feature, what is wrong."""
    of_features = [(f", feature {name!r}", info) for name, info in sorted(anomalies.anomaly_info.items())]
    of_all = [("", anomalies.dataset_anomaly_info)] if anomalies.HasField("dataset_anomaly_info") else []
    return [
        f"  {split}{what}: {reason.short_description}: {reason.description}"
        for what, info in [*of_features, *of_all]
        for reason in info.reason
    ]
