"""I3D: Inception-v1 with every kernel inflated to three dimensions (Carreira and Zisserman 2017), and its checkpoints.

B batch, T frames, T' = ceil(T / 8) time steps, C channels.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

from trainer.keras_version import keras
from transform.contract import ContractError

Stream = Literal["RGB", "Flow"]
CHANNELS = {"RGB": 3, "Flow": 2}

# Filters of each module: branch 0, branch 1 (1x1, then 3x3), branch 2 (1x1, then 3x3), branch 3 (after pooling).
_MODULES = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
_POOL_BEFORE = {"Mixed_3b": (1, 3, 3), "Mixed_4b": (3, 3, 3), "Mixed_5b": (2, 2, 2)}
_POOL_STRIDES = {"Mixed_3b": (1, 2, 2), "Mixed_4b": (2, 2, 2), "Mixed_5b": (2, 2, 2)}
_VARIABLES = {
    "kernel": "w",
    "bias": "b",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
}


def i3d(stream: Stream, frames: int, size: int, classes: int | None = None) -> keras.Model:
    """The network of one stream.

    Its layers are named as the variable scopes of DeepMind's release, with dots for slashes.

    Args:
        stream: `RGB` (3 channels) or `Flow` (2 channels), pixels and flow scaled to -1..1.
        frames: T.
        size: Height and width in pixels; at least 32.
        classes: None: the last fully connected layer is removed and average pooling over space added, which gives
            features [B, T', 1024]. A number: the published head, which gives logits [B, classes].

    Returns:
        A model from clips [B, T, size, size, C].
    """
    clip = keras.Input((frames, size, size, CHANNELS[stream]))
    x = _unit(clip, 64, 7, "Conv3d_1a_7x7", strides=2)
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    x = _unit(x, 64, 1, "Conv3d_2b_1x1")
    x = _unit(x, 192, 3, "Conv3d_2c_3x3")
    for name, filters in _MODULES.items():
        if name in _POOL_BEFORE:
            x = _pool(x, _POOL_BEFORE[name], _POOL_STRIDES[name])
        x = _inception(x, name, *filters)
    output = tf.reduce_mean(x, axis=[2, 3]) if classes is None else _logits(x, classes)
    return keras.Model(clip, output, name=stream)


def checkpoint_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Every variable of an `i3d` model by its name in DeepMind's checkpoints.

    None is transposed: both store kernels as [time, height, width, in, out].
    """
    return {
        f"{model.name}/inception_i3d/{layer.name.replace('.', '/')}/{_VARIABLES[_last_part(variable)]}": variable
        for layer in model.layers
        for variable in layer.weights
    }


def load_checkpoint(model: keras.Model, path: str) -> None:
    """Gives an `i3d` model the weights of a checkpoint as published at github.com/deepmind/kinetics-i3d.

    A checkpoint's head (`Logits`) is left aside where the model has none; all else must match, name by name and shape
    by shape.

    Args:
        model: From `i3d`.
        path: The checkpoint without `.index` and `.data-...`.

    Raises:
        ContractError: No checkpoint there, or one of another network.
    """
    try:
        reader = tf.train.load_checkpoint(path)
    except (ValueError, tf.errors.OpError) as error:
        raise ContractError(
            f"{path}: expected an I3D checkpoint ({path}.index and {path}.data-00000-of-00001), got {error}; give the "
            "path without the part after `.ckpt`"
        ) from error
    ours, theirs = checkpoint_variables(model), reader.get_variable_to_shape_map()
    kept = {name: list(shape) for name, shape in theirs.items() if name in ours or "/Logits/" not in name}
    shapes = {name: variable.shape.as_list() for name, variable in ours.items()}
    if kept != shapes:
        differing = sorted(name for name in kept.keys() | shapes.keys() if kept.get(name) != shapes.get(name))
        first = differing[0]
        raise ContractError(
            f"{path}: not the {model.name} stream's I3D: {len(differing)} of {len(shapes)} variables differ, first "
            f"{first}: expected shape {shapes.get(first)}, got {kept.get(first)}"
        )
    for name, variable in ours.items():
        variable.assign(reader.get_tensor(name))


def _unit(x: tf.Tensor, filters: int, kernel: int, name: str, strides: int = 1) -> tf.Tensor:
    """Convolution, batch normalisation without scale, ReLU."""
    convolution = keras.layers.Conv3D(filters, kernel, strides, "same", use_bias=False, name=f"{name}.conv_3d")
    norm = keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3, scale=False, name=f"{name}.batch_norm")
    return keras.layers.ReLU()(norm(convolution(x)))


def _pool(x: tf.Tensor, size: tuple[int, int, int], strides: tuple[int, int, int]) -> tf.Tensor:
    return keras.layers.MaxPool3D(size, strides, "same")(x)


def _inception(x: tf.Tensor, name: str, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int) -> tf.Tensor:
    second = "0a" if name == "Mixed_5b" else "0b"  # the release misnames this one layer
    first_1 = _unit(x, b1[0], 1, f"{name}.Branch_1.Conv3d_0a_1x1")
    first_2 = _unit(x, b2[0], 1, f"{name}.Branch_2.Conv3d_0a_1x1")
    branches = [
        _unit(x, b0, 1, f"{name}.Branch_0.Conv3d_0a_1x1"),
        _unit(first_1, b1[1], 3, f"{name}.Branch_1.Conv3d_0b_3x3"),
        _unit(first_2, b2[1], 3, f"{name}.Branch_2.Conv3d_{second}_3x3"),
        _unit(_pool(x, (3, 3, 3), (1, 1, 1)), b3, 1, f"{name}.Branch_3.Conv3d_0b_1x1"),
    ]
    return keras.layers.Concatenate()(branches)


def _logits(x: tf.Tensor, classes: int) -> tf.Tensor:
    pooled = keras.layers.AveragePooling3D((2, x.shape[2], x.shape[3]), 1, "valid")(x)
    logits = keras.layers.Conv3D(classes, 1, name="Logits.Conv3d_0c_1x1.conv_3d")(pooled)
    return tf.reduce_mean(logits, axis=[1, 2, 3])


def _last_part(variable: tf.Variable) -> str:
    return str(variable.name).split("/")[-1].split(":")[0]
