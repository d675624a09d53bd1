"""Which pictures may become a cover, what each looks like, and what is kept of those that cannot be read."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.frame_embedder import encoders, executor
from components.frame_embedder.artifact import FrameVectors
from components.frame_embedder.encoders import colours
from components.frame_embedder.executor import Executor, read_summary
from components.frame_embedder.settings import FrameSettings
from components.world import tables
from transform.contract import ContractError
from transform.frames import Frames, decode

RED, BLUE = (0, 0, 255), (255, 0, 0)


@pytest.fixture
def world(tmp_path) -> str:
    """v0 has a cover, v1 key frames beside it, v2 frames of its own (one broken, one lost), v3 nothing."""
    for name, colour in (("red", RED), ("blue", BLUE)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((40, 30, 3), colour, np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    rows = [{"video_id": f"v{i}", "cover_path": "red.png" if i < 2 else None, "frame_paths": None} for i in range(4)]
    rows[2]["frame_paths"] = ["broken.jpg", "blue.png", "lost.png", "red.png"]
    tables.write_table(str(tmp_path), "videos", pa.Table.from_pylist(rows))
    found = [("v1", 1, "blue.png", 2.5), ("v1", 0, "red.png", 0.5)]
    names = ("video_id", "frame_index", "path", "at_seconds")
    key_frames = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in found])
    tables.write_table(str(tmp_path), "key_frames", key_frames)
    return str(tmp_path)


def run(
    world: str, uri: str, with_clips: bool, encoder: str = "colours"
) -> tuple[FrameVectors, dict[str, tuple[list[str], np.ndarray]]]:
    made = FrameVectors()
    made.uri = uri
    clips = standard_artifacts.Examples()
    clips.set_int_custom_property("key_frames", 2)
    given = {"clips": [clips]} if with_clips else {}
    context = BaseBeamExecutor.Context(tmp_dir=uri, unique_id="1")
    properties = {"world": world, "settings_json": FrameSettings(encoder=encoder).model_dump_json()}
    Executor(context).Do(given, {"frames": [made]}, properties)
    frames = read(uri)
    by_video = zip(frames.ids, frames.paths, frames.vectors, strict=True)
    return made, {video: ([path for path in paths if path], vectors) for video, paths, vectors in by_video}


def read(uri: str) -> Frames:
    return decode(tf.data.TFRecordDataset(tf.io.gfile.glob(f"{uri}/frames/*"), "GZIP").as_numpy_iterator())


def test_key_frames_go_before_a_video_s_own_frames_and_those_before_its_cover(world, tmp_path):
    _, without = run(world, str(tmp_path / "1"), with_clips=False)
    own = ["broken.jpg", "blue.png", "lost.png", "red.png"]
    assert {v: paths for v, (paths, _) in without.items()} == {
        "v0": ["red.png"],
        "v1": ["red.png"],
        "v2": own,
        "v3": [],
    }
    _, found = run(world, str(tmp_path / "2"), with_clips=True)
    assert found["v1"][0] == ["red.png", "blue.png"]  # by their index
    frames = read(str(tmp_path / "2"))
    seconds = dict(zip(frames.ids, frames.seconds, strict=True))
    np.testing.assert_array_equal(seconds["v1"][:2], [0.5, 2.5])
    assert np.isnan(seconds["v0"]).all()


def test_a_picture_that_cannot_be_read_keeps_its_place_and_is_counted(world, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "BATCH", 2)  # several batches, one of them without any picture
    made, found = run(world, str(tmp_path / "1"), with_clips=False)
    red, blue = colours([np.full((8, 8, 3), colour, np.uint8) for colour in (RED, BLUE)])
    np.testing.assert_allclose(found["v2"][1], [0 * blue, blue, 0 * blue, red], atol=1e-5)
    np.testing.assert_allclose(found["v0"][1][0], red, atol=1e-5)
    np.testing.assert_array_equal(
        read(made.uri).mask.sum(axis=1), [{"v0": 1, "v1": 1, "v2": 2, "v3": 0}[v] for v in found]
    )
    looks = {r["video_id"]: r["look_vector"] for r in tables.read_table(made.uri, "looks").to_pylist()}
    np.testing.assert_allclose(looks["v2"], (red + blue) / 2, atol=1e-5)  # of what could be read
    assert (len(looks), looks["v3"]) == (4, None)
    assert read_summary(made.uri) == {"videos": 4, "pictures": 6, "bad_pictures": 2}
    assert made.get_int_custom_property("bad_pictures") == 2


def with_vectors(world: str, vectors: list[list[float] | None]) -> None:
    rows = tables.read_table(world, "videos")
    tables.write_table(world, "videos", rows.append_column("frame_vectors", pa.array(vectors, tables.FLOATS)))


def test_vectors_that_come_with_the_videos_are_taken_as_they_are(world, tmp_path):
    # v0 has one picture, v1 one without a vector, v2 four, one of whose vectors is no number, v3 a vector alone.
    with_vectors(world, [[1, 2], None, [3, 4, 5, 6, float("nan"), 8, 9, 10], [11, 12]])
    made, found = run(world, str(tmp_path / "1"), with_clips=True, encoder="given")
    np.testing.assert_array_equal(found["v0"][1][0], [1, 2])
    np.testing.assert_array_equal(found["v2"][1], [[3, 4], [5, 6], [0, 0], [9, 10]])
    np.testing.assert_array_equal(found["v3"][1][0], [11, 12])
    assert {video: paths for video, (paths, _) in found.items() if video != "v2"} == {
        "v0": ["red.png"],
        "v1": ["red.png"],  # not its key frames, of which no vector can be
        "v3": [],
    }
    assert found["v2"][0] == ["broken.jpg", "blue.png", "lost.png", "red.png"]  # which nobody opened
    frames = read(made.uri)
    assert dict(zip(frames.ids, frames.mask.sum(axis=1), strict=True)) == {"v0": 1, "v1": 0, "v2": 3, "v3": 1}
    assert read_summary(made.uri) == {"videos": 4, "pictures": 7, "bad_pictures": 2}


@pytest.mark.parametrize(
    ("vectors", "video", "usual"),
    [
        ([[1, 2], [1, 2], [1, 2, 3], None], "v2", 2),  # three values cannot be four vectors
        ([[1, 2], [1, 2], [1, 2, 3, 4], None], "v2", 2),  # four could, but of another width
        ([[1], [1, 2], [1] * 8, [1, 2]], "v0", 2),
    ],
)
def test_vectors_that_do_not_fit_the_pictures_are_refused_before_anything_runs(world, vectors, video, usual):
    with_vectors(world, vectors)
    with pytest.raises(ContractError, match=rf"frame_vectors of '{video}' to hold {usual} values, as most have"):
        executor.read_pictures(world, with_key_frames=False, with_vectors=True)


def test_without_the_column_the_encoder_is_refused(world, tmp_path):
    with pytest.raises(ContractError, match="encoder `given` need the column frame_vectors, got none"):
        run(world, str(tmp_path / "1"), with_clips=False, encoder="given")


def test_colours_tell_hue_brightness_and_direction_by_quarter():
    # A quarter has 12 hues, mean and deviation of saturation and of brightness, and 6 directions of edges.
    pure = colours([np.full((10, 10, 3), RED, np.uint8)])[0].reshape(4, 22)
    np.testing.assert_allclose(
        pure[:, [0, 11]], 0.5, atol=1e-6
    )  # red is hue 0, between the first and the last of 12 parts
    np.testing.assert_allclose(pure[:, 12:16], np.tile([1, 0, 1, 0], (4, 1)), atol=1e-6)
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255  # an edge from top to bottom; white has no hue
    left, right, *_ = colours([half])[0].reshape(4, 22)
    assert (left[14], right[14]) == (0, 1)
    edges = left[16:] + right[16:]
    assert edges[0] == pytest.approx(edges[5])  # its gradient points to the right, direction 0
    assert (edges[1:5] == 0).all()
    turned = colours([half.transpose(1, 0, 2)])[0].reshape(4, 22)
    edges = turned[0, 16:] + turned[2, 16:]
    assert edges[2] == pytest.approx(edges[3])  # a quarter turn
    assert (edges[[0, 1, 4, 5]] == 0).all()


def test_settings_and_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder vgg19 needs `weights: FILE`"):
        FrameSettings(encoder="vgg19")
    with pytest.raises(ValueError, match="and no other takes any"):
        FrameSettings(weights="x.h5")
    with pytest.raises(ContractError, match="expected the weights of VGG19, got no file"):
        encoders._load_weights(None, str(tmp_path / "none.h5"))


@pytest.mark.slow
def test_vgg19_gives_its_last_hidden_layer(tmp_path):
    from tf_keras.applications import VGG19

    network = VGG19(weights=None)
    network.save_weights(str(tmp_path / "vgg.h5"))
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    encode = encoders.encoder(FrameSettings(encoder="vgg19", weights=str(tmp_path / "vgg.h5")))
    got = encode([picture])
    assert got.shape == (1, 4096)
    kernel, bias = network.get_layer("predictions").get_weights()
    scores = got[0] @ kernel + bias
    expected = network(picture[np.newaxis].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32))
    np.testing.assert_allclose(np.exp(scores) / np.exp(scores).sum(), expected[0], rtol=1e-3)
    (tmp_path / "other.h5").write_bytes(b"no weights")
    with pytest.raises(ContractError, match="expected the weights of VGG19 with its top layers"):
        encoders._load_weights(network, str(tmp_path / "other.h5"))
