"""What a server is started with: one frozen object, and the command line it is read from.

The flags are TensorFlow Serving's (`tensorflow_model_server --help`), so that one command line starts either server;
those under "of this server" are ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from transform.contract import ContractError

TOKEN_VARIABLE = "SHORTLIST_TOKEN"

Choice: TypeAlias = str | int | float | bool


def _flag(default: Choice, text: str, ours: bool = False) -> Any:
    return field(default=default, metadata={"help": text, "ours": ours})


@dataclass(frozen=True)
class Options:
    """Every field is the flag of the same name; its help says what it does."""

    port: int = _flag(8500, "gRPC port; 0 takes a free one")
    rest_api_port: int = _flag(8501, "REST port; 0 takes a free one")
    rest_api_timeout_in_ms: int = _flag(30_000, "how long a REST request may take")
    grpc_max_threads: int = _flag(32, "gRPC requests answered at once; 16 times as many wait, further ones are refused")
    model_config_file: str = _flag("", "models to serve: a ModelServerConfig in text format")
    model_config_file_poll_wait_seconds: float = _flag(0.0, "how often to read that file again; 0: never")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "TensorFlow Serving needs it for labels in the configuration it starts with; here they always wait"
    )
    model_name: str = _flag("default", "name of the model at --model_base_path")
    model_base_path: str = _flag("", "folder of one model's versions")
    file_system_poll_wait_seconds: float = _flag(1.0, "how often to look for new versions; 0: never")
    enable_batching: bool = _flag(False, "join concurrent requests into batches")
    batching_parameters_file: str = _flag("", "how: BatchingParameters in text format")
    monitoring_config_file: str = _flag("", "where Prometheus reads metrics: a MonitoringConfig in text format")
    ssl_config_file: str = _flag("", "keys and certificates of both ports: an SSLConfig in text format")
    models: str = _flag("", "folder of models, <name>/<version>/saved_model.pb", ours=True)
    latest: int = _flag(1, "how many of the newest versions of each model in --models to serve", ours=True)
    max_request_rows: int = _flag(10_000, "how many rows a request may have, batching or not", ours=True)
    host: str = _flag("127.0.0.1", "address to listen on", ours=True)
    token_file: str = _flag("", f"file of the bearer token callers must show; or set {TOKEN_VARIABLE}", ours=True)

    def __post_init__(self) -> None:
        given = [name for name in ("models", "model_base_path", "model_config_file") if getattr(self, name)]
        if len(given) != 1:
            got = " and ".join(f"--{name}" for name in given) or "none of them"
            raise ContractError(f"expected one of --model_config_file, --model_base_path and --models, got {got}")
        if self.batching_parameters_file and not self.enable_batching:
            raise ContractError("--batching_parameters_file has no effect alone: add --enable_batching")
        if self.port and self.port == self.rest_api_port:
            raise ContractError(f"--rest_api_port cannot be the same as --port, got {self.port} for both")
        for name, least, most in (
            ("port", 0, 65535),
            ("rest_api_port", 0, 65535),
            ("rest_api_timeout_in_ms", 1, 2**31),
            ("grpc_max_threads", 1, 4096),
            ("latest", 1, 2**31),
            ("max_request_rows", 1, 2**31),
            ("file_system_poll_wait_seconds", 0, 2**31),
            ("model_config_file_poll_wait_seconds", 0, 2**31),
        ):
            if not least <= getattr(self, name) <= most:
                raise ContractError(f"expected --{name} of {least} to {most}, got {getattr(self, name)}")

    def token(self) -> str:
        """The bearer token callers must show; empty: anybody may call.

        Raises:
            ContractError: The file cannot be read or is empty.
        """
        if not self.token_file:
            return os.environ.get(TOKEN_VARIABLE, "").strip()
        try:
            with open(self.token_file, encoding="ascii") as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"cannot read the token in {self.token_file}: {error}") from error
        if not token:
            raise ContractError(f"{self.token_file} is empty: expected the bearer token that callers must show")
        return token


def parse(
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    default_models: Callable[[], str] = str,
) -> Options:
    """Reads a command line; what `--help` and an unknown flag do is argparse's.

    Args:
        arguments: As in `sys.argv[1:]`, which is the default. `--flag=value` and `--flag value`; a boolean flag may
            stand alone.
        program: How the command is called, for its help.
        default_models: Gives `--models` where the command line names no model.

    Raises:
        ContractError: The flags contradict each other or are out of range.
    """
    parser = argparse.ArgumentParser(program, description="Serves models until terminated.", allow_abbrev=False)
    serving, ours = parser.add_argument_group("as in TensorFlow Serving"), parser.add_argument_group("of this server")
    for each in dataclasses.fields(Options):
        extra: dict[str, Any] = {"type": type(each.default)}
        if isinstance(each.default, bool):
            extra = {"type": _boolean, "nargs": "?", "const": True}
        group = ours if each.metadata["ours"] else serving
        shown = f"{each.metadata['help']} (default: {each.default!r})"
        group.add_argument(f"--{each.name}", default=each.default, metavar="...", help=shown, **extra)
    given = parser.parse_args(arguments)
    if not (given.models or given.model_base_path or given.model_config_file):
        given.models = default_models()
    return Options(**vars(given))


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")
