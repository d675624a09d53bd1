"""Hands a compiled spec to a Kubeflow Pipelines server: one run now, or a recurring one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import yaml
from urllib3.exceptions import HTTPError

from pipeline.errors import RunFailedError
from transform.contract import ContractError

HOST, TOKEN = "KFP_HOST", "KFP_TOKEN"
_CONCURRENT = 1  # two runs would push into one folder


def submit(
    spec: Path,
    experiment: str,
    parameters: Mapping[str, str] | None = None,
    cron: str | None = None,
    namespace: str | None = None,
    service_account: str | None = None,
) -> tuple[str, str]:
    """Start a run, or have one started again and again, no two at a time and none for times gone by.

    The server is that of the environment variable KFP_HOST, and the bearer token that of KFP_TOKEN, if there is one.

    Args:
        spec: What `shortlist compile` wrote.
        experiment: Made if there is none of that name.
        parameters: Of the spec (`world`, `models`, `run_id`); others keep their defaults.
        cron: When, in six fields of which the first are seconds; None: once, now.
        namespace: Of the experiment, where the server has many users; None: it has one.
        service_account: Whose rights the steps have; None: that which the server gives them.

    Returns:
        "run" or "recurring run", and its id.

    Raises:
        ContractError: There is no such spec, or it has no such parameter; no server is named; or the server refused.
        RunFailedError: The server cannot be reached.
    """
    job, host = _job(spec), os.environ.get(HOST)
    if not host:
        raise ContractError(
            f"{HOST} is not set: expected the address of Kubeflow Pipelines, such as http://localhost:8080"
        )
    given = _checked(job, parameters or {}, spec)
    root = job["runtimeConfig"]["gcsOutputDirectory"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as package:
        yaml.safe_dump_all([job[part] for part in ("pipelineSpec", "platformSpec") if part in job], package)
        package.flush()
        try:
            client = kfp.Client(host=host, existing_token=os.environ.get(TOKEN))
            owner = client.create_experiment(experiment, namespace=namespace)
            about: dict[str, Any] = {
                "experiment_id": owner.experiment_id,
                "pipeline_root": root,
                "service_account": service_account,
            }
            name = job["pipelineSpec"]["pipelineInfo"]["name"]
            if cron is None:
                run = client.create_run_from_pipeline_package(package.name, given, run_name=name, **about)
                return "run", str(run.run_id)
            recurring = client.create_recurring_run(
                job_name=name,
                cron_expression=cron,
                max_concurrency=_CONCURRENT,
                no_catchup=True,
                params=given,
                pipeline_package_path=package.name,
                **about,
            )
            return "recurring run", str(recurring.recurring_run_id)
        except kfp_server_api.ApiException as error:
            raise ContractError(f"{host} refused {spec}: {error.status} {error.reason}: {error.body or ''}") from error
        except (HTTPError, TimeoutError) as error:
            raise RunFailedError(f"{host} cannot be reached: {error}") from error


def _job(spec: Path) -> dict[str, Any]:
    try:
        job: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
        job["pipelineSpec"]["pipelineInfo"], job["runtimeConfig"]["gcsOutputDirectory"]
    except FileNotFoundError as error:
        raise ContractError(f"no spec {spec}: `shortlist compile --out {spec}` writes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{spec}: expected what `shortlist compile` writes, got {error!r}: compile it anew"
        ) from error
    return job


def _checked(job: Mapping[str, Any], parameters: Mapping[str, str], spec: Path) -> dict[str, str]:
    known = job["pipelineSpec"]["root"].get("inputDefinitions", {}).get("parameters", {})
    for name in parameters:
        if name not in known:
            raise ContractError(f"{spec} has no parameter {name!r}: expected one of {', '.join(known) or 'none'}")
    given = {**{name: str(about["defaultValue"]) for name, about in known.items()}, **parameters}
    places = {name: given[name].rstrip("/") for name in ("world", "models") if name in given}  # a//b is not a/b there
    root = job["runtimeConfig"]["gcsOutputDirectory"].removesuffix("/artifacts")
    if len({*places.values(), root}) < len(places) + 1:
        raise ContractError(
            f"expected a world, a pipeline root and a push destination of their own, got {places} and {root}: give "
            "each a folder"
        )
    return {**given, **places}
