"""The command line: TensorFlow Serving's flags, read into one object."""

import dataclasses

import pytest

from serving.model_server import options
from serving.model_server.options import Options, parse
from transform.contract import ContractError

SERVINGS_OWN = """--port=9000 --rest_api_port=9001 --model_config_file=/configs/models.config
--model_config_file_poll_wait_seconds=60 --enable_batching --batching_parameters_file=/configs/batching.config
--monitoring_config_file=/configs/monitoring.config --ssl_config_file=/configs/ssl.config
--file_system_poll_wait_seconds=5 --rest_api_timeout_in_ms=5000 --grpc_max_threads=8"""


def test_a_command_line_of_tensorflow_serving_is_read():
    assert parse(SERVINGS_OWN.split()) == Options(
        port=9000,
        rest_api_port=9001,
        model_config_file="/configs/models.config",
        model_config_file_poll_wait_seconds=60.0,
        enable_batching=True,
        batching_parameters_file="/configs/batching.config",
        monitoring_config_file="/configs/monitoring.config",
        ssl_config_file="/configs/ssl.config",
        file_system_poll_wait_seconds=5.0,
        rest_api_timeout_in_ms=5000,
        grpc_max_threads=8,
    )


@pytest.mark.parametrize(
    ("flags", "enabled"),
    [
        (["--enable_batching"], True),
        (["--enable_batching=true"], True),
        (["--enable_batching", "--port=1"], True),
        (["--enable_batching=false"], False),
        ([], False),
    ],
)
def test_a_boolean_flag_stands_alone_or_has_a_value(flags, enabled):
    assert parse(["--models", "m", *flags]).enable_batching is enabled


def test_the_default_folder_is_looked_for_only_where_no_model_is_named():
    assert parse([], default_models=lambda: "newest").models == "newest"
    named = parse(["--model_base_path", "/m"], default_models=lambda: pytest.fail("nobody asked"))
    assert (named.models, named.model_name) == ("", "default")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected one of --model_config_file, --model_base_path and --models, got none of them"),
        ({"models": "a", "model_base_path": "b"}, "got --models and --model_base_path"),
        ({"models": "a", "batching_parameters_file": "b"}, "--batching_parameters_file has no effect alone"),
        ({"models": "a", "port": 80, "rest_api_port": 80}, "--rest_api_port cannot be the same as --port, got 80"),
        ({"models": "a", "port": 65536}, "expected --port of 0 to 65535, got 65536"),
        ({"models": "a", "grpc_max_threads": 0}, "expected --grpc_max_threads of 1 to 4096, got 0"),
        ({"models": "a", "file_system_poll_wait_seconds": -1.0}, "expected --file_system_poll_wait_seconds of 0 to"),
    ],
)
def test_contradictions_are_refused_with_the_flags_at_fault(given, message):
    with pytest.raises(ContractError) as raised:
        Options(**given)
    assert message in str(raised.value)


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as raised:
        parse(["--models=m", "--model_conf=x"])
    assert raised.value.code == 2
    assert "--model_conf" in capsys.readouterr().err


def test_help_says_what_every_flag_does(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert [f"--{each.name} " in shown for each in dataclasses.fields(Options)].count(False) == 0


def test_the_token_comes_from_a_file_or_the_environment_and_never_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.delenv(options.TOKEN_VARIABLE, raising=False)
    assert Options(models="m").token() == ""
    monkeypatch.setenv(options.TOKEN_VARIABLE, "from-environment")
    assert Options(models="m").token() == "from-environment"
    (tmp_path / "token").write_text("from-file\n")
    assert Options(models="m", token_file=str(tmp_path / "token")).token() == "from-file"
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ContractError, match="is empty: expected the bearer token"):
        Options(models="m", token_file=str(tmp_path / "token")).token()
    with pytest.raises(ContractError, match="cannot read the token"):
        Options(models="m", token_file=str(tmp_path / "absent")).token()
