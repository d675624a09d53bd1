"""The executor of Trainer."""

from __future__ import annotations

from typing import Any

from tfx.components.trainer import executor
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.impression_example_gen.artifact import CATALOGUE

RAW_EXAMPLES = "raw_examples"
_SPLIT = "valid"


class Executor(executor.GenericExecutor):
    """TFX's own; `run_fn` finds in `fn_args.raw_files` and `fn_args.catalogue_files` two patterns more.

    They are of the raw valid examples, and of the examples of all videos that lie beside those of impressions.
    """

    def _GetFnArgs(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        uris = artifact_utils.get_split_uris(input_dict[RAW_EXAMPLES], _SPLIT)
        fn_args.raw_files = [io_utils.all_files_pattern(uri) for uri in uris]
        fn_args.catalogue_files = [f"{artifact.uri}/{CATALOGUE}/*" for artifact in input_dict[RAW_EXAMPLES]]
        return fn_args
