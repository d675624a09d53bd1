"""What TopicLearner makes."""

from __future__ import annotations

from tfx.types import artifact


class Topics(artifact.Artifact):
    """Folder with the topics and which video has which.

    - `centres.npy`: float32 [K, D], rows of length 1, in the order of `topics.json`;
    - `video_topics.parquet`: video_id, topics (list of ids, best first) and similarities (list<float>, cosine);
    - `tag_vectors.parquet`: tag and vector (list<float>) of the tags that have one;
    - `representation`: the folder of the SavedModel that z is of, text; empty where topics are of tags alone;
    - `topics.json`: a list of {id, name, tags, titles, size};
    - `version`: what the topics are known by, text;
    - `summary.json`: see `components.topic_learner.executor.read_summary`;
    - `videos/`: video_id, title, tags and z (list<float>, null where cover and title are missing) of all videos, and
      `tag_pairs.parquet`: tag, other and in how many videos they are together: what the topics were learned from.
    """

    TYPE_NAME = "shortlist.Topics"  # Kubeflow Pipelines wants a namespace
