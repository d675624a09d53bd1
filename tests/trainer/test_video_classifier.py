"""The video classifier: motion and sound where they matter, absent modalities, its losses, its outputs."""

import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.protocols.clip_sets import classify, moving, sounding, train
from trainer.keras_version import keras
from trainer.layers.private_shared import divergence
from trainer.video_classifier import Config, build_model, losses
from transform.clip_settings import ClipSettings
from transform.contract import ContractError

CLIPS = ClipSettings(frames=8, size=16, sound_steps=4, mels=8, flow=True)
SIZES = {"title": 10, "primary_category": 3, "secondary_category": 4}
SMALL: dict[str, Any] = {"filters": (4, 8), "sound_filters": (4, 8), "width": 8, "title_width": 4, "clusters": 2}
MUTE = Config(filters=(8, 16), sound_filters=None, title_width=None, width=16, clusters=2, dropout=0.0)


def config(**changes: Any) -> Config:
    return Config.of({**SMALL, **changes}, "model")


def build(settings: Config, seed: int = 0, classes: int = 3) -> keras.Model:
    """Random weights everywhere, also where training starts from zeros."""
    keras.utils.set_random_seed(seed)
    model = build_model(settings, CLIPS, {**SIZES, "primary_category": classes})
    for layer in model.layers:
        for name in ("bias", "kernel"):
            variable = getattr(layer, name, None)
            if isinstance(variable, tf.Variable) and not variable.numpy().any():
                variable.assign(np.random.default_rng(seed).normal(size=variable.shape))
    return model


def some(n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.integers(0, 256, (n, 8, 16, 16, 3), dtype=np.uint8),
        "flow": rng.uniform(-1, 1, (n, 8, 16, 16, 2)).astype(np.float32),
        "sound": rng.uniform(-1, 1, (n, 8, 4, 8)).astype(np.float32),
        "has_audio": np.ones(n, bool),
        "title": rng.integers(1, 10, (n, 4)),
    }


def answer(model: keras.Model, inputs: dict[str, np.ndarray], training: bool = False) -> dict[str, np.ndarray]:
    out = model({name: tf.constant(inputs[name]) for name in model.input_names}, training=training)
    return {name: value.numpy() for name, value in out.items()}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("changes", [{"visual": "c2d", "scene": {"scenes": 5}}, {"visual": "i3d", "two_stream": True}])
def test_a_classifier_with_scenes_or_two_inflated_streams_learns_in_all_its_parts(changes: dict[str, Any]):
    clips, settings = ClipSettings(frames=8, size=32, sound_steps=4, mels=8, flow=True), config(**changes)
    keras.utils.set_random_seed(0)
    model = build_model(settings, clips, SIZES)
    large = {name: tf.repeat(tf.repeat(some()[name], 2, 2), 2, 3) for name in ("frames", "flow")}
    inputs = {name: {**some(), **large}[name] for name in model.input_names}
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True)
        loss = losses(settings, inputs, outputs, {"primary_category": np.array([0, 1, 2])})["loss"]
    np.testing.assert_allclose(tf.reduce_sum(outputs["probabilities"], axis=1), 1, rtol=1e-5)
    assert outputs["behaviour"].shape == (3, 3)
    gradients = tape.gradient(loss, model.trainable_variables)
    untouched = [v.name for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None]
    assert untouched == []


@pytest.mark.parametrize("visual", ["conv3d", "c2d"])
def test_outputs_have_the_promised_shapes(visual: str):
    got = answer(build(config(visual=visual, two_stream=True, secondary=0.5)), some())
    assert {name: value.shape for name, value in got.items()} == {
        **dict.fromkeys(("probabilities", "logits", "behaviour"), (3, 3)),
        **dict.fromkeys(("secondary", "secondary_logits"), (3, 4)),
        **dict.fromkeys(("visual", "audio", "text", "fused", "frame_attention"), (3, 8)),
        "frame_vectors": (3, 8, 8),
    }
    for name in ("probabilities", "secondary", "frame_attention"):
        np.testing.assert_allclose(got[name].sum(axis=1), 1, rtol=1e-5)


def test_frames_of_one_time_step_share_its_weight_and_vector():
    got = answer(build(config()), some())  # two blocks: one step is two frames
    np.testing.assert_array_equal(got["frame_attention"][:, ::2], got["frame_attention"][:, 1::2])
    np.testing.assert_array_equal(got["frame_vectors"][:, ::2], got["frame_vectors"][:, 1::2])
    assert np.ptp(got["frame_attention"], axis=1).min() > 1e-4


