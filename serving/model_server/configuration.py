"""TensorFlow Serving's own configuration files: text protos, read and checked before anything is served.

Messages that its Python package lacks are declared here, so that its files are parsed by their own names.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from transform.contract import ContractError

_LARGEST_INT = 2**31 - 1
_ABSOLUTE = re.compile(r"/|[a-zA-Z][a-zA-Z0-9+.-]*://")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latest:
    """The newest versions that load."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Every version there is."""


@dataclass(frozen=True)
class Specific:
    """These versions and no others."""

    versions: tuple[int, ...]


@dataclass(frozen=True)
class ModelSource:
    """One model of a configuration.

    Attributes:
        name: What requests call it.
        base_path: Folder of its versions.
        policy: Which of them to serve.
        labels: Version by label.
    """

    name: str
    base_path: str
    policy: Latest | All | Specific = Latest()
    labels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class BatchingParameters:
    """How concurrent requests are joined; what is left out has TensorFlow Serving's default.

    Attributes:
        max_batch_size: Rows of a batch at most.
        batch_timeout_micros: How long a batch that is not full waits for more.
        max_enqueued_batches: How many batches may wait for a thread.
        num_batch_threads: How many batches are computed at once.
        allowed_batch_sizes: Sizes a batch is padded to, ascending; empty for any.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Monitoring:
    """Whether Prometheus may read metrics, and at which path of the REST port."""

    enable: bool = False
    path: str = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class Tls:
    """Keys and certificates of the gRPC port, PEM text.

    Attributes:
        server_key: Private key.
        server_cert: Certificate, or chain of certificates.
        custom_ca: Who signs clients' certificates; may be empty where they are not asked for.
        client_verify: Whether a client must show a certificate.
    """

    server_key: str = field(repr=False)
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False


def _declare(**messages: Mapping[str, str]) -> dict[str, Callable[[], Any]]:
    """Message classes from {message: {field: type}}; a type is of protobuf, or of a message before it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving_configs.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    scalars = descriptor_pb2.FieldDescriptorProto.Type
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (key, kind) in enumerate(fields.items(), 1):
            repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            declared = message.field.add(name=key, number=number, label=3 if repeated else 1)
            if kind[0].isupper():
                declared.type = scalars.Value("TYPE_MESSAGE")
                package = "tensorflow.serving" if kind in messages else "google.protobuf"
                declared.type_name = f".{package}.{kind}"
            else:
                declared.type = scalars.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # our own: a later package may declare the same names
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    types = {name: pool.FindMessageTypeByName(f"tensorflow.serving.{name}") for name in messages}
    return {name: message_factory.MessageFactory(pool).GetPrototype(kind) for name, kind in types.items()}


