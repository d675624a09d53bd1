"""Networks over frames: shapes, who sees time, I3D's published variables, scenes and behaviours by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.keras_version import keras
from trainer.visual.c2d import c2d
from trainer.visual.conv3d import conv3d
from trainer.visual.i3d import CHANNELS, checkpoint_variables, i3d, load_checkpoint
from trainer.visual.scene import Scene, joint_feature, scene_probabilities
from trainer.visual.two_stream import behaviour_scores
from transform.contract import ContractError


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(build: Any, *arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    clip = keras.Input([8, 12, 12, 3])
    return keras.Model(clip, build(clip, (4, 6), *arguments))


def test_conv3d_sees_the_order_of_frames_and_c2d_does_not():
    clip = draw(1, 2, 8, 12, 12, 3)
    flat, deep = network(c2d), network(conv3d)
    np.testing.assert_allclose(flat(clip[:, ::-1]), flat(clip)[:, ::-1], rtol=1e-4, atol=1e-6)
    assert deep(clip).shape == (2, 4, 6)
    assert flat(clip).shape == (2, 8, 6)
    mean = tf.reduce_mean(deep(clip), axis=1) - tf.reduce_mean(deep(clip[:, ::-1]), axis=1)
    assert np.abs(mean).max() > 1e-4


def test_normalised_by_clip_a_clip_does_not_bear_on_others_in_training():
    model, clip = network(conv3d, "clip"), draw(1, 2, 8, 12, 12, 3)
    alone, beside = model(clip[:1], training=True), model(clip, training=True)
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-3, atol=1e-5)
    by_batch = network(conv3d)
    assert np.abs(by_batch(clip[:1], training=True)[0] - by_batch(clip, training=True)[0]).max() > 1e-3


@pytest.fixture(scope="module")
def rgb() -> keras.Model:
    return i3d("RGB", 16, 32)


@pytest.mark.parametrize("stream", ["RGB", "Flow"])
def test_every_variable_of_the_published_checkpoint_is_one_of_ours_and_the_reverse(stream: Any, shared_data: Path):
    path = shared_data / "i3d" / f"{stream.lower()}_imagenet.model.ckpt"
    published = dict(tf.train.list_variables(str(path)))
    model = i3d(stream, 16, 32, classes=400)
    ours = {name: variable.shape.as_list() for name, variable in checkpoint_variables(model).items()}
    assert ours == {name: list(shape) for name, shape in published.items()}
    assert len(ours) == len(model.weights) == 230  # 57 convolutions of four variables, and the head's two


def test_without_its_head_i3d_lacks_the_heads_two_variables_only(rgb: keras.Model):
    whole = checkpoint_variables(i3d("RGB", 16, 32, classes=5))
    less = checkpoint_variables(rgb)
    assert sorted(whole.keys() - less.keys()) == [f"RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/{x}" for x in "bw"]


def test_i3d_gives_a_vector_for_every_eight_frames(rgb: keras.Model):
    assert rgb(draw(1, 1, 16, 32, 32, 3)).shape == (1, 2, 1024)
    assert i3d("RGB", 32, 224).output_shape == (None, 4, 1024)


def write_checkpoint(folder: Path, model: keras.Model, leave_out: str = "") -> tuple[str, dict[str, np.ndarray]]:
    """A checkpoint with the published names and random values, and the head, which the model lacks."""
    values = {name: draw(len(name), *v.shape) for name, v in checkpoint_variables(model).items()}
    values[f"{model.name}/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b"] = draw(0, 400)
    values.pop(leave_out, None)
    path = str(folder / "model.ckpt")
    names, tensors = list(values), list(values.values())
    tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return path, values


def test_weights_of_a_checkpoint_arrive_where_their_names_say(rgb: keras.Model, tmp_path: Path):
    path, values = write_checkpoint(tmp_path, rgb)
    load_checkpoint(rgb, path)
    first, third = rgb.get_layer("Conv3d_1a_7x7.conv_3d"), rgb.get_layer("Mixed_5b.Branch_2.Conv3d_0a_3x3.batch_norm")
    np.testing.assert_array_equal(first.kernel, values["RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w"])
    scope = "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm"
    for name in ("beta", "moving_mean", "moving_variance"):
        np.testing.assert_array_equal(getattr(third, name), values[f"{scope}/{name}"])
    for name, variable in checkpoint_variables(rgb).items():
        np.testing.assert_array_equal(variable, values[name])


def test_a_checkpoint_of_another_network_is_refused_by_variable(rgb: keras.Model, tmp_path: Path):
    missing = "RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w"
    path, _ = write_checkpoint(tmp_path, rgb, leave_out=missing)
    message = rf"1 of 228 variables differ, first {missing}: expected shape \[7, 7, 7, 3, 64\], got None"
    with pytest.raises(ContractError, match=message):
        load_checkpoint(rgb, path)
    with pytest.raises(ContractError, match=r"nowhere: expected an I3D checkpoint"):
        load_checkpoint(rgb, str(tmp_path / "nowhere"))


def test_class_scores_of_two_streams_are_summed():
    streams = [keras.Input([2, 3]), keras.Input([4, 5])]
    model = keras.Model(streams, behaviour_scores(streams, 3))
    x = [draw(1, 2, 2, 3), draw(2, 2, 4, 5)]
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    expected = np.zeros([2, 3])
    for features, layer in zip(x, dense, strict=True):
        e = np.exp(features.mean(axis=1) @ layer.kernel.numpy() + layer.bias.numpy())
        expected += e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model(x), expected, rtol=1e-5)
    np.testing.assert_allclose(np.sum(model(x), axis=1), [2, 2], rtol=1e-5)


def test_the_joint_feature_is_the_outer_product():
    # (1, 2) (x) (3, 4, 5) = 3 4 5 / 6 8 10
    joint = joint_feature(tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0, 5.0]]))
    np.testing.assert_array_equal(joint, [[3, 4, 5, 6, 8, 10]])


def test_scenes_are_probabilities_of_the_middle_frame(tmp_path: Path):
    vgg19 = keras.applications.VGG19(include_top=False, weights=None)
    vgg19.save_weights(tmp_path / "vgg19.h5")
    frames = keras.Input([3, 32, 32, 3])
    model = keras.Model(frames, scene_probabilities(frames, Scene(scenes=4, vgg19_weights=str(tmp_path / "vgg19.h5"))))
    clip = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32, 3)).astype(np.float32)
    got = model(clip).numpy()
    assert got.shape == (1, 4)
    assert got.sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(model(np.repeat(clip[:, 1:2], 3, axis=1)), got)
    np.testing.assert_array_equal(model.get_layer("vgg19").get_weights()[0], vgg19.get_weights()[0])
    # given weights are kept; 13 convolutions of VGG16 and the fusing layer are trained
    assert len(model.trainable_weights) == 2 * (13 + 1)


def test_scene_weights_of_another_network_are_refused(tmp_path: Path):
    (tmp_path / "none.h5").write_bytes(b"")
    with pytest.raises(ContractError, match=r"none\.h5: expected weights of vgg16 without top"):
        scene_probabilities(keras.Input([1, 32, 32, 3]), Scene(vgg16_weights=str(tmp_path / "none.h5")))


@pytest.mark.parametrize("stream", ["RGB", "Flow"])
def test_i3d_reads_the_cricket_shot(stream: Any, shared_data: Path):
    path = shared_data / "i3d" / f"v_CricketShot_g04_c01_{stream.lower()}.gif"
    frames = tf.io.decode_gif(path.read_bytes()).numpy()
    assert frames.shape == (79, 224, 224, 3)
    clip = frames[np.newaxis, ..., : CHANNELS[stream]].astype(np.float32) / 127.5 - 1
    whole = i3d(stream, 79, 224, classes=400)
    features = keras.Model(whole.input, whole.get_layer("Logits.Conv3d_0c_1x1.conv_3d").input)
    assert features(clip).shape == (1, 9, 1, 1, 1024)  # ceil(79 / 8) = 10 steps, pooled in twos
    assert whole(clip).shape == (1, 400)
    assert i3d(stream, 79, 224)(clip).shape == (1, 10, 1024)
