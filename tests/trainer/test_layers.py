"""Each layer against its printed formula in NumPy; absent fields do not count; order matters only where it may."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.keras_version import keras
from trainer.layers.attention_crossing import AttentionCrossing, all_pairs
from trainer.layers.fields import BiasedSum, IdDropout, MaskedMean, MaskedStack, NumberField, Present
from trainer.layers.masked_softmax import masked_softmax
from trainer.layers.multi_head_self_attention import MultiHeadSelfAttention
from trainer.layers.target_attention import TargetAttention
from trainer.layers.user_guided_attention import UserGuidedAttention

seeds = st.integers(0, 2**16)
few = settings(max_examples=10)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def randomised(layer: Any, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Builds the layer, gives every weight random values, and returns them by name."""
    layer(inputs)
    layer.set_weights([draw(i, *w.shape) for i, w in enumerate(layer.get_weights())])
    return {v.name.split("/")[-1].split(":")[0]: v.numpy() for v in layer.weights}


def test_masked_softmax_of_nothing_is_zero_and_of_huge_scores_is_finite():
    got = masked_softmax(tf.constant([[1e4, 1e4 + 1, 5.0], [3.0, 4.0, 5.0]]), tf.constant([[1.0, 1, 0], [0, 0, 0]]))
    e = np.e  # softmax(0, 1) = 1 / (1 + e), e / (1 + e)
    np.testing.assert_allclose(got, [[1 / (1 + e), e / (1 + e), 0], [0, 0, 0]], rtol=1e-4)


