"""What FrameEmbedder makes."""

from __future__ import annotations

from tfx.types import artifact


class FrameVectors(artifact.Artifact):
    """Folder with what videos look like.

    - `frames/`: gzip TFRecords of one frame example (`transform.frames`) a video;
    - `looks/`: parts of the table `looks`, the mean over a video's frames, null without one;
    - `summary.json`: counts.
    """

    TYPE_NAME = "shortlist.FrameVectors"  # Kubeflow Pipelines wants a namespace
