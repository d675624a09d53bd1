"""Which model an evaluation is held against."""

import itertools
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from components.serving_baseline.component import ServingBaseline
from components.serving_baseline.executor import Executor, served_version
from transform.clip_settings import SHAPE_FILE


def _model(folder: Path, content: str, **features: tf.TensorSpec) -> Path:
    """What is looked at of a SavedModel, with a signature `raw` of some features."""
    (folder / "variables").mkdir(parents=True)
    saved = saved_model_pb2.SavedModel(meta_graphs=[{}])
    for name, spec in features.items():
        info = saved.meta_graphs[0].signature_def["raw"].inputs[name]
        info.dtype = spec.dtype.as_datatype_enum
        info.tensor_shape.CopyFrom(spec.shape.as_proto())
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    (folder / "variables" / "variables.index").write_text(content)
    return folder


@pytest.fixture
def run(tmp_path):
    """Runs the executor on a candidate and whatever is in `pushed/`; returns the baseline artifact."""

    runs = itertools.count()

    def execute(candidate_reads=None, **properties):
        candidate, baseline = standard_artifacts.Model(), standard_artifacts.Model()
        candidate.uri, baseline.uri = (str(tmp_path / f"{name}{next(runs)}") for name in ("candidate", "baseline"))
        _model(Path(path_utils.serving_model_path(candidate.uri)), "candidate", **(candidate_reads or {}))
        properties |= {"push_destination": str(tmp_path / "pushed"), "served_version": ""}
        Executor().Do({"candidate": [candidate]}, {"baseline": [baseline]}, properties)
        return baseline

    return execute


def _content(baseline) -> str:
    path = Path(path_utils.serving_model_path(baseline.uri))
    if not path.exists():
        return "none"
    assert (path / "saved_model.pb").is_file()
    return (path / "variables" / "variables.index").read_text()


def test_the_first_candidate_has_no_baseline(run):
    baseline = run()
    assert _content(baseline) == "none"
    assert baseline.get_string_custom_property("served_version") == ""


def test_a_model_that_reads_clips_of_another_shape_is_no_baseline(run, tmp_path):
    _model(tmp_path / "pushed" / "9", "version 9")
    assert _content(run(clip_shape='{"frames":8}')) == "none"  # it does not tell what it reads
    shape = tmp_path / "pushed" / "9" / SHAPE_FILE
    shape.parent.mkdir()
    shape.write_text('{"frames":8}')
    assert _content(run(clip_shape='{"frames":8}')) == "version 9"
    assert _content(run(clip_shape='{"frames":9}')) == "none"


VECTOR, ID = tf.TensorSpec([None, 16], tf.float32), tf.TensorSpec([None, 1], tf.string)


@pytest.mark.parametrize(
    ("reads", "baseline"),
    [
        ({"look": VECTOR, "user_id": ID}, "version 9"),
        ({"look": tf.TensorSpec([None, 32], tf.float32), "user_id": ID}, "none"),
        ({"look": ID, "user_id": ID}, "none"),
        ({"look": VECTOR, "user_id": ID, "tags": ID}, "version 9"),  # a new feature, which the served model leaves out
        ({"user_id": ID}, "version 9"),  # one is gone, which the served model takes as missing
    ],
)
def test_a_model_that_reads_a_feature_in_another_form_is_no_baseline(run, tmp_path, reads, baseline):
    _model(tmp_path / "pushed" / "9", "version 9", look=VECTOR, user_id=ID)
    assert _content(run(candidate_reads=reads)) == baseline


def test_the_largest_version_is_the_baseline_by_number_and_not_by_name(run, tmp_path):
    for version in ("9", "10"):
        _model(tmp_path / "pushed" / version, f"version {version}")
    baseline = run()
    assert _content(baseline) == "version 10"
    assert baseline.get_string_custom_property("served_version") == "10"


def test_unfinished_and_foreign_folders_do_not_count(tmp_path):
    _model(tmp_path / "3", "served")
    for name in ("tmp-99", "99.partial", "latest", "²"):
        _model(tmp_path / name, "not a version")
    (tmp_path / "12").mkdir()
    assert served_version(str(tmp_path)) == "3"


@pytest.mark.parametrize("missing", ["saved_model.pb", "variables/variables.index"])
def test_a_half_copied_version_does_not_count(tmp_path, missing):
    _model(tmp_path / "3", "served")
    (_model(tmp_path / "4", "half copied") / missing).unlink()
    assert served_version(str(tmp_path)) == "3"


def test_nothing_is_served_where_there_is_no_folder_or_an_empty_one(tmp_path):
    assert served_version(str(tmp_path / "none")) == ""
    assert served_version(str(tmp_path)) == ""


def test_the_component_hands_on_a_model(tmp_path):
    candidate = standard_artifacts.Model()
    from tfx.types import channel_utils

    node = ServingBaseline(channel_utils.as_channel([candidate]), push_destination="models/ranker", served_version="7")
    assert node.outputs["baseline"].type is standard_artifacts.Model
    given = {name: value for name, value in node.exec_properties.items() if value is not None}
    assert given == {"push_destination": "models/ranker", "served_version": "7"}
