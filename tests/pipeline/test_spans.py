"""What is removed from the folder of a run, and what is not."""

from pathlib import Path

from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from tfx.orchestration import metadata

from pipeline import spans


def test_what_somebody_may_still_need_is_not_collected(tmp_path: Path):
    """Outputs that MLMD knows by the path of a folder that has moved, and checkpoints of models of other runs."""
    connection = metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.sqlite"))
    store = MetadataStore(connection)
    kind = store.put_artifact_type(proto.ArtifactType(name="Model"))
    store.put_context_type(proto.ContextType(name="pipeline_run"))
    store.put_artifacts([proto.Artifact(type_id=kind, uri="/elsewhere/artifacts/Trainer/model/7", state=2)])
    kept = ["artifacts/Trainer/model/7", "checkpoints/video_classifier/a", "models/ranker/12"]
    gone = ["artifacts/Trainer/model/8", "checkpoints/ranker/a", "models/ranker/9", "vocabularies/a"]
    for name in [*kept, *gone]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    assert spans.collect(connection, str(tmp_path), 1, set(), ["ranker"]) == len(gone)
    assert [name for name in [*kept, *gone] if (tmp_path / name).exists()] == kept
