"""What a local run is known by: other weights under the same name are other inputs."""

from pathlib import Path

from pipeline import config as configs
from pipeline import training_pipeline
from pipeline.local_runner import _named_files
from transform import contract as contracts


def test_files_that_settings_name_are_known_by_what_is_in_them(tmp_path: Path):
    checkpoint, weights = tmp_path / "model.ckpt", tmp_path / "vgg16.h5"
    settings = {"visual": "i3d", "rgb_checkpoint": str(checkpoint), "scene": {"vgg16_weights": str(weights)}}
    known = [_named_files(settings)]
    for path in (weights, Path(f"{checkpoint}.index"), Path(f"{checkpoint}.data-00000-of-00001")):
        path.write_bytes(b"first")
        known.append(_named_files(settings))
        path.write_bytes(b"other")
        known.append(_named_files(settings))
    assert known[0] == ""
    assert len(set(known)) == len(known)
    assert _named_files(settings) == known[-1]
    assert _named_files({"visual": "conv3d", "width": 16, "scene": None}) == ""


def test_other_weights_are_another_input_of_the_trainer():
    settings = configs.load("movielens")

    def trainer(weights: str):
        at = training_pipeline.Locations("w", "f", "/root", "/models", weights={"ranker": weights})
        nodes = training_pipeline.components(settings, contracts.load("movielens"), at, {})
        return next(node for node in nodes if node.id == "Trainer").exec_properties["custom_config"]

    assert trainer("a") == trainer("a") != trainer("b")
