"""What a candidate must stand before it is served. Light, so that configurations are checked at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingCheckSettings(BaseModel):
    """How a candidate is tried, and its bounds.

    Attributes:
        by: `model_server`: Shortlist's own server in a process of its own. `docker` and `kubernetes`: TensorFlow
            Serving, by TFX's InfraValidator, where an engine is at hand, or in a step of Kubeflow Pipelines; it sees
            that the model loads, and knows none of the bounds below but `startup_seconds`.
        image: Of TensorFlow Serving, for the latter: NAME:TAG.
        requests: How many requests are timed, one after the other.
        p99_milliseconds: The slowest hundredth of them may take so long.
        memory_megabytes: What the server may hold after them.
        startup_seconds: How long it may take until the model answers, warmed up.
        tolerance: By how much a float of a golden answer may be off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    by: Literal["model_server", "docker", "kubernetes"] = "model_server"
    image: str = Field(default="tensorflow/serving:2.16.1", pattern=r"^[^@\s]+:[^:/@\s]+$")
    requests: int = Field(default=50, ge=1)
    p99_milliseconds: float = Field(default=1000.0, gt=0)
    memory_megabytes: float = Field(default=4096.0, gt=0)
    startup_seconds: float = Field(default=600.0, gt=0)
    tolerance: float = Field(default=1e-5, gt=0)
