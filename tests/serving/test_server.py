"""The server as a whole: what its options serve, and what it follows while it runs."""

import shutil
import socket
import time
import urllib.request

import pytest

from serving.client import Client, InvalidRequest, ModelNotFound
from serving.model_server.options import Options
from serving.model_server.server import Server
from transform.contract import ContractError

FREE = {"port": 0, "rest_api_port": 0}


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6 = _has_ipv6()


def within(seconds, holds):
    """Whether it holds in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not holds():
        time.sleep(0.05)
    return holds()


def versions(client, model):
    try:
        return [status.version for status in client.status(model) if status.state == "AVAILABLE"]
    except ModelNotFound:
        return []


def config(folder, **labels) -> str:
    shown = " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())
    return (
        f'model_config_list {{ config {{ name: "scaler" base_path: "{folder}" model_platform: "tensorflow" '
        f"model_version_policy {{ all {{}} }} {shown} }} }}"
    )


def test_one_model_is_served_from_its_base_path_under_its_name(saved):
    with Server(Options(model_base_path=str(saved / "scaler"), **FREE)) as server, Client(server.target) as client:
        assert versions(client, "default") == [2]
    options = Options(model_base_path=str(saved / "scaler"), model_name="half", **FREE)
    with Server(options) as server, Client(server.target) as client:
        assert (versions(client, "half"), versions(client, "default")) == ([2], [])


@pytest.mark.skipif(not IPV6, reason="this machine has no IPv6 loopback address")
def test_an_ipv6_address_is_listened_on(saved):
    with Server(Options(models=str(saved), host="::1", **FREE)) as server, Client(server.target) as client:
        assert server.target == f"[::1]:{server.port}"
        assert versions(client, "scaler") == [2]
        with urllib.request.urlopen(f"http://[::1]:{server.rest_port}/readyz") as response:
            assert response.status == 200


def test_a_base_path_that_appears_later_is_served_then(saved, tmp_path):
    options = Options(model_base_path=str(tmp_path / "late"), file_system_poll_wait_seconds=0.1, **FREE)
    with Server(options) as server, Client(server.target) as client:
        assert versions(client, "default") == []
        shutil.copytree(saved / "scaler", tmp_path / "late")
        assert within(20, lambda: versions(client, "default") == [2])


def test_a_changed_configuration_is_followed_and_a_broken_one_is_not(saved, tmp_path, caplog):
    file = tmp_path / "models.config"
    file.write_text(config(saved / "scaler", stable=1))
    options = Options(model_config_file=str(file), model_config_file_poll_wait_seconds=0.2, **FREE)
    with Server(options) as server, Client(server.target) as client:

        def ask(label):
            try:
                return client.predict_examples("scaler", [b""], version_label=label)["score"].tolist()
            except InvalidRequest as error:
                return str(error)

        assert ask("stable") == [2.0]
        assert "Unrecognized servable version label: canary" in ask("canary")
        file.write_text(config(saved / "scaler", stable=1, canary=2))
        assert within(10, lambda: ask("canary") == [3.0])
        file.write_text("model_config_list {")
        assert within(10, lambda: "the configuration is not taken over" in caplog.text)
        assert (ask("stable"), ask("canary")) == ([2.0], [3.0])


@pytest.mark.parametrize(
    "flag", ["model_config_file", "batching_parameters_file", "monitoring_config_file", "ssl_config_file"]
)
def test_a_configuration_file_that_is_missing_is_named(saved, flag):
    given = {"models": str(saved), "enable_batching": True, flag: "absent.config"}
    if flag == "model_config_file":
        given["models"] = ""
    with pytest.raises(ContractError, match=r"cannot read absent\.config"):
        Server(Options(**given, **FREE))


def test_a_taken_port_is_named_with_its_flag(saved):
    with Server(Options(models=str(saved), **FREE)) as server:
        with pytest.raises(ContractError, match=f"{server.port}: it is in use or not ours; choose another with --port"):
            Server(Options(models=str(saved), port=server.port, rest_api_port=0))
        with pytest.raises(ContractError, match=f"{server.rest_port}: it is in use .* with --rest_api_port"):
            Server(Options(models=str(saved), port=0, rest_api_port=server.rest_port))
