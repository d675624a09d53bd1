"""What ContentEmbedder makes and ImpressionExampleGen reads."""

from __future__ import annotations

from tfx.types import artifact


class ContentVectors(artifact.Artifact):
    """Folder with two tables in Parquet parts, keyed by video_id, and `summary.json`.

    `content/`: visual_vector, audio_vector, text_vector and fused_vector (list<float>, null where the video lacks the
    modality), and the fingerprint of what they were made from. `frames/`: frame_times (seconds), frame_attention (sums
    to 1; the key-frame scores) and frame_vectors (a list of floats each frame).
    """

    TYPE_NAME = "shortlist.ContentVectors"  # Kubeflow Pipelines wants a namespace
