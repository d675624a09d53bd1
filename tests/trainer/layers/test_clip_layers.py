"""The layers of the video classifier against their printed formulas in NumPy; what is absent does not count."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.keras_version import keras
from trainer.layers.frame_attention import FrameAttention, spread_over_frames
from trainer.layers.net_vlad import NetVlad
from trainer.layers.private_shared import difference_loss, divergence, private_shared, similarity_loss
from trainer.layers.title_encoder import title_encoder

seeds = st.integers(0, 2**16)
few = settings(max_examples=10)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def randomised(layer: Any, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    layer(inputs)
    layer.set_weights([draw(i, *w.shape) for i, w in enumerate(layer.get_weights())])
    return {v.name.split("/")[-1].split(":")[0]: v.numpy() for v in layer.weights}


def test_net_vlad_follows_its_equations():
    layer, x = NetVlad(3), draw(1, 2, 5, 4)
    w = randomised(layer, x, ones(2, 5))
    got = layer((x, ones(2, 5))).numpy()
    for clip in range(2):
        y = np.zeros([3, 4])
        for local in x[clip]:
            alpha = softmax(local @ w["kernel"] + w["bias"])
            for k in range(3):
                y[k] += alpha[k] * (local - w["centres"][k])
        np.testing.assert_allclose(got[clip], y.ravel() / np.linalg.norm(y), rtol=1e-4, atol=1e-6)


def test_attention_follows_its_equations():
    layer, x = FrameAttention(), draw(1, 2, 5, 4)
    w = randomised(layer, x, ones(2, 5))["kernel"]
    pooled, weights = (part.numpy() for part in layer((x, ones(2, 5))))
    for clip in range(2):
        a = softmax(x[clip] @ w)
        np.testing.assert_allclose(weights[clip], a, rtol=1e-5)
        np.testing.assert_allclose(pooled[clip], a @ x[clip], rtol=1e-4, atol=1e-6)


def test_untrained_attention_is_average_pooling():
    x = draw(2, 1, 4, 3)
    pooled, weights = FrameAttention()((x, ones(1, 4)))
    np.testing.assert_allclose(weights, [[0.25] * 4])  # eq. 12
    np.testing.assert_allclose(pooled, x.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("layer", [NetVlad(3), FrameAttention()], ids=["NetVlad", "FrameAttention"])
@given(seed=seeds, kept=st.integers(1, 4))
@few
def test_masked_local_features_are_as_if_there_were_fewer(layer: Any, seed: int, kept: int):
    x, mask = draw(seed, 2, 5, 4), np.repeat(np.arange(5)[np.newaxis] < kept, 2, axis=0).astype(np.float32)
    randomised(layer, x, ones(2, 5))
    masked, shorter = layer((x, mask)), layer((x[:, :kept], ones(2, kept)))
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    np.testing.assert_allclose(first(masked), first(shorter), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [NetVlad(3), FrameAttention()], ids=["NetVlad", "FrameAttention"])
def test_nothing_present_gives_zeros_and_finite_gradients(layer: Any):
    x, mask = tf.Variable(draw(3, 1, 4, 2)), np.zeros([1, 4], np.float32)
    randomised(layer, x.numpy(), ones(1, 4))
    with tf.GradientTape() as tape:
        out = layer((x, mask))
        out = out[0] if isinstance(out, tuple) else out
        total = tf.reduce_sum(out * 2.0)
    assert not out.numpy().any()
    assert not np.nan_to_num(tape.gradient(total, x).numpy(), nan=1.0).any()


@given(seed=seeds)
@few
def test_the_order_of_local_features_changes_nothing_but_the_order_of_weights(seed: int):
    x, order = draw(seed, 2, 6, 4), np.random.default_rng(seed).permutation(6)
    vlad, attention = NetVlad(2), FrameAttention()
    randomised(vlad, x, ones(2, 6))
    randomised(attention, x, ones(2, 6))
    np.testing.assert_allclose(vlad((x, ones(2, 6))), vlad((x[:, order], ones(2, 6))), rtol=1e-3, atol=1e-5)
    before, after = attention((x, ones(2, 6))), attention((x[:, order], ones(2, 6)))
    np.testing.assert_allclose(before[0], after[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(before[1].numpy()[:, order], after[1], rtol=1e-3, atol=1e-6)


def test_time_steps_are_spread_over_the_frames_they_stand_for():
    steps = tf.constant([[0.5, 0.2, 0.3]])
    np.testing.assert_array_equal(spread_over_frames(steps, 3), steps)
    np.testing.assert_allclose(spread_over_frames(steps, 6), [[0.5, 0.5, 0.2, 0.2, 0.3, 0.3]])
    np.testing.assert_allclose(spread_over_frames(steps, 5), [[0.5, 0.5, 0.2, 0.2, 0.3]])  # the last pool had one frame
    # Five frames pooled twice: pairs (0 1) (2 3) (4), then ((0 1) (2 3)) ((4)).
    np.testing.assert_allclose(spread_over_frames(steps[:, :2], 5), [[0.5, 0.5, 0.5, 0.5, 0.2]])


def test_the_similarity_loss_is_half_the_mean_squared_distance_of_clips_with_both():
    visual, audio = np.array([[1.0, 2], [0, 0], [9, 9]], np.float32), np.array([[1.0, 0], [3, 4], [0, 0]], np.float32)
    # distances squared 4 and 25, the third clip is silent: (4 + 25) / (2 * 2)
    assert float(similarity_loss(visual, audio, np.array([1.0, 1, 0], np.float32))) == pytest.approx(7.25)
    assert float(similarity_loss(visual, audio, np.zeros(3, np.float32))) == 0.0


def test_the_divergence_is_in_bits():
    # P = (3/4, 1/4), Q = (1/4, 3/4): 3/4 log2 3 + 1/4 log2 1/3 = log2(3) / 2
    private, shared = np.log([[3.0, 1.0]]).astype(np.float32), np.log([[1.0, 3.0]]).astype(np.float32)
    np.testing.assert_allclose(divergence(private, shared), [np.log2(3) / 2], rtol=1e-5)
    # the loss of it and of an equal pair: mean of 2^-(log2(3) / 2) = 1 / sqrt(3) and 1
    pairs = np.concatenate([private, shared]), np.concatenate([shared, shared])
    assert float(difference_loss(*pairs, ones(2))) == pytest.approx((3**-0.5 + 1) / 2, rel=1e-5)
    assert float(difference_loss(*pairs, np.array([1.0, 0], np.float32))) == pytest.approx(3**-0.5, rel=1e-5)


@given(seed=seeds, scale=st.sampled_from([1.0, 30.0, 1e4]))
@few
def test_the_difference_loss_is_bounded_and_minimising_it_parts_the_distributions(seed: int, scale: float):
    private, shared = tf.Variable(draw(seed, 3, 4) * scale), draw(seed + 1, 3, 4) * scale
    before = divergence(private, shared).numpy().mean()
    with tf.GradientTape() as tape:
        loss = difference_loss(private, shared, ones(3))
    assert 0 <= float(loss) <= 1 + 1e-5
    gradient = tape.gradient(loss, private)
    assert np.isfinite(gradient).all()
    private.assign_sub(gradient)
    assert divergence(private, shared).numpy().mean() >= before - 1e-4


def test_the_shared_network_is_one_and_the_private_ones_are_several():
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input([4]) for name in ("visual", "audio")}
    model = keras.Model(inputs, private_shared(inputs, 3))
    x = draw(1, 2, 4)
    got = model({"visual": x, "audio": x})
    np.testing.assert_array_equal(got["visual"][:, 3:], got["audio"][:, 3:])
    assert np.abs(got["visual"][:, :3] - got["audio"][:, :3]).min() > 1e-4


def test_a_padded_title_is_encoded_as_a_short_one():
    title = keras.Input([None], dtype="int64")
    model = keras.Model(title, title_encoder(title, 10, 4))
    short, padded = model(np.array([[3, 5]])), model(np.array([[3, 5, 0, 0]]))
    np.testing.assert_allclose(padded[0][:, :2], short[0], rtol=1e-6)
    np.testing.assert_array_equal(padded[1], [[1, 1, 0, 0]])
    assert np.abs(model(np.array([[5, 3]]))[0] - short[0]).max() > 1e-4  # order counts