_MESSAGES = _declare(
    BatchingParameters={
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
    },
    PrometheusConfig={"enable": "bool", "path": "string"},
    MonitoringConfig={"prometheus_config": "PrometheusConfig"},
    SSLConfig={"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
)


def models_config(path: str) -> Any:
    """The tensorflow.serving.ModelServerConfig in a `--model_config_file`, whatever it says.

    Raises:
        ContractError: The file cannot be read, or is none.
    """
    return _parse(path, model_server_config_pb2.ModelServerConfig())


def read_models_config(path: str) -> tuple[ModelSource, ...]:
    """The models of a `--model_config_file`.

    Raises:
        ContractError: The file cannot be read, is no ModelServerConfig, or what it says cannot be served.
    """
    config = models_config(path)
    try:
        return sources_of(config)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


def sources_of(config: Any) -> tuple[ModelSource, ...]:
    """The models of a tensorflow.serving.ModelServerConfig.

    Raises:
        ContractError: What it says cannot be served; in TensorFlow Serving's words where it has some.
    """
    if config.WhichOneof("config") != "model_config_list" or not config.model_config_list.config:
        raise ContractError("expected model_config_list with at least one config { name, base_path, model_platform }")
    sources: dict[str, ModelSource] = {}
    for model in config.model_config_list.config:
        if model.name in sources:
            raise ContractError(
                f"Illegal to list model {model.name} multiple times in config list: name each model once, "
                "with a model_version_policy for several versions"
            )
        sources[model.name] = _source(model)
    return tuple(sources.values())


def _source(model: Any) -> ModelSource:
    if not re.fullmatch(r"[^/:\s]+", model.name):
        raise ContractError(f"a model's name is part of its URL: expected no '/', ':' or blanks, got {model.name!r}")
    _check_platform(model)
    if not _ABSOLUTE.match(model.base_path):
        raise ContractError(
            f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        )
    if ".." in model.base_path.split("/"):
        raise ContractError(f"model {model.name}: base_path must not climb with '..', got {model.base_path}")
    if model.HasField("logging_config"):
        _logger.warning("model %s: logging_config is passed over, this server logs no requests", model.name)
    policy, labels = _policy(model), dict(model.version_labels)
    for label, version in labels.items():
        if not label or (isinstance(policy, Specific) and version not in policy.versions):
            raise ContractError(
                f"model {model.name}: label {label!r} points at version {version}, which model_version_policy does "
                "not serve; add the version there or point the label elsewhere"
            )
    return ModelSource(model.name, model.base_path.rstrip("/") or "/", policy, MappingProxyType(labels))


def _check_platform(model: Any) -> None:
    kind = model_server_config_pb2.ModelType.Name(model.model_type) if model.model_type else ""  # deprecated
    if kind and model.model_platform:
        raise ContractError(
            f"model {model.name}: Illegal setting both ModelServerConfig::model_type (deprecated) and "
            "ModelServerConfig::model_platform."
        )
    if not (platform := model.model_platform or kind.lower()):
        raise ContractError(
            f"model {model.name}: Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            'ModelServerConfig::model_platform: write model_platform: "tensorflow"'
        )
    if platform != "tensorflow":
        raise ContractError(f'Model {model.name} requests unsupported platform {platform}: only "tensorflow" is served')


def _policy(model: Any) -> Latest | All | Specific:
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return All()
    if choice == "specific":
        if not policy.specific.versions:
            raise ContractError(f"model {model.name}: specific {{}} serves nothing; list versions, as in versions: 1")
        return Specific(tuple(sorted(set(policy.specific.versions))))
    return Latest(max(policy.latest.num_versions, 1))


def read_batching(path: str) -> BatchingParameters:
    """The parameters of a `--batching_parameters_file`.

    Raises:
        ContractError: The file cannot be read, is no BatchingParameters, or a value is out of range.
    """
    given = _parse(path, _MESSAGES["BatchingParameters"]())
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    values = {name: getattr(given, name).value for name in numbers if given.HasField(name)}
    for name, value in values.items():
        least = 0 if name == "batch_timeout_micros" else 1
        if not least <= value <= _LARGEST_INT:
            raise ContractError(f"{path}: expected {name} of {least} to {_LARGEST_INT}, got {value}")
    if given.pad_variable_length_inputs:
        raise ContractError(f"{path}: pad_variable_length_inputs is not supported here; pad in the model, or leave it")
    parameters = BatchingParameters(**values, allowed_batch_sizes=tuple(given.allowed_batch_sizes))
    _check_sizes(path, parameters)
    return parameters


def _check_sizes(path: str, parameters: BatchingParameters) -> None:
    sizes: Sequence[int] = parameters.allowed_batch_sizes
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != parameters.max_batch_size):
        raise ContractError(
            f"{path}: allowed_batch_sizes must ascend and end with max_batch_size ({parameters.max_batch_size}), "
            f"got {list(sizes)}"
        )


def read_monitoring(path: str) -> Monitoring:
    """The setting of a `--monitoring_config_file`.

    Raises:
        ContractError: The file cannot be read, is no MonitoringConfig, or its path is none.
    """
    given = _parse(path, _MESSAGES["MonitoringConfig"]()).prometheus_config
    if given.path and not given.path.startswith("/"):
        raise ContractError(f"{path}: expected prometheus_config.path to begin with '/', got {given.path!r}")
    return Monitoring(given.enable, given.path or Monitoring.path)


def read_ssl(path: str) -> Tls:
    """Keys and certificates of an `--ssl_config_file`.

    Raises:
        ContractError: The file cannot be read, is no SSLConfig, or a key is missing. No key is ever quoted.
    """
    given = _parse(path, _MESSAGES["SSLConfig"](), secret=True)
    for name in ("server_key", "server_cert", "custom_ca"):
        text = getattr(given, name)
        if "-----BEGIN " not in text and (text or name != "custom_ca"):
            raise ContractError(f"{path}: expected {name} as PEM text (-----BEGIN ...), not the name of a file")
    if given.client_verify and not given.custom_ca:
        raise ContractError(f"{path}: client_verify needs custom_ca, the authority that signs clients' certificates")
    return Tls(given.server_key, given.server_cert, given.custom_ca, given.client_verify)


def _parse(path: str, message: Any, secret: bool = False) -> Any:
    kind = message.DESCRIPTOR.full_name
    try:
        with tf.io.gfile.GFile(path) as file:
            return text_format.Parse(file.read(), message)
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise ContractError(f"cannot read {path}: expected a {kind} as text; check the path ({error})") from None
    except text_format.ParseError as error:
        why = "cannot be read" if secret else str(error).partition(" : ")[2].replace("\n", " ") or str(error)
        raise ContractError(
            f"{path}, line {error.GetLine()}: expected a {kind} in text format: {why}; see serving/configs/"
        ) from None
