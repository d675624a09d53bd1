"""ExampleValidator whose anomalies stop the run.

TFX's own component only writes anomalies down; whatever comes after it runs on.
"""

from __future__ import annotations

from tfx.components.example_validator import component as tfx_component
from tfx.dsl.components.base import executor_spec

from components.example_validator.executor import Executor


class ExampleValidator(tfx_component.ExampleValidator):
    """Takes and gives what TFX's ExampleValidator does: `statistics` and `schema` in, `anomalies` out."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
