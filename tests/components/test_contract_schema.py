"""The schema artifact is the contract's schema, where TFX looks for it."""

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.types import standard_artifacts

from components.contract_schema.executor import Executor
from transform import contract as contracts
from transform.schema import raw_schema


def test_artifact_holds_the_schema_of_the_contract(tmp_path):
    contract = contracts.load("microvideo")
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path / "schema")
    Executor().Do({}, {"schema": [artifact]}, {"contract_json": contract.to_json()})
    files = [path.name for path in Path(artifact.uri).iterdir()]
    assert files == ["schema.pbtxt"]
    written = text_format.Parse((tmp_path / "schema" / "schema.pbtxt").read_text(), schema_pb2.Schema())
    assert written == raw_schema(contract)
    assert {feature.name for feature in written.feature} == {feature.name for feature in contract.features}
