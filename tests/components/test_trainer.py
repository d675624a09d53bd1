"""Trainer's executor tells run_fn where the raw examples are, beside all that TFX tells it."""

from pathlib import Path
from typing import Any

from tfx.proto import trainer_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts
from tfx.utils import json_utils, proto_utils

from components.trainer.component import Trainer
from components.trainer.executor import Executor

SEEN: list[Any] = []


def run_fn(fn_args: Any) -> None:
    SEEN.append(fn_args)
    Path(fn_args.serving_model_dir).mkdir(parents=True)  # TFX asks for that much


def examples(folder: Any) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(["train", "valid"])
    return artifact


def test_run_fn_is_told_the_raw_valid_files_and_all_that_tfx_tells(tmp_path):
    model, model_run = standard_artifacts.Model(), standard_artifacts.ModelRun()
    model.uri, model_run.uri = str(tmp_path / "model"), str(tmp_path / "run")
    for folder in ("raw", "transformed"):
        for split in ("train", "valid"):
            (tmp_path / folder / f"Split-{split}").mkdir(parents=True)
    Executor().Do(
        {"examples": [examples(tmp_path / "transformed")], "raw_examples": [examples(tmp_path / "raw")]},
        {"model": [model], "model_run": [model_run]},
        {
            "run_fn": f"{__name__}.run_fn",
            "train_args": proto_utils.proto_to_json(trainer_pb2.TrainArgs(splits=["train"])),
            "eval_args": proto_utils.proto_to_json(trainer_pb2.EvalArgs(splits=["valid"])),
            "custom_config": json_utils.dumps({"contract": "{}"}),
        },
    )
    (fn_args,) = SEEN
    assert fn_args.raw_files == [str(tmp_path / "raw" / "Split-valid" / "*")]
    assert fn_args.eval_files == [str(tmp_path / "transformed" / "Split-valid" / "*")]
    assert fn_args.custom_config == {"contract": "{}"}


def test_the_node_takes_raw_examples_beside_tfx_inputs_and_gives_a_model():
    channels = {
        name: channel_utils.as_channel([kind()])
        for name, kind in (
            ("examples", standard_artifacts.Examples),
            ("raw_examples", standard_artifacts.Examples),
            ("transform_graph", standard_artifacts.TransformGraph),
            ("schema", standard_artifacts.Schema),
        )
    }
    node = Trainer(run_fn="a.b", custom_config={}, **channels)
    assert set(node.inputs) == set(channels)
    assert set(node.outputs) == {"model", "model_run"}
    assert node.exec_properties["run_fn"] == "a.b"
