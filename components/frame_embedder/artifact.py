"""What FrameEmbedder makes."""

from __future__ import annotations

from tfx.types import artifact


class FrameVectors(artifact.Artifact):
    """Folder with `frames/`, gzip TFRecords of one frame example (`transform.frames`) a video, and `summary.json`."""

    TYPE_NAME = "shortlist.FrameVectors"  # Kubeflow Pipelines wants a namespace
