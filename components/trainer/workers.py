"""Hands a training over to several workers: a TFJob of Kubeflow's training operator, which this step waits for.

The operator starts a pod for each worker and tells it the others in TF_CONFIG; `python -m trainer.worker` calls the
model's own `run_fn` in each. A pod that dies is started again, and all go on from the last checkpoint. A job is named
by where its arguments are: if this step is tried again, it waits for the job that there is, and no other run's is taken
for its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import kubernetes
from tfx.dsl.io import fileio

GROUP, VERSION, KIND = "kubeflow.org", "v1", "tfjobs"
CONTAINER = "tensorflow"  # by this name the operator finds a worker's
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
_TRIES = 10
_GONE = 404

log = logging.getLogger(__name__)


class TrainingJobError(RuntimeError):
    """The job failed; the message is the operator's."""


def run_fn(fn_args: Any) -> None:
    """Train on several workers: what TFX's Trainer calls in place of a model's own function.

    Args:
        fn_args: TFX's FnArgs, as `components.trainer` makes them. `custom_config` holds `training_job` (the TFJob:
            its workers are given the path of their arguments) and `run_fn` (the model's).

    Raises:
        TrainingJobError: The job failed.
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
    """The job by a name of its own, whose workers are told where their arguments are, last."""
    body: dict[str, Any] = json.loads(json.dumps(job))
    body["metadata"]["name"] += f"-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    for replica in body["spec"]["tfReplicaSpecs"].values():
        for container in replica["template"]["spec"]["containers"]:
            if container["name"] == CONTAINER:
                container["args"] = [*container.get("args", []), path]
    return body


def _start(body: dict[str, Any]) -> tuple[str, str]:
    """Namespace and name of the job, which may be there from an earlier try; one that failed is started anew."""
    namespace, name = (body["metadata"][key] for key in ("namespace", "name"))
    there = _found(namespace, name)
    if there and "Failed" in _state(there):
        _delete(namespace, name)
        while there := _found(namespace, name):
            time.sleep(_POLL_SECONDS)
    if there is None:
        kubernetes.client.CustomObjectsApi().create_namespaced_custom_object(GROUP, VERSION, namespace, KIND, body)
    log.info("%s TFJob %s of %s", "going on with" if there else "started", name, namespace)
    return namespace, name


def _found(namespace: str, name: str) -> dict[str, Any] | None:
    api = kubernetes.client.CustomObjectsApi()
    try:
        return dict(api.get_namespaced_custom_object(GROUP, VERSION, namespace, KIND, name))
    except kubernetes.client.ApiException as error:
        if error.status != _GONE:
            raise
        return None


def _state(job: Mapping[str, Any]) -> dict[str, Any]:
    return {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}


def _delete(namespace: str, name: str) -> None:
    try:
        kubernetes.client.CustomObjectsApi().delete_namespaced_custom_object(GROUP, VERSION, namespace, KIND, name)
    except kubernetes.client.ApiException as error:
        if error.status != _GONE:
            raise


def _wait(place: tuple[str, str]) -> None:
    """Until the job succeeded; then it is deleted. One that failed stays, with its pods and what they printed."""
    api, (namespace, name), failures = kubernetes.client.CustomObjectsApi(), place, 0
    while True:
        try:
            state = _state(api.get_namespaced_custom_object_status(GROUP, VERSION, namespace, KIND, name))
            failures = 0
        except kubernetes.client.ApiException as error:
            failures += 1  # an API server that is busy or being replaced is no reason to give up a training
            if error.status == _GONE or failures == _TRIES:
                raise
            state = {}
        if "Failed" in state:
            raise TrainingJobError(f"TFJob {name} of {namespace} failed: {state['Failed'].get('message', '')}")
        if "Succeeded" in state:
            return _delete(namespace, name)
        time.sleep(_POLL_SECONDS)