def test_masked_softmax_has_a_finite_gradient_where_all_is_absent():
    scores = tf.Variable([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(masked_softmax(scores, tf.zeros([1, 2])) ** 2)
    assert tape.gradient(total, scores).numpy().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("residual", ["projected", "identity"])
@pytest.mark.parametrize(("heads", "width"), [(1, 4), (2, 3)])
def test_self_attention_follows_its_equation(heads: int, width: int, residual: str):
    layer, x = MultiHeadSelfAttention(heads, width, residual), draw(7, 2, 5, 6)
    w = randomised(layer, x, ones(2, 5))
    attended = np.zeros((2, 5, heads * width))
    for b, i, h in itertools.product(range(2), range(5), range(heads)):
        part = slice(h * width, (h + 1) * width)
        query, keys, values = (x[b] @ w[f"kernel_{name}"][:, part] for name in "qkv")
        attended[b, i, part] = softmax(keys @ query[i] / np.sqrt(width)) @ values
    projected = residual == "projected"
    expected = np.maximum(attended + x @ w["kernel_r"], 0) if projected else x + attended @ w["kernel_o"]
    np.testing.assert_allclose(layer((x, ones(2, 5))), expected, rtol=1e-4, atol=1e-4)


def test_self_attention_with_identity_residual_starts_as_if_it_were_not_there():
    x = draw(7, 2, 5, 6)
    np.testing.assert_array_equal(MultiHeadSelfAttention(2, 3, "identity")((x, ones(2, 5))), x)


@given(seed=seeds, order=st.permutations(range(4)))
@few
def test_self_attention_moves_with_its_fields(seed: int, order: list[int]):
    layer, x = MultiHeadSelfAttention(2, 3), draw(seed, 2, 4, 5)
    randomised(layer, x, ones(2, 4))
    permuted = layer((x[:, order], ones(2, 4)))
    np.testing.assert_allclose(permuted, tf.gather(layer((x, ones(2, 4))), order, axis=1), rtol=1e-4, atol=1e-4)


@given(seed=seeds, residual=st.sampled_from(["projected", "identity"]))
@few
def test_self_attention_with_a_masked_field_is_self_attention_without_it(seed: int, residual: str):
    layer, x, mask = MultiHeadSelfAttention(2, 3, residual), draw(seed, 2, 4, 5), ones(2, 4)
    mask[:, 1] = 0
    randomised(layer, x, mask)
    got = layer((x, mask)).numpy()
    np.testing.assert_allclose(got[:, [0, 2, 3]], layer((x[:, [0, 2, 3]], ones(2, 3))), rtol=1e-4, atol=1e-4)
    assert not got[:, 1].any()


def test_all_pairs_are_ordered_products():
    # fields 2, 3, 5, 7: (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
    assert all_pairs(tf.constant([[2.0, 3, 5, 7]])).numpy().tolist() == [[6.0, 10, 14, 15, 21, 35]]


def test_crossing_follows_equations_7_to_9_with_a_softmax():
    layer, x = AttentionCrossing(4), draw(3, 2, 5, 6)
    w = randomised(layer, x, ones(2, 5))
    weighted, weights = layer((x, ones(2, 5)))
    for b in range(2):
        phi = np.array([x[b, i] * x[b, j] for i, j in itertools.combinations(range(5), 2)])
        m = softmax(np.maximum(phi @ w["kernel"] + w["bias"], 0) @ w["context"][:, 0])
        assert len(m) == 5 * 4 // 2
        np.testing.assert_allclose(weights[b], m, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weighted[b], phi * m[:, None], rtol=1e-4, atol=1e-5)


def test_crossing_weighs_evenly_where_no_unit_fires():
    # the printed eq. 8 would be 0 / 0 here
    layer, x = AttentionCrossing(2), draw(3, 1, 3, 2)
    layer((x, ones(1, 3)))
    layer.set_weights([np.zeros((2, 2)), np.array([-1.0, -1.0]), np.array([[1.0], [1.0]])])
    np.testing.assert_allclose(layer((x, ones(1, 3)))[1], [[1 / 3] * 3], rtol=1e-6)


@given(seed=seeds, order=st.permutations(range(4)))
@few
def test_pooled_crossing_does_not_depend_on_the_order_of_fields(seed: int, order: list[int]):
    layer, x = AttentionCrossing(3), draw(seed, 2, 4, 5)
    randomised(layer, x, ones(2, 4))
    pooled = [tf.reduce_sum(layer((values, ones(2, 4)))[0], axis=1) for values in (x, x[:, order])]
    np.testing.assert_allclose(*pooled, rtol=1e-3, atol=1e-4)


@given(seed=seeds)
@few
def test_crossing_with_a_masked_field_is_crossing_without_it(seed: int):
    layer, x, mask = AttentionCrossing(3), draw(seed, 2, 4, 5), ones(2, 4)
    mask[:, 2] = 0
    randomised(layer, x, mask)
    without = layer((x[:, [0, 1, 3]], ones(2, 3)))[0]
    np.testing.assert_allclose(
        tf.reduce_sum(layer((x, mask))[0], axis=1), tf.reduce_sum(without, axis=1), rtol=1e-4, atol=1e-5
    )


def test_crossing_of_one_field_alone_is_nothing():
    weighted, weights = AttentionCrossing(3)((draw(1, 1, 3, 2), np.array([[1, 0, 0]], np.float32)))
    assert not weighted.numpy().any()
    assert not weights.numpy().any()


def test_user_guided_attention_follows_its_equation():
    layer, user, modalities = UserGuidedAttention(4), draw(1, 2, 5), draw(2, 2, 3, 6)
    w = randomised(layer, user, modalities, ones(2, 3))
    fused, weights = layer((user, modalities, ones(2, 3)))
    for b in range(2):
        a = softmax(np.tanh(user[b] @ w["user_kernel"] + modalities[b] @ w["kernel"] + w["bias"]) @ w["context"])
        np.testing.assert_allclose(weights[b], a, rtol=1e-4)
        np.testing.assert_allclose(fused[b], a @ modalities[b], rtol=1e-4, atol=1e-5)


def test_user_guided_attention_depends_on_the_user():
    layer, modalities = UserGuidedAttention(4), draw(2, 1, 3, 6)
    randomised(layer, draw(1, 1, 5), modalities, ones(1, 3))
    weights = [layer((draw(seed, 1, 5), modalities, ones(1, 3)))[1].numpy() for seed in (1, 2)]
    assert np.abs(weights[0] - weights[1]).max() > 0.01


def test_a_missing_modality_gets_no_weight_and_all_missing_give_zeros():
    mask = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    fused, weights = UserGuidedAttention(4)((draw(1, 2, 5), draw(2, 2, 3, 6), mask))
    assert weights[0, 1] == 0
    assert tf.reduce_sum(weights[0]).numpy() == pytest.approx(1)
    assert not weights[1].numpy().any()
    assert not fused[1].numpy().any()


def test_target_attention_follows_its_equation_and_pools_nothing_from_an_empty_history():
    layer, history, candidate = TargetAttention(4), draw(1, 2, 3, 5), draw(2, 2, 5)
    mask = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
    w = randomised(layer, history, mask, candidate)
    x, v = history[0, :2], candidate[0]
    hidden = np.maximum(
        x @ w["kernel_entry"] + v @ w["kernel_candidate"] + (x * v) @ w["kernel_product"] + w["bias"], 0
    )
    got = layer((history, mask, candidate))
    np.testing.assert_allclose(got[0], softmax(hidden @ w["context"]) @ x, rtol=1e-4, atol=1e-5)
    assert not got[1].numpy().any()


def test_masked_mean_divides_by_what_is_there():
    # (1 + 3) / 2 and (2 + 4) / 2; nothing -> 0
    vectors = np.array([[[1, 2], [3, 4], [9, 9]], [[5, 5], [5, 5], [5, 5]]], np.float32)
    mask = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
    assert MaskedMean()((vectors, mask)).numpy().tolist() == [[2, 3], [0, 0]]


def test_stack_zeroes_absent_fields_and_the_sum_leaves_them_out():
    present, absent = tf.ones([1]), tf.zeros([1])
    vectors, mask = MaskedStack()(([tf.ones([1, 2]), tf.ones([1, 2])], [present, absent]))
    assert vectors.numpy().tolist() == [[[1, 1], [0, 0]]]
    assert mask.numpy().tolist() == [[1, 0]]
    total = BiasedSum()
    total(([tf.ones([1, 1])] * 2, [present, absent]))
    total.set_weights([np.array([0.5])])
    assert total(([tf.constant([[2.0]]), tf.constant([[7.0]])], [present, absent])).numpy().tolist() == [[2.5]]


def test_number_field_scales_its_vector_and_present_marks_what_is_not_zero():
    layer = NumberField(2)
    layer(tf.ones([1]))
    layer.set_weights([np.array([1.0, -2.0])])
    assert layer(tf.constant([3.0, 0.0])).numpy().tolist() == [[3, -6], [0, 0]]
    assert Present()(tf.constant([0, 4], tf.int64)).numpy().tolist() == [0, 1]


def test_id_dropout_trains_the_unknown_and_leaves_padding_and_inference_alone():
    keras.utils.set_random_seed(1)
    layer, ids = IdDropout(rows=10, oov_buckets=2, rate=0.25), tf.constant([0] * 500 + [3] * 4000, tf.int64)
    got = layer(ids, training=True).numpy()
    assert not got[:500].any()
    assert set(got[500:]) == {3, 8, 9}  # of 10 rows the last two are buckets
    assert (got[500:] != 3).mean() == pytest.approx(0.25, abs=0.03)
    assert (layer(ids, training=False) == ids).numpy().all()


@pytest.mark.parametrize(
    "layer",
    [
        MultiHeadSelfAttention(3, 5, "identity"),
        AttentionCrossing(7),
        UserGuidedAttention(3),
        TargetAttention(2),
        NumberField(4),
        IdDropout(9, 2, 0.5),
    ],
)
def test_a_layer_comes_back_from_its_config(layer: Any):
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
