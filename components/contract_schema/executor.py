"""Writes the schema derived from a contract."""

from __future__ import annotations

import os
from typing import Any

from google.protobuf import text_format
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

from transform.contract import Contract
from transform.schema import raw_schema

SCHEMA_FILE = "schema.pbtxt"


class Executor(base_executor.BaseExecutor):
    """Derives the schema and writes it as text proto, where every TFX component looks for it."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write `schema.pbtxt` into the `schema` output."""
        contract = Contract.from_json(exec_properties["contract_json"])
        uri = artifact_utils.get_single_uri(output_dict["schema"])
        fileio.makedirs(uri)
        with fileio.open(os.path.join(uri, SCHEMA_FILE), "w") as file:
            file.write(text_format.MessageToString(raw_schema(contract)))
