"""Trainer's executor tells run_fn where the raw examples are, beside all that TFX tells it."""

from pathlib import Path
from typing import Any

from tfx.proto import trainer_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts
from tfx.utils import json_utils, path_utils, proto_utils

from components.content_embedder import made_by
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


def train(tmp_path: Path) -> tuple[Any, str]:
    """What run_fn was told, and the folder of the SavedModel."""
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
    return SEEN.pop(), path_utils.serving_model_dir(model.uri)


def test_run_fn_is_told_the_raw_valid_files_and_all_that_tfx_tells(tmp_path):
    fn_args, _ = train(tmp_path)
    assert fn_args.raw_files == [str(tmp_path / "raw" / "Split-valid" / "*")]
    assert fn_args.eval_files == [str(tmp_path / "transformed" / "Split-valid" / "*")]
    assert fn_args.custom_config == {"contract": "{}"}


def test_a_model_tells_whose_content_vectors_it_learned_from(tmp_path):
    for folder in ("without", "with"):
        (tmp_path / folder / "raw").mkdir(parents=True)
    made_by.write(str(tmp_path / "with" / "raw"), "classifier 7")
    models = {folder: train(tmp_path / folder)[1] for folder in ("without", "with")}
    assert {folder: made_by.read_model(model) for folder, model in models.items()} == {
        "without": "",
        "with": "classifier 7",
    }
    for name in ("now 7", "now 8", "now none"):
        (tmp_path / name).mkdir()
        made_by.write(str(tmp_path / name), {"now 7": "classifier 7", "now 8": "classifier 8"}.get(name, ""))
    assert [made_by.differs(models["with"], str(tmp_path / f"now {n}")) for n in ("7", "8", "none")] == [
        False,
        True,
        True,
    ]
    assert not made_by.differs(models["without"], str(tmp_path / "now 8"))  # it reads none of them


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
