"""The table of models: which functions prepare, train and serve each of them.

Functions are named by dotted path, never by file, so that workers import them from the installed package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ModelEntry:
    """One kind of model a run may train.

    Attributes:
        preprocessing_fn: Dotted path of the function given to Transform.
        run_fn: Dotted path of the function given to Trainer.
        settings: Dotted path of the class that checks `model:` of a run configuration.
        training_settings: Dotted path of the class that checks `training:`.
        prediction_key: The output of `serving_default` that is evaluated.
        examples: What it learns from and is evaluated on.
    """

    preprocessing_fn: str
    run_fn: str
    settings: str
    training_settings: str
    prediction_key: str
    examples: Literal["impressions", "clips"] = "impressions"


MODELS: dict[str, ModelEntry] = {
    "ranker": ModelEntry(
        preprocessing_fn="transform.impressions.preprocessing_fn",
        run_fn="trainer.ranker.run_fn",
        settings="trainer.ranker.Config",
        training_settings="trainer.training.TrainingConfig",
        prediction_key="score",
    ),
    "video_classifier": ModelEntry(
        preprocessing_fn="transform.clips.preprocessing_fn",
        run_fn="trainer.video_classifier.run_fn",
        settings="trainer.video_classifier.Config",
        training_settings="trainer.clip_training.ClipTrainingConfig",
        prediction_key="probabilities",
        examples="clips",
    ),
}
CLASSIFIER = "video_classifier"  # whose vectors ContentEmbedder makes


def check_settings(name: str, model: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Refuse settings of a model before anything runs, rather than when it comes to train.

    Raises:
        ContractError: An unknown key, or a value that does not fit.
    """
    entry = MODELS[name]
    for dotted, values, where in (
        (entry.settings, model, f"models.{name}.model"),
        (entry.training_settings, training, f"models.{name}.training"),
    ):
        module, _, attribute = dotted.rpartition(".")
        getattr(importlib.import_module(module), attribute).of(values, where)
