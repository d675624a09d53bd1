"""The assembled ranker: what each switch does, what it learns, what a user gets wrong."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.keras_version import keras
from trainer.ranker import BASELINES, Config, build_model
from transform.contract import TOPICS, ContractError, load


def layers_of(model: keras.Model) -> set[str]:
    return {type(layer).__name__ for layer in model.layers}


def scores(model: keras.Model, inputs: dict[str, tf.Tensor]) -> np.ndarray:
    return model(inputs)["score"].numpy()


def randomise(model: keras.Model) -> None:
    random = np.random.default_rng(0)
    model.set_weights([random.normal(scale=0.5, size=w.shape) for w in model.get_weights()])


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"attention": None}, {"MultiHeadSelfAttention"}),
        ({"crossing": None}, {"AttentionCrossing"}),
        ({"deep": None}, set()),
        ({"linear": False}, {"BiasedSum"}),
        ({"modality": "concat"}, {"UserGuidedAttention"}),
        ({"modality": "none"}, {"UserGuidedAttention"}),
    ],
)
def test_a_switch_takes_its_part_out_of_the_graph(world: Any, switch: dict[str, Any], gone: set[str]):
    full = build_model(Config(), world.contract, world.sizes)
    reduced = build_model(Config.of(switch, "model"), world.contract, world.sizes)
    assert gone <= layers_of(full)
    assert not gone & layers_of(reduced)
    assert reduced.count_params() != full.count_params()


@pytest.mark.parametrize("architecture", ["mhsa_crossing", *BASELINES])
def test_topics_are_a_feature_of_every_ranker(architecture: str):
    contract = load("microvideo")
    sizes = dict.fromkeys(contract.vocabularies, 12)
    model = build_model(Config(architecture=architecture), contract, sizes)
    randomise(model)
    shapes = {name: (1, *tensor.shape[1:]) for name, tensor in zip(model.input_names, model.inputs, strict=True)}
    inputs = {
        name: tf.ones(shapes[name], model.input[name].dtype) if name != "topics" else tf.zeros(shapes[name], tf.int64)
        for name in shapes
    }
    (topics,) = (f.name for f in contract.inputs if f.source == TOPICS)
    pair = tf.constant([[3, 5] + [0] * (shapes[topics][1] - 2)], tf.int64)
    logit = keras.Model(model.inputs, model.get_layer("logit").output)
    answers = [float(logit({**inputs, topics: given})[0, 0]) for given in (inputs[topics], pair, pair[:, ::-1])]
    assert abs(answers[0] - answers[1]) > 1e-3
    np.testing.assert_allclose(answers[1], answers[2], rtol=1e-5)  # their order does not matter


def test_the_low_order_form_is_one_weighted_sum_of_both_representations(world: Any):
    # eq. 1: N = 9 fields less 2 modalities plus the fused one = 8; S has 8 * 2 heads * 3 = 48 values, P has D = 5
    attention = {"width": 3, "residual": "projected"}
    config = Config.of({"linear": False, "deep": None, "embedding_width": 5, "attention": attention}, "model")
    model = build_model(config, world.contract, world.sizes)
    kernels = [layer.kernel.shape.as_list() for layer in model.layers if type(layer) is keras.layers.Dense]
    assert [shape for shape in kernels if shape[1] == 1] == [[48 + 5, 1]]


def test_all_pairs_may_go_on_instead_of_their_sum(world: Any):
    model = build_model(
        Config.of({"crossing": {"output": "pairs"}, "deep": None}, "model"), world.contract, world.sizes
    )
    # 8 fields: 28 pairs of width 16, and S of 8 * 16
    kernels = [layer.kernel.shape.as_list() for layer in model.layers if type(layer) is keras.layers.Dense]
    assert [28 * 16 + 8 * 16, 1] in kernels


@pytest.mark.parametrize(
    ("config", "feature", "matters"),
    [
        ({}, "followed", True),
        ({"social": False}, "followed", False),
        ({}, "look", True),
        ({"modality": "none"}, "look", False),
        ({"modality": "concat"}, "look", True),
    ],
)
def test_a_feature_switched_off_does_not_change_the_score(
    world: Any, config: dict[str, Any], feature: str, matters: bool
):
    model = build_model(Config.of(config, "model"), world.contract, world.sizes)
    randomise(model)
    without = {**world.inputs, feature: tf.zeros_like(world.inputs[feature])}
    assert (np.abs(scores(model, world.inputs) - scores(model, without)).max() > 1e-4) == matters


def test_modality_weights_are_answered_only_where_modalities_are_attended(world: Any):
    answer = build_model(Config(), world.contract, world.sizes)(world.inputs)
    there = np.stack([world.transformed[name].any(axis=1) for name in ("look", "sound")], axis=1)
    assert answer["modality_weights"].shape == (len(world.raw), 2)
    assert ((answer["modality_weights"].numpy() > 0) == there).all()
    for config in ({"modality": "concat"}, {"architecture": "fm"}):
        assert list(build_model(Config.of(config, "model"), world.contract, world.sizes)(world.inputs)) == ["score"]


def test_target_attention_makes_the_order_of_interest_depend_on_the_candidate(world: Any):
    model = build_model(Config(history="target_attention"), world.contract, world.sizes)
    assert "TargetAttention" in layers_of(model)
    randomise(model)
    empty = {**world.inputs, "history": tf.zeros_like(world.inputs["history"])}
    assert np.isfinite(scores(model, empty)).all()


def test_a_model_comes_back_from_disk_with_equal_scores(world: Any, tmp_path: Path):
    model = build_model(Config(id_dropout=0.1, history="target_attention"), world.contract, world.sizes)
    randomise(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(scores(model, world.inputs), scores(again, world.inputs))


@pytest.mark.parametrize("architecture", ["mhsa_crossing", *BASELINES])
def test_every_architecture_scores_between_zero_and_one(world: Any, architecture: str):
    got = scores(build_model(Config(architecture=architecture), world.contract, world.sizes), world.inputs)
    assert got.shape == (len(world.raw),)
    assert ((got > 0) & (got < 1)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crosing": None}, "model.crosing: unknown key (did you mean 'crossing'?): allowed are architecture"),
        ({"deep": {"unit": [1]}}, "model.deep.unit: unknown key (did you mean 'units'?): allowed are units, dropout"),
        ({"deep": {"dropout": 1}}, "model.deep.dropout: Input should be less than 1, got 1"),
        ({"architecture": "mhsa"}, "model.architecture: expected one of mhsa_crossing, lr"),
    ],
)
def test_a_wrong_config_is_refused_with_the_remedy(given: dict[str, Any], message: str):
    with pytest.raises(ContractError, match=re.escape(message)):
        Config.of(given, "model")
