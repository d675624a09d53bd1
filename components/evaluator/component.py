"""TFX's Evaluator, with a baseline that may be empty."""

from __future__ import annotations

from tfx.components import Evaluator as TfxEvaluator
from tfx.dsl.components.base import executor_spec

from components.evaluator.executor import Executor


class Evaluator(TfxEvaluator):
    """As TFX's; where nothing is in the artifact `baseline_model`, as without one.

    TFX's own, given a baseline, wants a model there; a first candidate would have to be judged twice, against itself.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
