"""The table of models: which functions prepare, train and serve each of them.

Functions are named by dotted path, never by file, so that workers import them from the installed package.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelEntry:
    """One kind of model a run may train.

    Attributes:
        preprocessing_fn: Dotted path of the function given to Transform.
        run_fn: Dotted path of the function given to Trainer.
        prediction_key: The output of `serving_default` that is evaluated.
    """

    preprocessing_fn: str
    run_fn: str
    prediction_key: str


MODELS: dict[str, ModelEntry] = {
    "ranker": ModelEntry(
        preprocessing_fn="transform.impressions.preprocessing_fn",
        run_fn="trainer.ranker.run_fn",
        prediction_key="score",
    ),
}
