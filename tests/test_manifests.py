"""What a cluster is given: valid by Kubernetes' schemas, locked down, and served with the flags of either server."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from components.trainer.workers import GROUP, KIND
from pipeline import config as configs
from pipeline.cli import app
from pipeline.kubeflow import IMAGE
from serving.front import Front, application
from serving.model_server import options
from serving.topic_queues import redis_store
from transform import contract as contracts

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "kubeflow" / "manifests"
VERSIONS = ("1.28", "1.31", kubernetes_validate.latest_version().rpartition(".")[0])
LOCKED_DOWN = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
OVERLAYS = ("minikube", "cloud", "bucket")


def kustomization(folder: Path) -> dict:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def documents(folder: Path) -> list[dict]:
    """The resources of a kustomization's folder and of those it builds on, patched, but for generated ones."""
    found = []
    for name in kustomization(folder).get("resources", []):
        path = folder / name
        assert path.exists(), f"{folder}: no {name}"
        found += documents(path) if path.is_dir() else [*yaml.safe_load_all(path.read_text())]
    for patch in kustomization(folder).get("patches", []):
        kind, name = patch["target"]["kind"], patch["target"].get("name")
        targets = [d for d in found if d["kind"] == kind and name in (None, d["metadata"]["name"])]
        assert targets, f"{folder}: nothing to patch at {patch['target']}"
        steps = yaml.safe_load(patch["patch"])
        if isinstance(steps, dict):
            assert steps["$patch"] == "delete"
            found = [d for d in found if d not in targets]
            continue
        for target, step in itertools.product(targets, steps):
            change(target, step)
    return found


def change(target: dict, step: dict) -> None:
    """A step of a JSON patch."""
    *parents, last = [int(p) if p.isdigit() else p for p in step["path"].strip("/").split("/")]
    place: Any = target
    for part in parents:
        place = place[part]
    there = last < len(place) if isinstance(last, int) else last in place
    assert step["op"] == "add" or there, f"nothing at {step['path']}"
    if step["op"] == "test":
        assert place[last] == step["value"]
    elif step["op"] == "remove":
        del place[last]
    else:
        place[last] = step["value"]


def patched(overlay: str) -> list[dict]:
    return documents(MANIFESTS / "overlays" / overlay)


