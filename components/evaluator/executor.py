"""Judges a candidate against the served model, or by itself where none is served."""

from __future__ import annotations

import logging
from typing import Any

from tfx import types
from tfx.components.evaluator import executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import path_utils

from components.serving_baseline.executor import SERVED_VERSION, is_model
from transform.contract import ContractError

BASELINE = standard_component_specs.BASELINE_MODEL_KEY


class Executor(executor.Executor):
    """Takes an empty baseline for none: floors and ceilings decide then, and gates on change do not."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write `evaluation` and `blessing`.

        Raises:
            ContractError: The baseline lost its model.
        """
        if _is_empty(input_dict.get(BASELINE, [])):
            logging.info("nothing is served: no baseline, and no gates on change")
            input_dict = {name: found for name, found in input_dict.items() if name != BASELINE}
        super().Do(input_dict, output_dict, exec_properties)


def _is_empty(baselines: list[types.Artifact]) -> bool:
    """Whether ServingBaseline found nothing to hand on.

    Raises:
        ContractError: It found a version, and that is gone.
    """
    if not baselines:
        return False
    baseline = artifact_utils.get_single_instance(baselines)
    if is_model(path_utils.serving_model_path(baseline.uri)):
        return False
    if version := baseline.get_string_custom_property(SERVED_VERSION):
        raise ContractError(
            f"{baseline.uri}: expected version {version}, to hold the candidate against, got no SavedModel: "
            "run again without the cache"
        )
    return True