def test_what_stands_in_the_place_of_absent_sound_does_not_count():
    model, clips = build(config()), some()
    clips["has_audio"] = np.array([True, False, True])
    other = {**clips, "sound": clips["sound"].copy()}
    other["sound"][1] = 1e3
    for training in (False, True):
        keras.utils.set_random_seed(1)
        left = answer(model, clips, training)
        keras.utils.set_random_seed(1)
        assert_equal(left, answer(model, other, training))
    assert not left["audio"][1].any()
    assert left["audio"][[0, 2]].all()


def test_an_empty_title_has_no_vector_and_padding_changes_nothing():
    model, clips = build(config()), some()
    clips["title"][0] = 0
    padded = {**clips, "title": np.pad(clips["title"], [(0, 0), (0, 3)])}
    got = answer(model, clips)
    assert_equal(got, answer(model, padded))
    assert not got["text"][0].any()
    assert got["text"][1:].any(axis=1).all()


def test_modalities_that_are_switched_off_are_zeros():
    model = build(config(sound_filters=None, title_width=None))
    assert model.input_names == ["frames"]
    got = answer(model, some())
    assert not got["audio"].any()
    assert not got["text"].any()
    assert got["visual"].any()


def test_a_clip_is_answered_alike_alone_and_in_a_batch():
    model, clips = build(config(two_stream=True)), some()
    whole = answer(model, clips)
    parts = [answer(model, {name: value[i : i + 1] for name, value in clips.items()}) for i in range(3)]
    assert_equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_the_2d_baseline_is_blind_to_the_order_of_frames():
    clips = some()
    reverse = {**clips, "frames": clips["frames"][:, ::-1]}
    for visual, blind in (("c2d", True), ("conv3d", False)):
        model = build(config(visual=visual))
        difference = answer(model, clips)["logits"] - answer(model, reverse)["logits"]
        assert (np.abs(difference).max() < 1e-4) == blind


@pytest.mark.parametrize("changes", [{}, {"visual": "c2d", "two_stream": True, "secondary": 0.5}])
def test_a_model_comes_back_from_disk_with_equal_answers(changes: dict[str, Any], tmp_path: Any):
    model = build(config(**changes))
    model.save(tmp_path / "model.keras")
    assert_equal(answer(model, some()), answer(keras.models.load_model(tmp_path / "model.keras"), some()))


