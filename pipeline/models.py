"""The table of models: which functions prepare, train and serve each of them, and what it is judged by.

Functions are named by dotted path, never by file, so that workers import them from the installed package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transform.clip_settings import ClipSettings

Examples = Literal["clips", "videos", "impressions"]

PREPROCESSING: dict[Examples, str] = {  # given to Transform; models of the same examples share what it makes
    "clips": "transform.clips.preprocessing_fn",
    "videos": "transform.videos.preprocessing_fn",
    "impressions": "transform.impressions.preprocessing_fn",
}
RANKING = ("auc", "logloss", "calibration", "ndcg", "recall")
CLASSES = ("accuracy", "macro_precision", "macro_recall")
TASKS = ("primary_hits", "secondary_hits", "tags_hits")
RECALLS = (20, 100, 600)
RETRIEVAL = (*(f"recall_at_{k}" for k in RECALLS), "ndcg", "hit_rate", "coverage", "share_of_new", "index_recall")

FRAMES = tuple(f"{measure}_at_{k}" for k in range(1, 6) for measure in ("frame_hits", "frame_ndcg"))
COVERS = (
    *("hits", "ndcg", "hits_sampled", "ndcg_sampled"),
    *FRAMES,
    *(f"frame_hits_at_1_{whose}" for whose in ("random", "popular")),
    *("frame_lift", "frame_lift_popular"),
)


@dataclass(frozen=True)
class ModelEntry:
    """One kind of model a run may train.

    Attributes:
        run_fn: Dotted path of the function given to Trainer.
        settings: Dotted path of the class that checks `model:` of a run configuration.
        training_settings: Dotted path of the class that checks `training:`.
        metrics: What is measured of it, and what gates may name.
        examples: What it learns from and is evaluated on.
        frames: Whether it reads what frames look like.
    """

    run_fn: str
    settings: str
    training_settings: str = "trainer.training.TrainingConfig"
    metrics: tuple[str, ...] = RANKING
    examples: Examples = "impressions"
    frames: bool = False


CLASSIFIER = "video_classifier"  # whose vectors ContentEmbedder makes
REPRESENTATION = "topic_representation"  # whose vectors TopicLearner clusters
RANKER = "ranker"
RETRIEVER = "topic_retrieval"
COVER_CHOOSER = "jifr"
FEED = "feed"  # assembled of the three last, and pushed like a model
EXPORTERS = {  # of what is built anew without training; by name: this package imports no trainer
    RETRIEVER: "trainer.retrieval_export",
    COVER_CHOOSER: "trainer.jifr_export",
    FEED: "trainer.feed_export",
}
MODELS: dict[str, ModelEntry] = {
    RANKER: ModelEntry("trainer.ranker.run_fn", "trainer.ranker.Config"),
    CLASSIFIER: ModelEntry(
        run_fn="trainer.video_classifier.run_fn",
        settings="trainer.video_classifier.Config",
        training_settings="trainer.clip_training.ClipTrainingConfig",
        metrics=CLASSES,
        examples="clips",
    ),
    REPRESENTATION: ModelEntry(
        run_fn="trainer.topic_representation.run_fn",
        settings="trainer.topic_representation.Config",
        training_settings="trainer.topic_representation.TopicTrainingConfig",
        metrics=TASKS,
        examples="videos",
    ),
    RETRIEVER: ModelEntry("trainer.topic_retrieval.run_fn", "trainer.topic_retrieval.Config", metrics=RETRIEVAL),
    COVER_CHOOSER: ModelEntry("trainer.jifr.run_fn", "trainer.jifr.Config", metrics=COVERS, frames=True),
}


def check_settings(
    name: str,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    clips: ClipSettings | None,
    content: Sequence[int] = (),
) -> None:
    """Refuse settings of a model before anything runs, rather than when it comes to train.

    Args:
        name: Of the model.
        model: Its settings.
        training: Its settings of training.
        clips: What a classifier would see.
        content: Lengths of the content vectors that the run's other models read.

    Raises:
        ContractError: An unknown key, a value that does not fit, or a classifier for other clips or content vectors.
    """
    entry = MODELS[name]
    for dotted, values, where in (
        (entry.settings, model, f"models.{name}.model"),
        (entry.training_settings, training, f"models.{name}.training"),
    ):
        module, _, attribute = dotted.rpartition(".")
        settings = getattr(importlib.import_module(module), attribute).of(values, where)
        if entry.settings == dotted and entry.examples == "clips" and clips is not None:
            settings.check(clips, content)
