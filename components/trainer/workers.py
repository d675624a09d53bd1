"""Hands a training over to several workers: a TFJob of Kubeflow's training operator, which this step waits for.

The operator starts a pod for each worker and tells it the others in TF_CONFIG; `python -m trainer.worker` calls the
model's own `run_fn` in each. A pod that dies is started again, and all go on from the last checkpoint. If this step is
tried again, it waits for the job that there is.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import kubernetes
from tfx.dsl.io import fileio

GROUP, VERSION, KIND = "kubeflow.org", "v1", "tfjobs"
ARGUMENTS = "arguments.json"
_GIVEN = (
    "train_files",
    "eval_files",
    "raw_files",
    "catalogue_files",
    "frames_files",
    "transform_graph_path",
    "model_run_dir",
    "serving_model_dir",
    "custom_config",
)
_POLL_SECONDS = 5.0
_CONFLICT = 409

log = logging.getLogger(__name__)


class TrainingJobError(RuntimeError):
    """The job failed; the message is the operator's."""


def run_fn(fn_args: Any) -> None:
    """Train on several workers: what TFX's Trainer calls in place of a model's own function.

    Args:
        fn_args: TFX's FnArgs, as `components.trainer` makes them. `custom_config` holds `training_job` (the TFJob:
            its workers are given the path of their arguments) and `run_fn` (the model's).

    Raises:
        TrainingJobError: The job failed, or one of another run has its name.
    """
    given = dict(fn_args.custom_config)
    job, function = given.pop("training_job"), given.pop("run_fn")
    arguments = {name: getattr(fn_args, name) for name in _GIVEN} | {"custom_config": given, "run_fn": function}
    path = f"{fn_args.model_run_dir}/{ARGUMENTS}"
    fileio.makedirs(fn_args.model_run_dir)
    with fileio.open(path, "w") as file:
        file.write(json.dumps(arguments, indent=1))
    kubernetes.config.load_incluster_config()
    _wait(_start(_with_arguments(job, path)))


def _with_arguments(job: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The job whose containers are told where their arguments are, last."""
    body: dict[str, Any] = json.loads(json.dumps(job))
    for replica in body["spec"]["tfReplicaSpecs"].values():
        for container in replica["template"]["spec"]["containers"]:
            container["args"] = [*container.get("args", []), path]
    return body


def _start(body: dict[str, Any]) -> tuple[str, str]:
    """Namespace and name of the job, which may be there from an earlier try of the same step."""
    api, (namespace, name) = kubernetes.client.CustomObjectsApi(), (body["metadata"][k] for k in ("namespace", "name"))
    try:
        api.create_namespaced_custom_object(GROUP, VERSION, namespace, KIND, body)
        log.info("started TFJob %s in %s", name, namespace)
    except kubernetes.client.ApiException as error:
        if error.status != _CONFLICT:
            raise
        there = api.get_namespaced_custom_object(GROUP, VERSION, namespace, KIND, name)
        if there["spec"]["tfReplicaSpecs"] != body["spec"]["tfReplicaSpecs"]:
            raise TrainingJobError(
                f"TFJob {name} of {namespace} is there already, of another run: wait for that one to end, or delete it"
            ) from error
        log.info("going on with TFJob %s of %s", name, namespace)
    return namespace, name


def _wait(place: tuple[str, str]) -> None:
    """Until the job succeeded; then it is deleted, so that the next run can have its name."""
    api, (namespace, name) = kubernetes.client.CustomObjectsApi(), place
    while True:
        job = api.get_namespaced_custom_object_status(GROUP, VERSION, namespace, KIND, name)
        state = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        if "Succeeded" in state or "Failed" in state:
            api.delete_namespaced_custom_object(GROUP, VERSION, namespace, KIND, name)
        if "Failed" in state:
            raise TrainingJobError(f"TFJob {name} of {namespace} failed: {state['Failed'].get('message', '')}")
        if "Succeeded" in state:
            return
        time.sleep(_POLL_SECONDS)
