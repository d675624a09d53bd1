"""Clips whose classes differ in motion only, or in sound only, and a plain training loop for what fits in memory.

n clips, T frames, S pixels, P x M a spectrogram.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from trainer.keras_version import keras
from trainer.video_classifier import Config, losses

Arrays = dict[str, np.ndarray]


def moving(seed: int, n: int, frames: int, size: int, classes: int = 2) -> tuple[Arrays, np.ndarray]:
    """A bright square on noise that moves to the right or to the left and comes back at the other side.

    A clip of one class is a reversed clip of the other, so single frames tell nothing, nor does a bag of them.

    Returns:
        frames uint8 [n, T, S, S, 3]; and classes [n]: 0 (right) and 1 (left) in turn, or 0 only.
    """
    rng, labels, side = np.random.default_rng(seed), np.arange(n) % classes, max(2, size // 4)
    clips = rng.integers(0, 60, (n, frames, size, size, 3), dtype=np.uint8)
    for clip, label in zip(clips, labels, strict=True):
        start, speed, colour = rng.integers(0, size, 2), rng.integers(1, 3) * size / 16, rng.integers(120, 256, 3)
        for t, frame in enumerate(clip):
            corner = start + np.array([0, round(t * speed) * (1 - 2 * label)])
            frame[np.ix_(*((np.arange(side) + at) % size for at in corner))] = colour
    return {"frames": clips}, labels


def sounding(seed: int, n: int, frames: int, size: int, steps: int, mels: int) -> tuple[Arrays, np.ndarray]:
    """The same clips as in class 0 of `moving`, with a tone that rises or falls in the course of the clip.

    Returns:
        frames as above, sound float32 [n, T, P, M], has_audio [n]; and classes [n]: 0 rises, 1 falls.
    """
    rng, labels = np.random.default_rng(seed + 1), np.arange(n) % 2
    sound = rng.normal(-0.8, 0.1, (n, frames, steps, mels)).astype(np.float32)
    for spectrogram, label in zip(sound.reshape(n, frames * steps, mels), labels, strict=True):
        steepness, start = rng.uniform(0.5, 1.0), rng.integers(0, mels)
        pitch = start + (1 - 2 * label) * steepness * mels * np.arange(frames * steps) / (frames * steps)
        spectrogram[np.arange(frames * steps), np.round(pitch).astype(int) % mels] += 1.2
    clips, _ = moving(seed, n, frames, size, classes=1)
    return {**clips, "sound": sound, "has_audio": np.ones(n, np.float32)}, labels


def train(
    model: keras.Model,
    config: Config,
    inputs: Arrays,
    labels: np.ndarray,
    epochs: int,
    seed: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    augment: Callable[[Arrays, np.random.Generator], Arrays] | None = None,
) -> Iterator[float]:
    """Trains, and gives the seconds since the start after each epoch; what the caller does meanwhile does not count."""
    optimizer, rng, seconds = keras.optimizers.Adam(learning_rate), np.random.default_rng(seed), 0.0

    @tf.function(autograph=False, reduce_retracing=True)
    def step(batch: dict[str, tf.Tensor], answers: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = losses(config, batch, model(batch, training=True), {"primary_category": answers})["loss"]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    variables = model.trainable_variables
    optimizer.build(variables)
    for _ in range(epochs):
        started, order = time.perf_counter(), rng.permutation(len(labels))
        for rows in np.array_split(order, max(1, len(order) // batch_size)):
            batch = {name: value[rows] for name, value in inputs.items()}
            batch = augment(batch, rng) if augment else batch
            step({name: tf.constant(batch[name]) for name in model.input_names}, tf.constant(labels[rows]))
        seconds += time.perf_counter() - started
        yield seconds


def classify(model: keras.Model, inputs: Arrays, batch_size: int = 16) -> np.ndarray:
    """The most probable class of each clip, [n]."""
    return probabilities(model, inputs, batch_size).argmax(axis=1)


def probabilities(model: keras.Model, inputs: Arrays, batch_size: int = 16) -> np.ndarray:
    """[n, C]."""
    given = {name: inputs[name] for name in model.input_names}
    data = tf.data.Dataset.from_tensor_slices(given).batch(batch_size)
    return np.concatenate([model(batch, training=False)["probabilities"] for batch in data])
