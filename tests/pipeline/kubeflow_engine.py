"""Kubeflow Pipelines without a cluster: reads a compiled spec as its driver and launcher do, and runs each container's
command as a process of this machine.

What is taken from the engine's behaviour: tasks run in the order of their dependencies; parameters and artifacts are
resolved from constants, pipeline parameters and producers; `{{$}}` in a command becomes the ExecutorInput; the
executor's output metadata is read back and goes to the consumers; a task whose container, inputs and parameters are
those of an earlier one is skipped where caching is enabled; one that failed is tried again as its retry policy says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
EXECUTOR_INPUT = "{{$}}"
ROOT = Path(__file__).parents[2]


class TaskFailedError(Exception):
    """A container's command left with another exit code than 0, as often as it was tried."""


@dataclass
class Engine:
    """What outlives a run: the cache.

    Attributes:
        root: Pipeline root, of any file system.
        local: Folder for what executors tell the launcher.
        environment: Further variables of the containers.
        cache: Output artifacts by fingerprint of task.
        started: Names of tasks whose containers were started, in order; a retry counts again.
        skipped: Names of tasks that came from the cache.
    """

    root: str
    local: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cache: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self, job: Mapping[str, Any], run_id: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Output artifacts by task: {task: {name: [artifact]}}."""
        spec = job["pipelineSpec"]
        given = {**job["runtimeConfig"].get("parameterValues", {}), **(parameters or {})}
        declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        assert set(given) <= set(declared), "a parameter that the pipeline does not know"
        values = {name: given.get(name, about.get("defaultValue")) for name, about in declared.items()}
        tasks, done = spec["root"]["dag"]["tasks"], {}
        self.started.clear()
        self.skipped.clear()
        for name in TopologicalSorter({name: _waits_for(task) for name, task in tasks.items()}).static_order():
            done[name] = self._task(spec, name, f"{spec['pipelineInfo']['name']}/{run_id}/{name}", values, done)
        return done

    def _task(
        self, spec: Mapping[str, Any], name: str, folder: str, values: Mapping[str, Any], done: Mapping[str, Any]
    ) -> dict[str, Any]:
        task = spec["root"]["dag"]["tasks"][name]
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        executor_input = _executor_input(task, component, f"{self.root}/{folder}", values, done)
        executor_input["outputs"]["outputFile"] = f"{self.local}/{folder}/executor_output.json"
        identity = json.dumps([container, executor_input["inputs"]], sort_keys=True)
        fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        if task.get("cachingOptions", {}).get("enableCache") and fingerprint in self.cache:
            self.skipped.append(name)
            return self.cache[fingerprint]
        tries = 1 + int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        for left in reversed(range(tries)):
            self.started.append(name)
            process = self._start(container, executor_input)
            if process.returncode == 0:
                break
            if not left:
                raise TaskFailedError(f"{name}: {process.stderr[-2000:]}")
        self.cache[fingerprint] = _outputs(executor_input)
        return self.cache[fingerprint]

    def _start(
        self, container: Mapping[str, Any], executor_input: Mapping[str, Any]
    ) -> subprocess.CompletedProcess[str]:
        assert container["command"][0] == "python"
        text = json.dumps(executor_input)
        values = executor_input["inputs"]["parameterValues"]
        # As the launcher does since 2.14: what a constant has of other parameters is filled in behind `{{$}}`.
        arguments = [
            PLACEHOLDER.sub(lambda match: str(values[match[1]]), argument.replace(EXECUTOR_INPUT, text))
            for argument in container["args"]
        ]
        given = {item["name"]: item["value"] for item in container.get("env", [])}
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": paths, **given, **self.environment}
        command = [sys.executable, *container["command"][1:], *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _waits_for(task: Mapping[str, Any]) -> set[str]:
    inputs = task.get("inputs", {}).get("artifacts", {}).values()
    return {*task.get("dependentTasks", []), *(entry["taskOutputArtifact"]["producerTask"] for entry in inputs)}


def _executor_input(
    task: Mapping[str, Any],
    component: Mapping[str, Any],
    folder: str,
    values: Mapping[str, Any],
    done: Mapping[str, Any],
) -> dict[str, Any]:
    inputs = task.get("inputs", {})
    parameters = {
        name: values[entry["componentInputParameter"]]
        if "componentInputParameter" in entry
        else entry["runtimeValue"]["constant"]
        for name, entry in inputs.get("parameters", {}).items()
    }
    assert parameters.keys() <= component.get("inputDefinitions", {}).get("parameters", {}).keys()
    artifacts = {
        name: {"artifacts": done[source["producerTask"]][source["outputArtifactKey"]]}
        for name, source in ((n, entry["taskOutputArtifact"]) for n, entry in inputs.get("artifacts", {}).items())
    }
    defined = component.get("outputDefinitions", {}).get("artifacts", {})
    outputs = {
        name: {"artifacts": [{"name": f"{folder}/{name}", "type": about["artifactType"], "uri": f"{folder}/{name}"}]}
        for name, about in defined.items()
    }
    return {
        "inputs": {"parameterValues": parameters, "artifacts": artifacts},
        "outputs": {"artifacts": outputs},
    }


def _outputs(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    """Output artifacts with the metadata that the executor wrote."""
    with open(executor_input["outputs"]["outputFile"], encoding="utf-8") as file:
        written = json.load(file).get("artifacts", {})
    found = {}
    for name, entry in executor_input["outputs"]["artifacts"].items():
        (artifact,) = entry["artifacts"]
        (told,) = written.get(name, {"artifacts": [{}]})["artifacts"]
        found[name] = [{**artifact, "uri": told.get("uri", artifact["uri"]), "metadata": told.get("metadata", {})}]
    return found
