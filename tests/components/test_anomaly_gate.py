"""Anomalies stop the run, and say which feature of which split is wrong."""

import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.example_validator.executor import Executor as ExampleValidator
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils

from components.anomaly_gate.executor import AnomaliesFoundError, Executor

SPLITS = ("train", "valid")


@pytest.fixture
def validate(tmp_path):
    """Runs ExampleValidator and the gate on small frames, against a schema with a float `age` of at most 100."""
    schema = schema_pb2.Schema()
    feature = schema.feature.add(name="age", type=schema_pb2.FLOAT)
    feature.presence.min_fraction = 1.0
    feature.float_domain.max = 100.0
    io_utils.write_pbtxt_file(str(tmp_path / "schema" / "schema.pbtxt"), schema)

    def run(**frames: pd.DataFrame) -> None:
        statistics = standard_artifacts.ExampleStatistics()
        statistics.uri = str(tmp_path / "statistics")
        statistics.split_names = artifact_utils.encode_split_names(list(frames))
        for split, frame in frames.items():
            path = tmp_path / "statistics" / f"Split-{split}" / "FeatureStats.pb"
            path.parent.mkdir(parents=True)
            path.write_bytes(tfdv.generate_statistics_from_dataframe(frame).SerializeToString())
        schema_artifact = standard_artifacts.Schema()
        schema_artifact.uri = str(tmp_path / "schema")
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(tmp_path / "anomalies")
        ExampleValidator().Do(
            {"statistics": [statistics], "schema": [schema_artifact]},
            {"anomalies": [anomalies]},
            {"exclude_splits": "null"},
        )
        Executor().Do({"anomalies": [anomalies]}, {}, {"complaint": "mend it"})

    return run


def frame(*ages: float) -> pd.DataFrame:
    return pd.DataFrame({"age": pd.Series(ages, dtype="float32")})


def test_good_data_passes(validate, tmp_path):
    validate(train=frame(20, 30), valid=frame(40))
    assert (tmp_path / "anomalies" / "Split-valid" / "SchemaDiff.pb").is_file()


def test_an_anomaly_in_any_split_stops_the_run_and_is_named(validate):
    with pytest.raises(AnomaliesFoundError, match=r"valid, feature .age.") as caught:
        validate(train=frame(20, 30), valid=frame(40, 180))
    assert "train, feature" not in str(caught.value)
