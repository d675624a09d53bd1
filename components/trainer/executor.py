"""The executor of Trainer."""

from __future__ import annotations

from typing import Any

from tfx.components.trainer import executor
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.content_embedder import made_by
from components.impression_example_gen.artifact import CATALOGUE

RAW_EXAMPLES, FRAMES = "raw_examples", "frames"
_SPLIT = "valid"


class Executor(executor.GenericExecutor):
    """TFX's own; `run_fn` finds three lists of patterns more: `raw_files`, `catalogue_files` and `frames_files`.

    They are of the raw valid examples, of the examples of all videos that lie beside those of impressions, and of
    frame examples.
    """

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Train, and note in the model whose content vectors it learned from."""
        super().Do(input_dict, output_dict, exec_properties)
        model = path_utils.serving_model_dir(artifact_utils.get_single_uri(output_dict["model"]))
        learned_from = {made_by.read(artifact.uri) for artifact in input_dict[RAW_EXAMPLES]} - {""}
        if learned_from:
            made_by.write_model(model, ", ".join(sorted(learned_from)))

    def _GetFnArgs(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        uris = artifact_utils.get_split_uris(input_dict[RAW_EXAMPLES], _SPLIT)
        fn_args.raw_files = [io_utils.all_files_pattern(uri) for uri in uris]
        fn_args.catalogue_files = [f"{artifact.uri}/{CATALOGUE}/*" for artifact in input_dict[RAW_EXAMPLES]]
        fn_args.frames_files = [f"{artifact.uri}/{FRAMES}/*" for artifact in input_dict.get(FRAMES) or []]
        return fn_args