def containers(found: list[dict]) -> list[tuple[dict, dict]]:
    """(pod spec, container) of every workload."""
    pods = [d["spec"]["template"]["spec"] for d in found if d["kind"] in ("Deployment", "StatefulSet")]
    return [(pod, container) for pod in pods for container in pod["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid(overlay, version):
    found = patched(overlay)
    assert len(found) >= 12
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_run_as_nobody_write_nowhere_and_are_limited(overlay):
    found = containers(patched(overlay))
    assert len(found) == 3
    for pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == LOCKED_DOWN
        assert container["resources"]["limits"]["memory"]
        assert container["readinessProbe"]


def container_of(name: str) -> tuple[dict, dict]:
    """(pod spec, container) of the base."""
    return next((p, c) for p, c in containers(documents(MANIFESTS / "base")) if c["name"] == name)


def serving() -> tuple[dict, dict]:
    return container_of("serving")


def test_the_local_server_takes_the_very_arguments_of_the_deployment():
    pod, container = serving()
    chosen = options.parse(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (chosen.port, chosen.rest_api_port) == (ports["grpc"], ports["rest"])
    assert chosen.enable_batching
    files = kustomization(ROOT / "serving" / "configs")["configMapGenerator"][0]["files"]
    assert all((ROOT / "serving" / "configs" / name).is_file() for name in files)
    named = {chosen.model_config_file, chosen.batching_parameters_file, chosen.monitoring_config_file}
    assert named == {f"/configs/{name}" for name in files}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/configs"]]["configMap"]["name"] == "serving-configs"
    assert set(mounts.values()) == set(volumes)


def test_a_replica_is_ready_when_the_feed_is_served_and_metrics_are_where_prometheus_looks():
    _, container = serving()
    models = (ROOT / "serving" / "configs" / "models.config").read_text()
    assert container["readinessProbe"]["httpGet"] == {"path": "/v1/models/feed", "port": "rest"}
    assert 'name: "feed"' in models
    deployment = of_kind("Deployment")["serving"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    monitoring = (ROOT / "serving" / "configs" / "monitoring.config").read_text()
    assert f'path: "{annotations["prometheus.io/path"]}"' in monitoring


def of_kind(kind: str) -> dict[str, dict]:
    return {d["metadata"]["name"]: d for d in documents(MANIFESTS / "base") if d["kind"] == kind}


def test_the_front_starts_as_the_command_line_has_it_and_finds_what_it_asks():
    pod, container = container_of("front")
    assert container["image"] == IMAGE
    program, command = container["command"]
    assert program == "shortlist"
    given = typer.main.get_command(app).commands[command].make_context(command, list(container["args"])).params
    services = of_kind("Service")
    for address, name in ((given["target"], "serving"), (given["queues"].rpartition("//")[2], "queues")):
        host, _, port = address.partition("?")[0].partition(":")
        assert (host, int(port) in [p["port"] for p in services[host]["spec"]["ports"]]) == (name, True)
    assert given["host"] == "0.0.0.0"
    (port,) = container["ports"]
    assert given["port"] == port["containerPort"]
    assert configs.load(given["config"]).feed is not None
    answered = {route.path for route in application(Front(None, contracts.load("microvideo"), None)).routes}
    annotations = of_kind("Deployment")["front"]["spec"]["template"]["metadata"]["annotations"]
    asked = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert {*asked, annotations["prometheus.io/path"]} <= answered
    assert int(annotations["prometheus.io/port"]) == given["port"]
    assert pod["securityContext"]["runAsUser"] == 1000  # of the image


def test_nothing_reaches_a_pod_that_no_policy_names():
    policies = {name: document["spec"] for name, document in of_kind("NetworkPolicy").items()}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    open_ports = {"serving": {8500, 8501}, "front": {8080}, "queues": {6379}}
    assert set(policies) == {"nobody", *open_ports}
    for name, ports in open_ports.items():
        assert policies[name]["podSelector"] == {"matchLabels": {"app": name}}
        rules = policies[name]["ingress"]
        assert all("podSelector" in peer for rule in rules for peer in rule["from"])
        assert {port["port"] for rule in rules for port in rule["ports"]} == ports


def test_the_front_may_ask_the_server_and_the_queues_and_every_service_finds_its_pods():
    workloads = {**of_kind("Deployment"), **of_kind("StatefulSet")}
    labels = {name: d["spec"]["template"]["metadata"]["labels"] for name, d in workloads.items()}
    for name, policy in of_kind("NetworkPolicy").items():
        if name in ("serving", "queues"):
            peers = policy["spec"]["ingress"][0]["from"]
            assert peers[0]["podSelector"]["matchLabels"].items() <= labels["front"].items()
            assert not any("namespaceSelector" in peer for peer in peers)  # who may reload models or empty queues
    for name, service in of_kind("Service").items():
        assert service["spec"]["selector"].items() <= labels[name].items()
        ports = {port["name"] for _, container in containers([workloads[name]]) for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_models_in_a_bucket_need_no_volume_and_are_those_of_a_volume():
    found = patched("bucket")
    assert "models" not in {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
    pod, container = next((p, c) for p, c in containers(found) if c["name"] == "serving")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])
    config = (MANIFESTS / "overlays" / "bucket" / "models.config").read_text()
    of_a_volume = (ROOT / "serving" / "configs" / "models.config").read_text()
    assert without_comments(config.replace("gs://BUCKET/models", "/models")) == without_comments(of_a_volume)


def test_steps_and_server_share_the_folder_of_a_node_by_two_volumes():
    folder = MANIFESTS / "overlays" / "minikube"
    (theirs,) = yaml.safe_load_all((folder / "volume.yaml").read_text())
    ours, claim = yaml.safe_load_all((folder / "steps.yaml").read_text())
    assert ours["spec"] == theirs["spec"]
    assert claim["spec"]["volumeName"] == ours["metadata"]["name"] != theirs["metadata"]["name"]
    for document in (ours, claim):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def without_comments(config: str) -> list[str]:
    return [line for line in config.splitlines() if not line.startswith("#")]


def test_the_queues_have_a_password_that_the_front_knows_and_less_memory_than_their_pod():
    _, redis = container_of("redis")
    _, front = container_of("front")
    ours, theirs = ({e["name"]: e["valueFrom"]["secretKeyRef"] for e in c["env"]} for c in (redis, front))
    assert ours["REDISCLI_AUTH"] == theirs[redis_store.PASSWORD]
    told = dict(zip(redis["args"][1::2], redis["args"][2::2], strict=True))
    assert told["--requirepass"] == "$(REDISCLI_AUTH)"
    assert (told["--maxmemory"], redis["resources"]["limits"]["memory"]) == ("768mb", "1Gi")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_overlay(overlay):
    kubectl = shutil.which("kubectl") or shutil.which("kustomize")
    if kubectl is None:
        pytest.skip("neither kubectl nor kustomize is on the path: install one to build the overlays")
    command = [kubectl, "kustomize" if kubectl.endswith("kubectl") else "build"]
    done = subprocess.run([*command, str(MANIFESTS / "overlays" / overlay)], capture_output=True, text=True, check=True)
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    (configs_map,) = (document for document in built if document["kind"] == "ConfigMap")
    assert ("gs://" in configs_map["data"]["models.config"]) == (overlay == "bucket")
    assert set(configs_map["data"]) == {"models.config", "batching.config", "monitoring.config"}
    expected = patched(overlay)
    assert {"ConfigMap", *map(named, expected)} == {"ConfigMap" if d is configs_map else named(d) for d in built}
    ours, theirs = ({c["name"]: c["volumeMounts"] for _, c in containers(found)} for found in (expected, built))
    assert ours == theirs  # this file's own reading is kustomize's


def named(document: dict) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def test_workers_of_a_training_are_locked_down_and_found_by_the_operator():
    job = yaml.safe_load((MANIFESTS / "training" / "tfjob.yaml").read_text())
    pod = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "tensorflow"
    assert pod["securityContext"]["runAsNonRoot"] is True
    # Kubernetes refuses an image whose user is a name where none is given by number.
    user = re.findall(r"^USER (\d+):\d+$", (ROOT / "kubeflow" / "Dockerfile").read_text(), re.MULTILINE)
    assert user == [str(pod["securityContext"]["runAsUser"])]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == LOCKED_DOWN
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}
    assert {"requests", "limits"} <= container["resources"].keys()
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": pod}, VERSIONS[-1], strict=True
    )


def test_the_role_of_a_training_allows_what_is_called_and_no_more():
    role, binding = yaml.safe_load_all((MANIFESTS / "training" / "role.yaml").read_text())
    for document in (role, binding):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (rule,) = role["rules"]
    assert rule["apiGroups"] == [GROUP]
    assert set(rule["resources"]) == {KIND, f"{KIND}/status"}
    assert set(rule["verbs"]) == {"create", "get", "delete"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
