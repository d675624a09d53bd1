"""What one run does: a YAML file, checked before anything starts."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.frame_embedder.settings import FrameSettings
from components.serving_check.settings import ServingCheckSettings
from components.topic_learner.settings import TopicSettings
from pipeline.models import MODELS
from serving.topic_queues.settings import QueueSettings
from transform.clip_settings import ClipSettings
from transform.contract import TABLES, ContractError, did_you_mean, parse_yaml, read_text
from transform.feed import FeedSettings

BUILT_IN = Path(__file__).parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Splits(_Strict):
    """How impressions are divided; fractions add up to 1.

    `time` cuts at two instants, so that a model is judged on what came after everything it learned from. `hash` divides
    at random, and exists only to repeat published protocols.
    """

    by: Literal["time", "hash"] = "time"
    train: float = Field(default=0.8, gt=0, lt=1)
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_sum(self) -> Splits:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, valid and test must add up to 1, got {total:g}")
        return self


LOWER_IS_BETTER = ("logloss",)


class Gate(_Strict):
    """What one metric must reach before a model is pushed.

    Attributes:
        metric: One of the model's in `pipeline.models`; a ranker's ndcg and recall are at 10, by user; accuracy is
            top-1.
        at_least: Absolute floor.
        at_most: Absolute ceiling.
        change: How far the metric may move the wrong way against the model now served; 0 means not at all.
        slices: Slices the gate is applied to: `feature` is every value of it, `feature=value` is one. None means over
            all examples. A slice of few examples is noise: TFMA cannot leave it out where metrics by user are asked
            for, so name the values that matter.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    change: float | None = Field(default=None, ge=0)
    slices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if self.metric == "calibration" and self.change is not None:
            raise ValueError("calibration is best at 1, so no change is for the better: use at_least and at_most")
        if self.at_least is None and self.at_most is None:
            raise ValueError(
                f"the gate on {self.metric} needs at_least or at_most: a change threshold alone passes everything "
                "while no model is served"
            )
        side = "at_most" if self.metric in LOWER_IS_BETTER else "at_least"
        if self.change is not None and getattr(self, side) is None:
            raise ValueError(
                f"the gate on {self.metric} has a change threshold and no {side}: it passes the worst of models while "
                "none is served"
            )
        return self


class ModelConfig(_Strict):
    """One model of the run: `model` and `training` are settings of its own, checked by `pipeline.models`."""

    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    gates: tuple[Gate, ...] = Field(min_length=1)
    slices: tuple[str, ...] = ()


class Resources(_Strict):
    """What a step's container asks for; None leaves it to the cluster."""

    cpus: float | None = Field(default=None, gt=0)
    memory_gigabytes: float | None = Field(default=None, gt=0)
    gpus: int = Field(default=0, ge=0)
    gpu_type: str = "nvidia.com/gpu"


class KubeflowSettings(_Strict):
    """How steps run on Kubeflow Pipelines, by the name of a component (`Trainer`) or of one node (`Trainer.ranker`).

    Attributes:
        retries: How often a step that failed is tried again.
        resources: What containers ask for; `default` is for steps that are not named.
        cached: Components whose outputs may be an earlier run's, where all inputs are the same. What reads the world
            cannot know whether it changed: of runs with one `run_id`, recurring ones among them, it is told that it
            did not.
        beam_args: Of single components, instead of the run's.
        training_jobs: By model, the file of a TFJob that trains it on several workers.
        secrets: By the name of a Secret in the steps' namespace, the environment variable that each key becomes.
        volumes: By the name of a PersistentVolumeClaim in the steps' namespace, the folder it is mounted at.
    """

    retries: int = Field(default=0, ge=0)
    resources: dict[str, Resources] = {}
    cached: tuple[str, ...] = ()
    beam_args: dict[str, tuple[str, ...]] = {}
    training_jobs: dict[str, str] = {}
    secrets: dict[str, dict[str, str]] = {}
    volumes: dict[str, Annotated[str, Field(pattern="^/")]] = {}


class SpanSettings(_Strict):
    """How time is cut into spans, of which `shortlist run --span N` takes one.

    Attributes:
        first: When span 0 starts: a date (midnight, UTC), an instant, or unix seconds.
        hours: Length of a span.
        drift: How far a feature may be from the span before, by name: the largest difference in the share of any value
            (L-infinity) of ids and texts, the Jensen-Shannon divergence of numbers. Each 0 to 1.
        keep: Of how many runs the artifacts are kept, and how many versions of each model.
    """

    first: datetime
    hours: float = Field(default=24, gt=0)
    drift: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    keep: int = Field(default=3, ge=2)

    @field_validator("first")
    @classmethod
    def _in_utc(cls, first: datetime) -> datetime:
        return first if first.tzinfo else first.replace(tzinfo=timezone.utc)

    def window(self, span: int) -> tuple[int, int]:
        """The first instant of a span and the first one after it, unix seconds."""
        since, until = (self.first.timestamp() + number * self.hours * 3600 for number in (span, span + 1))
        return int(since), int(until)


