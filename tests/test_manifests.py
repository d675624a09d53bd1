"""What a cluster is given: valid by Kubernetes' schemas, locked down, and served with the flags of either server."""

import copy
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from components.trainer.workers import GROUP, KIND
from serving.model_server import options

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "kubeflow" / "manifests"
VERSIONS = ("1.28", "1.31", kubernetes_validate.latest_version().rpartition(".")[0])
OVERLAYS = ("minikube", "cloud")


def kustomization(folder: Path) -> dict:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def documents(folder: Path) -> list[dict]:
    """The resources of a kustomization's folder and of those it builds on, but for generated ones."""
    found = []
    for name in kustomization(folder).get("resources", []):
        path = folder / name
        assert path.exists(), f"{folder}: no {name}"
        found += documents(path) if path.is_dir() else [*yaml.safe_load_all(path.read_text())]
    return found


def patched(overlay: str) -> list[dict]:
    """What an overlay makes of the base: JSON patches of `add` and `replace`."""
    folder = MANIFESTS / "overlays" / overlay
    found = copy.deepcopy(documents(folder))
    for patch in kustomization(folder)["patches"]:
        (target,) = [
            d for d in found if (d["kind"], d["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])
        ]
        for step in yaml.safe_load(patch["patch"]):
            *parents, last = [int(p) if p.isdigit() else p for p in step["path"].strip("/").split("/")]
            place = target
            for part in parents:
                place = place[part]
            assert step["op"] == "add" or last in place, f"{overlay}: nothing to replace at {step['path']}"
            place[last] = step["value"]
    return found


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
    assert len(found) == 2
    for pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert container["readinessProbe"]


def serving() -> tuple[dict, dict]:
    return next((p, c) for p, c in containers(documents(MANIFESTS / "base")) if c["name"] == "serving")


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
    (deployment,) = [d for d in documents(MANIFESTS / "base") if d["kind"] == "Deployment"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    monitoring = (ROOT / "serving" / "configs" / "monitoring.config").read_text()
    assert f'path: "{annotations["prometheus.io/path"]}"' in monitoring


def test_nothing_reaches_a_pod_that_no_policy_names():
    policies = {d["metadata"]["name"]: d["spec"] for d in documents(MANIFESTS / "base") if d["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name in ("serving", "queues"):
        (rule,) = policies[name]["ingress"]
        assert all("podSelector" in peer for peer in rule["from"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_overlay(overlay):
    kubectl = shutil.which("kubectl") or shutil.which("kustomize")
    if kubectl is None:
        pytest.skip("neither kubectl nor kustomize is on the path: install one to build the overlays")
    command = [kubectl, "kustomize" if kubectl.endswith("kubectl") else "build"]
    done = subprocess.run([*command, str(MANIFESTS / "overlays" / overlay)], capture_output=True, text=True, check=True)
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert "ConfigMap" in {document["kind"] for document in built}


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
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
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
