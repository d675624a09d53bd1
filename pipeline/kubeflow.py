"""Compiles the pipeline into a Kubeflow Pipelines spec (version 2.1): JSON that names no machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

from pipeline import training_pipeline
from pipeline.config import KubeflowSettings, Resources, RunConfig
from transform import contract as contracts

COMMAND = ["python", "-m", "pipeline.container"]
IMAGE = "shortlist"  # stands for the image of the steps in manifests
# The parameters of a spec: where the tables are, where models are pushed to, and what tells one state of the tables
# from another where both are in one place.
WORLD, MODELS, RUN_ID = "world", "models", "run_id"
_UNNAMED = "unnamed"
_BUCKETS = ("gs://", "s3://")  # the launcher knows minio:// too, but TensorFlow and Beam do not
# What depends on where models are pushed to, which the engine does not look at before it takes a step from its cache.
_NEVER_CACHED = (
    *("ServingBaseline", "ContentEmbedder", "TopicLearner", "FeedAssembler", "PushedContent"),  # read what is served
    *("Pusher", "ContentPusher"),
)


def compile_spec(
    config: RunConfig, world: str, root: str, models: str, image: str, stream: training_pipeline.Stream | None = None
) -> dict[str, Any]:
    """The PipelineJob of a run as a dictionary.

    It has the parameters `world`, `models` and `run_id`, so that one spec serves every day's data, and a trial as well
    as the real thing. The engine cannot know whether tables changed: what reads them and is cached is taken from the
    cache in runs of the same `world` and `run_id`.

    Args:
        config: What to run.
        world: Folder of canonical tables that the cluster can read: the parameter's default.
        root: Folder of artifacts that the cluster can write.
        models: Push destination that the cluster can write: the parameter's default.
        image: Container image with Shortlist installed, best by digest (NAME@sha256:...).
        stream: See `training_pipeline.components`; both need the same push destination.

    Raises:
        ContractError: Two of the folders are one; the feed is to be checked by Docker; `kubeflow` of the
            configuration names a step that there is not, or a file that is no TFJob; or there are no two streams.
    """
    world, root, models = (place.rstrip("/") for place in (world, root, models))  # in a bucket a//b is not a/b
    if len({world, models, root}) < 3:
        raise contracts.ContractError(
            f"expected a world, a pipeline root and a push destination of their own, got {world}, {root} and {models}: "
            "give each a folder"
        )
    if config.serving_check.by == "docker":
        raise contracts.ContractError(
            "serving_check: a step on Kubeflow has no Docker engine: set `by: kubernetes` or `by: model_server`"
        )
    if stream:
        _refuse_one_stream(config)
    contract = contracts.load(config.contract)
    jobs = {name: _training_job(path, image) for name, path in config.kubeflow.training_jobs.items()}
    at = training_pipeline.Locations(
        world=world,
        fingerprint=_UNNAMED,
        clips_fingerprint=_UNNAMED,
        videos_fingerprint=_UNNAMED,
        root=root,
        models=models,
        training_jobs=jobs,
    )
    streams: tuple[training_pipeline.Stream | None, ...] = (None, "content", "feed") if stream else (None,)
    built = {each: training_pipeline.build(config, contract, at, {}, cache=False, stream=each) for each in streams}
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True)
    )
    job: dict[str, Any] = runner.run(built[stream], write_out=False)
    _open(job, world, models, root)
    _settle(job["pipelineSpec"], config, {node.id for pipeline in built.values() for node in pipeline.components})
    if mounted := _mounted(config.kubeflow):
        steps = dict.fromkeys((label for label, kind in executors(job).items() if kind == "container"), mounted)
        job["platformSpec"] = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": steps}}}}
    return job


def _open(job: dict[str, Any], world: str, models: str, root: str) -> None:
    """What reads the world, and what is pushed or served, follows the parameters.

    A constant that is the value becomes the parameter. One that has a folder of the models in it gets, as KFP's own
    compiler does it, an input more, and its placeholder in the string, which the launcher fills.
    """
    spec, parameters = job["pipelineSpec"], {WORLD: world, MODELS: models, RUN_ID: _UNNAMED}
    declared = {name: {"parameterType": "STRING", "defaultValue": value} for name, value in parameters.items()}
    spec["root"]["inputDefinitions"] = {"parameters": declared}
    job.setdefault("runtimeConfig", {})["parameterValues"] = parameters
    below = re.compile(rf"(?<![^\"]){re.escape(models)}(?=/)(?!{re.escape(root.removeprefix(models))}/)")
    more = f"pipelinechannel--{MODELS}"
    placeholder = f"{{{{$.inputs.parameters['{more}']}}}}"
    for task in spec["root"]["dag"]["tasks"].values():
        given = task.get("inputs", {}).get("parameters", {})
        for entry in list(given.values()):
            constant = entry.get("runtimeValue", {}).get("constant")
            name = next((name for name, value in parameters.items() if constant == value), None)
            if name:
                del entry["runtimeValue"]
                entry["componentInputParameter"] = name
            elif isinstance(constant, str) and below.search(constant):
                entry["runtimeValue"] = {"constant": below.sub(lambda _: placeholder, constant)}
                given[more] = {"componentInputParameter": MODELS}
                inputs = spec["components"][task["componentRef"]["name"]]["inputDefinitions"]
                inputs["parameters"][more] = {"parameterType": "STRING"}


def _training_job(path: str, image: str) -> dict[str, Any]:
    """A TFJob with the image of the steps."""
    content = contracts.parse_yaml(contracts.read_text(Path(path)), path)[1] if Path(path).is_file() else None
    job: dict[str, Any] = content if isinstance(content, dict) else {}
    try:
        containers = [c for r in job["spec"]["tfReplicaSpecs"].values() for c in r["template"]["spec"]["containers"]]
        fine = job["kind"] == "TFJob" and {"name", "namespace"} <= job["metadata"].keys()
    except (KeyError, TypeError, AttributeError):
        fine = False
    if not fine:
        raise contracts.ContractError(
            f"{path}: expected a TFJob with name and namespace: start from kubeflow/manifests/training/tfjob.yaml"
        )
    for container in (c for c in containers if c.get("image") == IMAGE):
        container["image"] = image
    return job


def _settle(spec: dict[str, Any], config: RunConfig, known: set[str]) -> None:
    """The command of every step, and what the configuration says of single ones; it may name those in `known`."""
    settings, tasks = config.kubeflow, spec["root"]["dag"]["tasks"]
    _refuse_unknown(settings, known)
    for name, task in tasks.items():
        container = spec["deploymentSpec"]["executors"][f"{name}_executor"].get("container")
        if container is None:
            continue
        container["command"] = COMMAND
        task["cachingOptions"] = {"enableCache": any(node in settings.cached for node in _called(name))}
        if settings.retries:
            task["retryPolicy"] = {"maxRetryCount": settings.retries, "backoffDuration": "30s", "backoffFactor": 2.0}
        resources = _of_step(settings.resources, name, settings.resources.get("default"))
        if resources is not None and (asked := _asked(resources)):
            container["resources"] = asked
        own = _of_step(settings.beam_args, name, None)
        if own is not None:
            kept = container["args"][: len(container["args"]) - len(config.beam_args)]
            container["args"] = [*kept, *own]


def _mounted(settings: KubeflowSettings) -> dict[str, Any]:
    """What every step finds in its pod, as `kubernetes_executor_config.proto` of Kubeflow Pipelines has it."""
    secrets = [
        {"secretName": name, "keyToEnv": [{"secretKey": key, "envVar": variable} for key, variable in keys.items()]}
        for name, keys in settings.secrets.items()
    ]
    volumes = [{"constant": claim, "mountPath": folder} for claim, folder in settings.volumes.items()]
    return {name: entries for name, entries in (("secretAsEnv", secrets), ("pvcMount", volumes)) if entries}


def _called(name: str) -> tuple[str, str]:
    """A step by its own name and by that of its component."""
    return name, name.partition(".")[0]


def _of_step(by_name: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((by_name[node] for node in _called(name) if node in by_name), default)


def _asked(resources: Resources) -> dict[str, Any]:
    given = {"cpuLimit": resources.cpus, "cpuRequest": resources.cpus}
    given |= {"memoryLimit": resources.memory_gigabytes, "memoryRequest": resources.memory_gigabytes}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if resources.gpus:
        asked["accelerator"] = {"type": resources.gpu_type, "count": str(resources.gpus)}
    return asked


def _refuse_one_stream(config: RunConfig) -> None:
    """Both streams must have something to do, and the one must see what the other pushed."""
    lacking = ""
    if not (config.clips or config.topics or config.frames):
        lacking = "learns nothing of videos (no clips, topics or frames)"
    elif "interactions" not in config.tables:
        lacking = "learns of videos alone (no model of impressions, no feed)"
    if lacking:
        raise contracts.ContractError(f"--stream: {config.name} {lacking}, and has no two streams: leave --stream out")


def _refuse_unknown(settings: KubeflowSettings, tasks: set[str]) -> None:
    known = {node for name in tasks for node in _called(name)}
    named = {*settings.resources, *settings.cached, *settings.beam_args} - {"default"}
    for name in sorted(named - known):
        hint = contracts.did_you_mean(name, known)
        raise contracts.ContractError(
            f"kubeflow: there is no step {name!r}{hint}: expected one of {', '.join(sorted(known))}"
        )
    for name in settings.cached:
        if name.partition(".")[0] in _NEVER_CACHED:
            raise contracts.ContractError(
                f"kubeflow.cached: {name} depends on what is pushed, which the cache does not look at: take it out of "
                "the list"
            )


def takes_no_root(root: str) -> bool:
    """Whether the launcher of Kubeflow Pipelines would refuse a pipeline root: it knows buckets alone."""
    return not root.startswith(_BUCKETS)


def takes_no_image(image: str) -> bool:
    """Whether an image is named by a tag, behind which another may come to stand."""
    return "@sha256:" not in image


def executors(job: dict[str, Any]) -> dict[str, str]:
    """The kind of every executor in a spec, by its label: `container`, `importer`, or whatever else occurs."""
    specs = job["pipelineSpec"]["deploymentSpec"]["executors"]
    return {label: next(iter(spec)) for label, spec in specs.items()}


def write_spec(job: dict[str, Any], path: Path) -> None:
    """Write a spec, with sorted keys, so that two compilations of one configuration are the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job, indent=1, sort_keys=True) + "\n", encoding="utf-8")
