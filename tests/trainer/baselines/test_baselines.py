"""Each baseline against its printed formula in NumPy, and what all of them share: absent fields do not count."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.baselines import acf, afm, autoint, dcn, deep_fm, embedding_mlp, fm, lr, wide_and_deep
from trainer.inputs import Fields
from trainer.keras_version import keras
from trainer.ranker import Attention, Config, Deep
from transform.contract import ContractError

ROWS, COUNT, WIDTH, LENGTH = 5, 4, 6, 3
SMALL = Config(deep=Deep(units=(8,)), attention=Attention(heads=2, width=3, layers=1), embedding_width=WIDTH)
BUILDS: dict[str, Callable[[Fields, Config], tf.Tensor]] = {
    "lr": lr.build,
    "fm": fm.build,
    "afm": afm.build,
    "embedding_mlp": embedding_mlp.build,
    "wide_and_deep": wide_and_deep.build,
    "deep_fm": deep_fm.build,
    "dcn_v1": dcn.build_v1,
    "dcn_v2": dcn.build_v2,
    "autoint": autoint.build,
    "acf": acf.build,
}


def _inputs(fields: Fields) -> dict[str, tf.Tensor]:
    return {name: value for name, value in fields._asdict().items() if tf.is_tensor(value)}


def _fields(seed: int = 0, count: int = COUNT) -> Fields:
    """Random fields, history and modalities; the last field, history entry and modality of each row is absent."""
    random = np.random.default_rng(seed)
    masks = {n: np.concatenate([np.ones((ROWS, n - 1)), np.zeros((ROWS, 1))], axis=1) for n in (count, LENGTH, 2)}

    def draw(n: int) -> np.ndarray:
        return random.normal(size=(ROWS, n, WIDTH))

    values = (
        draw(count) * masks[count][:, :, np.newaxis],
        masks[count],
        random.normal(size=(ROWS, 1)),
        draw(1)[:, 0],
        draw(1)[:, 0],
        draw(LENGTH),
        masks[LENGTH],
        draw(2) * masks[2][:, :, np.newaxis],
        masks[2],
    )
    return Fields(*(tf.constant(value, tf.float32) for value in values), ())


def _model(build: Callable[[Fields, Config], tf.Tensor], fields: Fields, config: Config = SMALL) -> keras.Model:
    """A model from the tensors of `fields` to the logit."""
    symbols = {name: keras.Input(value.shape[1:], name=name) for name, value in _inputs(fields).items()}
    return keras.Model(symbols, build(Fields(**{**fields._asdict(), **symbols}), config))


def _weights(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.name: weight.numpy() for weight in model.weights}


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def test_lr_is_the_first_order_part() -> None:
    fields = _fields()
    np.testing.assert_array_equal(lr.build(fields, SMALL), fields.linear)


@settings(max_examples=20)
@given(count=st.integers(1, 6), width=st.integers(1, 5), seed=st.integers(0, 1000))
def test_fm_in_linear_time_equals_the_sum_over_explicit_pairs(count: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(3, count, width)).astype(np.float32)
    explicit = sum(
        (vectors[:, i] * vectors[:, j]).sum(axis=1) for i in range(count) for j in range(i + 1, count)
    ) * np.ones(3)
    np.testing.assert_allclose(fm.pair_products(tf.constant(vectors))[:, 0], explicit, atol=1e-4)


def test_fm_of_two_fields_by_hand() -> None:
    # <(1, 2), (3, 4)> = 11
    assert float(fm.pair_products(tf.constant([[[1.0, 2.0], [3.0, 4.0]]]))[0, 0]) == pytest.approx(11.0)


def test_afm_sums_softmax_weighted_pairs_of_present_fields() -> None:
    fields = _fields()
    model = _model(afm.build, fields)
    w = {name.split("/")[-1]: value for name, value in _weights(model).items() if name.startswith("afm")}
    projection = next(value for name, value in _weights(model).items() if name.startswith("projection"))
    v = fields.vectors.numpy()
    pairs = np.stack([v[:, 0] * v[:, 1], v[:, 0] * v[:, 2], v[:, 1] * v[:, 2]], axis=1)  # field 3 is absent
    scores = (np.maximum(pairs @ w["kernel:0"] + w["bias:0"], 0) @ w["context:0"])[:, :, 0]
    expected = fields.linear + (pairs * _softmax(scores)[:, :, np.newaxis]).sum(axis=1) @ projection
    np.testing.assert_allclose(model(_inputs(fields)), expected, atol=1e-5)


def test_embedding_mlp_is_the_perceptron_over_the_fields_side_by_side() -> None:
    fields = _fields()
    model = _model(embedding_mlp.build, fields)
    kernel, bias, last, last_bias = (weight.numpy() for weight in model.weights)
    hidden = np.maximum(fields.vectors.numpy().reshape(ROWS, -1) @ kernel + bias, 0)
    np.testing.assert_allclose(model(_inputs(fields)), hidden @ last + last_bias, atol=1e-5)


@pytest.mark.parametrize(("whole", "shallow"), [(wide_and_deep.build, lr.build), (deep_fm.build, fm.build)])
def test_with_a_silent_perceptron_only_the_shallow_part_is_left(whole: Callable, shallow: Callable) -> None:
    fields = _fields()
    model = _model(whole, fields)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    np.testing.assert_allclose(model(_inputs(fields)), shallow(fields, SMALL), atol=1e-5)


def test_dcn_v1_cross_with_zero_weights_is_the_identity() -> None:
    cross = dcn.VectorCross()
    first, crossed = tf.ones([2, 3]), tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    cross((first, crossed))
    cross.set_weights([np.zeros((3, 1)), np.zeros(3)])
    np.testing.assert_array_equal(cross((first, crossed)), crossed)


def test_dcn_v1_cross_by_hand() -> None:
    # x_l^T w = 1*3 + 2*4 = 11; x0 * 11 + b + x_l = (55, 66) + (1, 1) + (1, 2)
    cross = dcn.VectorCross()
    given = (tf.constant([[5.0, 6.0]]), tf.constant([[1.0, 2.0]]))
    cross(given)
    cross.set_weights([np.array([[3.0], [4.0]]), np.ones(2)])
    np.testing.assert_allclose(cross(given), [[57.0, 69.0]])


def test_dcn_v2_crosses_with_a_matrix() -> None:
    fields = _fields()
    model = _model(dcn.build_v2, fields, SMALL.model_copy(update={"cross_layers": 2, "deep": None}))
    (w1, b1), (w2, b2), (last, bias) = zip(*[iter(weight.numpy() for weight in model.weights)] * 2, strict=True)
    x0 = fields.vectors.numpy().reshape(ROWS, -1)
    x1 = x0 * (x0 @ w1 + b1) + x0
    x2 = x0 * (x1 @ w2 + b2) + x1
    np.testing.assert_allclose(model(_inputs(fields)), x2 @ last + bias, rtol=1e-4, atol=1e-4)


def test_autoint_attends_and_keeps_a_residual() -> None:
    fields = _fields()
    model = _model(autoint.build, fields, SMALL.model_copy(update={"deep": None}))
    q, k, value, residual, last, bias = (weight.numpy() for weight in model.weights)
    v, mask = fields.vectors.numpy(), fields.mask.numpy()
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = np.einsum("bid,bkd->bik", v @ q[:, head], v @ k[:, head]) / np.sqrt(3)
        heads.append(_softmax(np.where(mask[:, np.newaxis] > 0, scores, -np.inf)) @ (v @ value[:, head]))
    attended = np.maximum(np.concatenate(heads, axis=2) + v @ residual, 0) * mask[:, :, np.newaxis]
    expected = fields.linear + attended.reshape(ROWS, -1) @ last + bias
    np.testing.assert_allclose(model(_inputs(fields)), expected, atol=1e-5)


def test_acf_with_uniform_attention_is_the_mean_history_and_content() -> None:
    fields = _fields()
    model = _model(acf.build, fields)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    user = fields.user.numpy() + fields.history.numpy()[:, :2].mean(axis=1)  # entry 2 is padding
    video = fields.video.numpy() + fields.modalities.numpy()[:, 0]  # modality 1 is missing
    expected = fields.linear + (user * video).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model(_inputs(fields)), expected, atol=1e-5)


def test_acf_of_an_empty_history_is_user_times_video() -> None:
    fields = _fields()._replace(modalities=None, modality_mask=None)
    fields = fields._replace(history_mask=tf.zeros_like(fields.history_mask))
    expected = fields.linear + tf.reduce_sum(fields.user * fields.video, axis=1, keepdims=True)
    np.testing.assert_allclose(_model(acf.build, fields)(_inputs(fields)), expected, atol=1e-6)


def test_acf_without_a_history_is_refused_with_the_remedy() -> None:
    with pytest.raises(ContractError, match=r"acf.*history.*derived\.user_history"):
        acf.build(_fields()._replace(history=None, history_mask=None), SMALL)


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_padding_and_missing_modalities_do_not_move_the_logit(name: str) -> None:
    fields = _fields()
    model = _model(BUILDS[name], fields)
    noise = fields._replace(
        history=tf.concat([fields.history[:, :2], 100 + fields.history[:, 2:]], axis=1),
        modalities=tf.concat([fields.modalities[:, :1], 100 + fields.modalities[:, 1:]], axis=1),
    )
    np.testing.assert_allclose(model(_inputs(noise)), model(_inputs(fields)), atol=1e-5)


@pytest.mark.parametrize("name", ["fm", "afm", "autoint"])
def test_a_masked_field_is_as_no_field(name: str) -> None:
    config = SMALL.model_copy(update={"deep": None})
    fields = _fields()
    fewer = fields._replace(vectors=fields.vectors[:, :-1], mask=fields.mask[:, :-1])
    whole, cut = _model(BUILDS[name], fields, config), _model(BUILDS[name], fewer, config)
    # Only the last map of AutoInt sees the number of fields: its rows for the masked one are dropped.
    cut.set_weights([w[: part.shape[0]] for w, part in zip(whole.get_weights(), cut.get_weights(), strict=True)])
    np.testing.assert_allclose(whole(_inputs(fields)), cut(_inputs(fewer)), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in sorted(BUILDS) if name not in ("lr", "acf")])
def test_learns_that_two_signs_must_agree(name: str) -> None:
    # label = sign(a) == sign(b): no first-order model can do better than chance.
    keras.utils.set_random_seed(1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(256, 2, 1))
    vectors = (signs * np.ones((1, 1, WIDTH))).astype(np.float32)
    labels = (signs[:, 0] == signs[:, 1]).astype(np.float32)
    symbols = keras.Input((2, WIDTH))
    one = keras.layers.Lambda(lambda x: tf.ones_like(x[:, :, 0]))(symbols)
    zero = keras.layers.Lambda(lambda x: x[:, 0, :1] * 0.0)(symbols)
    fields = Fields(symbols, one, zero, symbols[:, 0], symbols[:, 1], None, None, None, None, ())
    model = keras.Model(symbols, keras.layers.Dense(1)(BUILDS[name](fields, SMALL)))
    model.compile(keras.optimizers.legacy.Adam(0.02), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(vectors, labels, batch_size=64, epochs=12, verbose=0)
    assert np.mean((model.predict(vectors, verbose=0) > 0) == labels) > 0.95


def test_autoint_starts_with_different_queries_keys_and_values() -> None:
    # One initializer object used four times gives four times the same matrix.
    kernels = [weight.numpy() for weight in _model(autoint.build, _fields()).weights if "kernel_" in weight.name]
    assert len(kernels) == 4
    assert not any(np.array_equal(a, b) for i, a in enumerate(kernels) for b in kernels[i + 1 :])
