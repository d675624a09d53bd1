"""The schema of clip examples as an artifact: it depends on nothing, so a function is all it takes."""

import os

from google.protobuf import text_format
from tfx.dsl.component.experimental.annotations import OutputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types.standard_artifacts import Schema

from transform import clips


@component
def ClipSchema(schema: OutputArtifact[Schema]) -> None:  # noqa: N802 (a component's name)
    """Writes the schema of what Transform and Evaluator read of a clip example."""
    fileio.makedirs(schema.uri)
    with fileio.open(os.path.join(schema.uri, "schema.pbtxt"), "w") as file:
        file.write(text_format.MessageToString(clips.raw_schema()))
