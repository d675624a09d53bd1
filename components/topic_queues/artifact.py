"""What TopicQueues makes."""

from __future__ import annotations

from tfx.types import artifact


class QueueSnapshot(artifact.Artifact):
    """Folder with all videos and their counts, which `serving.topic_queues` loads into a store.

    - `videos/`: video_id, topics (list of ids, best first), shown and clicked, in Parquet parts;
    - `snapshot.json`: `before`, the unix second up to which it counts, and `counts`, see `executor.read_summary`.
    """

    TYPE_NAME = "shortlist.QueueSnapshot"  # Kubeflow Pipelines wants a namespace
