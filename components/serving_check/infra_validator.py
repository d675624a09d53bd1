"""TFX's InfraValidator as a step that Kubeflow Pipelines can run too.

TFX's compiler for version 2 of Kubeflow Pipelines refuses its own component by its class (tensorflow/tfx#5512),
although the executor is one as any other and finds the step's pod by itself.
"""

from __future__ import annotations

from tfx import types
from tfx.components.infra_validator.executor import Executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import infra_validator_pb2
from tfx.types import standard_artifacts
from tfx.types.standard_component_specs import InfraValidatorSpec


class InfraValidator(base_component.BaseComponent):
    """Sees that the image of TensorFlow Serving loads a model.

    Args:
        model: The candidate (Model).
        serving_spec: Which image, and where it runs.
        validation_spec: How long it may take.

    Outputs: `blessing` (InfraBlessing), as TFX's Pusher takes it.
    """

    SPEC_CLASS = InfraValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        serving_spec: infra_validator_pb2.ServingSpec,
        validation_spec: infra_validator_pb2.ValidationSpec,
    ) -> None:
        spec = InfraValidatorSpec(
            model=model,
            serving_spec=serving_spec,
            validation_spec=validation_spec,
            blessing=types.Channel(type=standard_artifacts.InfraBlessing),
        )
        super().__init__(spec=spec)
