"""TensorFlow Serving's own configuration files are taken as they are; a bad one is one clear error."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.configuration import (
    All,
    BatchingParameters,
    Latest,
    ModelSource,
    Monitoring,
    Specific,
    read_batching,
    read_models_config,
    read_monitoring,
    read_ssl,
    sources_of,
)
from transform.contract import ContractError

CONFIGS = Path(__file__).parents[2] / "serving" / "configs"
PEM = "-----BEGIN CERTIFICATE-----\\nAA==\\n-----END CERTIFICATE-----\\n"


def written(folder: Path, text: str) -> str:
    (folder / "given.config").write_text(text)
    return str(folder / "given.config")


def models(text: str) -> tuple[ModelSource, ...]:
    config = text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())
    return sources_of(config)


def model(more: str = "", name: str = "m", path: str = "/models/m", platform: str = "tensorflow") -> str:
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "{platform}" {more} }}'


def test_the_shipped_configs_are_read_and_ask_for_what_they_say():
    assert read_models_config(str(CONFIGS / "models.config")) == (
        ModelSource("feed", "/models/feed", Latest(1), {}),
        ModelSource("ranker", "/models/ranker", Latest(1), {}),
    )
    assert read_batching(str(CONFIGS / "batching.config")) == BatchingParameters(1024, 1000, 100, 2)
    assert read_monitoring(str(CONFIGS / "monitoring.config")) == Monitoring(True, "/monitoring/prometheus/metrics")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", Latest(1)),
        ("model_version_policy { latest {} }", Latest(1)),  # 0 is 1, as TensorFlow Serving has it
        ("model_version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("model_version_policy { all {} }", All()),
        ("model_version_policy { specific { versions: 7 versions: 2 } }", Specific((2, 7))),
    ],
)
def test_policies_are_those_of_the_file(policy, expected):
    assert models(model(policy))[0].policy == expected


def test_several_models_have_labels_and_paths_of_their_own():
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    first, second = models(model(labels) + model(name="n", path="s3://bucket/n/"))
    assert dict(first.labels) == {"stable": 1, "canary": 2}
    assert (second.base_path, dict(second.labels)) == ("s3://bucket/n", {})


def test_the_deprecated_model_type_is_still_understood():
    assert models('config { name: "m" base_path: "/m" model_type: TENSORFLOW }')[0].name == "m"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model() + model(path="/other"), "Illegal to list model m multiple times in config list"),
        (model(platform="caffe"), "Model m requests unsupported platform caffe"),
        (model(platform=""), "Illegal setting neither ModelServerConfig::model_type"),
        (model("model_type: TENSORFLOW"), "Illegal setting both ModelServerConfig::model_type"),
        (model(path=""), r"Expected model m to have an absolute path or URI; got base_path\(\)=$"),
        (model(path="models/m"), r"absolute path or URI; got base_path\(\)=models/m"),
        (model(path="/models/../../etc"), "base_path must not climb with '..'"),
        (model(name=""), "a model's name is part of its URL"),
        (model(name="a/../b"), "a model's name is part of its URL"),
        (model("model_version_policy { specific {} }"), "serves nothing; list versions"),
        (
            model('model_version_policy { specific { versions: 1 } } version_labels { key: "canary" value: 2 }'),
            "label 'canary' points at version 2, which model_version_policy does not serve",
        ),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(config, message):
    with pytest.raises(ContractError, match=message):
        models(config)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_models_config, "model_config_list {\n  config {\n    nmae: 'm'\n  }\n}\n", r"line 3.*nmae"),
        (read_models_config, "model_config_list {", "line 1: expected a tensorflow.serving.ModelServerConfig"),
        (read_models_config, "", "given.config: expected model_config_list"),
        (read_batching, "max_batch_size: 3", "line 1"),
        (read_batching, "max_batch_size { value: 0 }", "expected max_batch_size of 1 to 2147483647, got 0"),
        (read_batching, "batch_timeout_micros { value: -1 }", "expected batch_timeout_micros of 0"),
        (read_batching, "pad_variable_length_inputs: true", "not supported here"),
        (read_batching, "max_batch_size { value: 8 } allowed_batch_sizes: [8, 4]", r"must ascend .* got \[8, 4\]"),
        (read_batching, "max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]", r"end with max_batch_size \(8\)"),
        (read_monitoring, "prometheus_config { path: 'metrics' }", "begin with '/', got 'metrics'"),
        (read_ssl, "server_key: 'key.pem' server_cert: 'cert.pem'", "expected server_key as PEM text"),
        (read_ssl, f"server_key: '{PEM}'", "expected server_cert as PEM text"),
    ],
)
def test_a_bad_file_is_one_error_that_says_where(tmp_path, read, text, message):
    with pytest.raises(ContractError, match=message) as caught:
        read(written(tmp_path, text))
    assert "given.config" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_models_config, read_batching, read_monitoring, read_ssl])
def test_a_file_that_is_not_there_or_no_text_is_one_error(tmp_path, read):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent", tmp_path / "binary"):
        with pytest.raises(ContractError, match=r"cannot read .*check the path"):
            read(str(path))


def test_keys_are_read_and_never_shown(tmp_path):
    tls = read_ssl(
        written(tmp_path, f"server_key: '{PEM}' server_cert: '{PEM}' client_verify: true custom_ca: '{PEM}'")
    )
    assert (tls.server_key, tls.client_verify) == (PEM.replace("\\n", "\n"), True)
    assert "server_key" not in repr(tls)
    with pytest.raises(ContractError) as caught:
        read_ssl(written(tmp_path, "server_key: SECRET"))
    assert "SECRET" not in str(caught.value)


def test_defaults_of_batching_are_those_of_tensorflow_serving(tmp_path):
    given = read_batching(written(tmp_path, "thread_pool_name { value: 'pool' } num_batch_threads { value: 3 }"))
    assert given == BatchingParameters(1000, 0, 10, 3, ())