class RunConfig(_Strict):
    """A run: which contract, how examples are split, which models with which gates.

    `clips` decodes the world's media; its content vectors are those of the classifier being served. `topics` learns
    topics of videos with the topic representation being served; `queues` says what the feed takes of each topic;
    `frames` describes the candidates for covers. `feed` joins what is served in one model, `serving_check` tries it.
    `spans` is heeded by `shortlist run --span` alone, `kubeflow` by `shortlist compile`. `beam_args` are none unless
    given: Beam runs in memory then, and TFX does not pack itself up for workers before each step, as it does otherwise.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    contract: str
    world: str | None = None
    splits: Splits = Splits()
    clips: ClipSettings | None = None
    clip_splits: Splits = Splits(by="hash")
    topics: TopicSettings | None = None
    video_splits: Splits = Splits(by="hash")
    queues: QueueSettings = QueueSettings()
    frames: FrameSettings | None = None
    feed: FeedSettings | None = None
    serving_check: ServingCheckSettings = ServingCheckSettings()
    spans: SpanSettings | None = None
    models: dict[str, ModelConfig] = Field(min_length=1)
    beam_args: tuple[str, ...] = ()
    kubeflow: KubeflowSettings = KubeflowSettings()

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of a world that this run cannot do without."""
        impressions = self.feed is not None or any(MODELS[name].examples == "impressions" for name in self.models)
        return TABLES if impressions else ("videos",)

    @field_validator("models")
    @classmethod
    def _known_models(cls, models: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        for name, model in models.items():
            if name not in MODELS:
                raise ValueError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
            allowed = MODELS[name].metrics
            for gate in model.gates:
                if gate.metric not in allowed:
                    raise ValueError(f"{name}: unknown metric {gate.metric!r}: expected one of {', '.join(allowed)}")
        return models

    @model_validator(mode="after")
    def _check_clips(self) -> RunConfig:
        if self.clips is None and any(MODELS[name].examples == "clips" for name in self.models):
            raise ValueError("a model of clips needs to know their shape: add `clips: {frames: 32, size: 224}`")
        for name in (name for name in self.models if MODELS[name].examples == "videos"):
            if self.topics is None:
                raise ValueError(f"{name} is there to learn topics with: add `topics: {{topics: 128}}`")
            if "cover_size" in self.models[name].model:
                raise ValueError(f"{name}: the size of covers is a setting of `topics`: move cover_size there")
        for name in self.kubeflow.training_jobs:
            if name not in self.models or self.models[name].training.get("strategy") != "multi_worker":
                raise ValueError(
                    "kubeflow.training_jobs: expected models of the run with `training: {strategy: multi_worker}`, got "
                    f"{name}"
                )
        for name in (name for name in self.models if MODELS[name].frames):
            if self.frames is None:
                raise ValueError(f"{name} needs to know what frames look like: add `frames: {{encoder: colours}}`")
        return self


def load(name_or_path: str) -> RunConfig:
    """The configuration of a built-in name ("demo") or in a YAML file.

    Raises:
        ContractError: No such file, or it is not valid; the message names the key and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = BUILT_IN / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.yaml")))
        raise ContractError(f"no configuration {name_or_path!r}: expected one of {known}, or the path of a .yaml file")
    _, content = parse_yaml(read_text(path), str(path))
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ContractError("\n".join(f"{path}: {_explain(detail)}" for detail in error.errors())) from error


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "file"
    if detail["type"] == "extra_forbidden":
        known = {
            *RunConfig.model_fields,
            *ModelConfig.model_fields,
            *Gate.model_fields,
            *Splits.model_fields,
            *ClipSettings.model_fields,
            *TopicSettings.model_fields,
            *QueueSettings.model_fields,
            *FrameSettings.model_fields,
            *FeedSettings.model_fields,
            *ServingCheckSettings.model_fields,
            *SpanSettings.model_fields,
            *KubeflowSettings.model_fields,
            *Resources.model_fields,
        }
        meant = did_you_mean(str(detail["loc"][-1]), known)
        return f"{key}: unknown key{meant}: {'rename' if meant else 'remove'} it"
    got = "" if detail["type"] in ("missing", "value_error") else f", got {detail['input']!r}"
    return f"{key}: {detail['msg'].removeprefix('Value error, ')}{got}"
