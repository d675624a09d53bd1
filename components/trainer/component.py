"""TFX's Trainer with the raw examples, and what frames look like, as further inputs.

Trainer sees what Transform made of the examples; the requests that warm a served model up are raw.
"""

from __future__ import annotations

from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import trainer_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter
from tfx.utils import json_utils

from components.frame_embedder.artifact import FrameVectors
from components.trainer.executor import FRAMES, RAW_EXAMPLES, Executor


class TrainerSpec(standard_component_specs.TrainerSpec):
    """TFX's, and `raw_examples` and `frames`."""

    INPUTS = {
        **standard_component_specs.TrainerSpec.INPUTS,
        RAW_EXAMPLES: ChannelParameter(type=standard_artifacts.Examples),
        FRAMES: ChannelParameter(type=FrameVectors, optional=True),
    }


class Trainer(base_component.BaseComponent):
    """Trains by `run_fn` on the split `train`, validating on `valid`.

    Args:
        run_fn: Dotted path of the function.
        examples: Channel of transformed Examples.
        raw_examples: Channel of the Examples they were made from.
        transform_graph: Channel of TransformGraph.
        schema: Channel of Schema.
        custom_config: What `run_fn` finds in `fn_args.custom_config`.
        frames: Channel of FrameVectors, for a model that reads them.
    """

    SPEC_CLASS = TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        run_fn: str,
        examples: types.BaseChannel,
        raw_examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        schema: types.BaseChannel,
        custom_config: dict[str, Any],
        frames: types.BaseChannel | None = None,
    ) -> None:
        spec = TrainerSpec(
            run_fn=run_fn,
            examples=examples,
            raw_examples=raw_examples,
            frames=frames,
            transform_graph=transform_graph,
            schema=schema,
            train_args=trainer_pb2.TrainArgs(splits=["train"]),
            eval_args=trainer_pb2.EvalArgs(splits=["valid"]),
            custom_config=json_utils.dumps(custom_config),
            model=types.Channel(type=standard_artifacts.Model),
            model_run=types.Channel(type=standard_artifacts.ModelRun),
        )
        super().__init__(spec=spec)
