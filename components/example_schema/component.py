"""The schema of clip or video examples as an artifact: it depends on nothing, so a function is all it takes."""

import importlib
import os

from google.protobuf import text_format
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types.standard_artifacts import Schema


@component
def ExampleSchema(module: Parameter[str], schema: OutputArtifact[Schema]) -> None:  # noqa: N802 (a component's name)
    """Writes `raw_schema()` of a module of `transform`: what Transform and Evaluator read of its examples."""
    fileio.makedirs(schema.uri)
    with fileio.open(os.path.join(schema.uri, "schema.pbtxt"), "w") as file:
        file.write(text_format.MessageToString(importlib.import_module(module).raw_schema()))