@pytest.fixture
def bfloat16() -> Iterator[None]:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("bfloat16")
def test_under_mixed_precision_answers_and_losses_stay_float32():
    model, clips = build(config(two_stream=True)), some()
    got = answer(model, clips)
    assert {value.dtype for value in got.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(got["frame_attention"].sum(axis=1), 1, rtol=1e-5)
    parts = losses(config(two_stream=True), clips, got, {"primary_category": np.array([0, 1, 2])})
    assert all(np.isfinite(part) and part.dtype == tf.float32 for part in parts.values())


def test_the_loss_is_the_weighted_sum_of_its_parts():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).astype(np.float32)
    behaviour = np.array([[1, 0.5, 0.5], [1, 0.5, 0.5], [0.5, 1, 0.5]], np.float32)  # two streams: rows sum to 2
    visual, audio = np.zeros([3, 4], np.float32), np.array([[0, 0, 2, 0], [0] * 4, [9] * 4], np.float32)
    outputs = {"logits": logits, "behaviour": behaviour, "secondary_logits": np.zeros([3, 4], np.float32)}
    outputs |= {"visual": visual, "audio": audio}
    labels = {"primary_category": np.array([0, 1, -1]), "secondary_category": np.array([3, -1, -1])}
    settings = config(secondary=0.5, behaviour=0.25, similarity=0.1, difference=0.2)
    got = losses(
        settings, {"has_audio": np.array([True, True, False])}, outputs, labels, np.array([2.0, 1, 1], np.float32)
    )
    # Q of the first clip's shared audio (2, 0): (e^2, 1) / (e^2 + 1); P = (1/2, 1/2)
    q = np.array([np.e**2, 1]) / (np.e**2 + 1)
    bits = (0.5 * np.log2(0.5 / q)).sum()
    expected = {
        "cross_entropy": (2 * np.log(2) - np.log(0.8)) / 2,  # weights 2 and 1, two known labels
        "secondary": np.log(4),
        "behaviour": (2 * np.log(2) - np.log(0.25)) / 2,
        "similarity": 4 / (2 * 2),
        "difference": 1 + (2**-bits + 1) / 2,
    }
    weights = {"cross_entropy": 1, "secondary": 0.5, "behaviour": 0.25, "similarity": 0.1, "difference": 0.2}
    expected["loss"] = sum(weights[name] * value for name, value in expected.items())
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"visul": "c2d"}, r"model\.visul: unknown key \(did you mean 'visual'\?\)"),
        ({"scene": {"scene": 3}}, r"model\.scene\.scene: unknown key \(did you mean 'scenes'\?\)"),
        ({"rgb_checkpoint": "x"}, "checkpoints are of `visual: i3d`"),
        ({"visual": "i3d", "flow_checkpoint": "x"}, "flow_checkpoint needs `two_stream: true`"),
        ({"width": 7}, "multiple of 2"),
        ({"filters": ()}, r"model\.filters: .*at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ContractError, match=message):
        Config.of(given, "model")


def test_clips_that_lack_what_the_model_needs_are_refused():
    with pytest.raises(ContractError, match="expected clips with optical flow"):
        build_model(config(two_stream=True), ClipSettings(size=32), SIZES)
    with pytest.raises(ContractError, match="frames of at least 32 pixels, got size 16"):
        build_model(config(visual="i3d"), CLIPS, SIZES)


def trained(settings: Config, inputs: dict[str, np.ndarray], labels: np.ndarray, epochs: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build_model(settings, CLIPS, {**SIZES, "primary_category": 2})
    list(train(model, settings, inputs, labels, epochs, seed=0))
    return model


def test_classes_that_differ_in_motion_only_need_the_third_dimension():
    clips, labels = moving(0, 96, 8, 16)
    unseen, answers = moving(1, 64, 8, 16)
    flat = MUTE.model_copy(update={"visual": "c2d"})
    assert (classify(trained(MUTE, clips, labels, 10), unseen) == answers).mean() >= 0.9
    assert 0.35 <= (classify(trained(flat, clips, labels, 10), unseen) == answers).mean() <= 0.65


def test_classes_that_differ_in_sound_only_need_the_audio_branch():
    clips, labels = sounding(0, 96, 8, 16, 4, 8)
    unseen, answers = sounding(1, 64, 8, 16, 4, 8)
    heard = MUTE.model_copy(update={"sound_filters": (8, 16)})
    assert (classify(trained(heard, clips, labels, 6), unseen) == answers).mean() >= 0.9
    assert 0.35 <= (classify(trained(MUTE, clips, labels, 6), unseen) == answers).mean() <= 0.65


def test_trained_shared_vectors_of_a_clip_agree_and_private_ones_differ_from_them():
    (clips, labels), (unseen, answers) = both(0), both(1)
    distances, divergences = {}, {}
    for weight in (0.1, 0.0):
        settings = MUTE.model_copy(update={"sound_filters": (8, 16), "similarity": weight, "difference": weight})
        out = answer(trained(settings, clips, labels, 18), unseen)
        private, shared = zip(*(np.split(out[m], 2, axis=1) for m in ("visual", "audio")), strict=True)
        distance = np.linalg.norm(shared[0][:, np.newaxis] - shared[1], axis=2)
        distances[weight] = distance.diagonal().mean() / distance[answers[:, np.newaxis] != answers].mean()
        divergences[weight] = [float(np.mean(divergence(p, s))) for p, s in zip(private, shared, strict=True)]
    # a clip's picture and sound against the picture of one clip and the sound of another, of the other class
    assert distances[0.1] < 0.5
    assert distances[0.0] > 0.8
    assert min(divergences[0.1]) > 2 * max(divergences[0.0])


def both(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Clips whose motion and sound tell the same class."""
    sound, labels = sounding(seed, 96, 8, 16, 4, 8)
    return {**sound, **moving(seed, 96, 8, 16)[0]}, labels


@pytest.mark.slow
def test_a_training_step_of_i3d_on_full_clips_fits_in_24_gib():
    settings = Config(visual="i3d", sound_filters=None, title_width=None)
    model = build_model(settings, ClipSettings(), {"primary_category": 2})
    clip = {"frames": np.random.default_rng(0).integers(0, 256, (1, 32, 224, 224, 3), dtype=np.uint8)}
    before = [variable.numpy() for variable in model.trainable_variables]
    list(train(model, settings, clip, np.array([1]), epochs=1, seed=0))
    assert all((a != b.numpy()).any() for a, b in zip(before, model.trainable_variables, strict=True))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 24  # measured: 1.6 GiB
