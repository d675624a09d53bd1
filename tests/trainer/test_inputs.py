"""Fields against NumPy, computed from the layers' own weights."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.inputs import build_fields, keras_inputs
from trainer.keras_version import keras
from trainer.ranker import Config

WIDTH = 4
CONFIG = Config(embedding_width=WIDTH)


@pytest.fixture(scope="module")
def computed(world: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """The fields of all rows, every weight by its name, and the names of the features."""
    inputs = keras_inputs(world.contract)
    fields = build_fields(world.contract, inputs, world.sizes, CONFIG)
    outputs = {name: value for name, value in fields._asdict().items() if name != "features"}
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    values = {name: value.numpy() for name, value in model(world.inputs).items()}
    weights = {v.name.removesuffix(":0"): v.numpy() for v in model.weights}
    return values, weights, [f.name for f in fields.features]


def field(computed: Any, name: str) -> np.ndarray:
    values, _, names = computed
    return values["vectors"][:, names.index(name)]


def test_an_id_is_its_embedding(world: Any, computed: Any):
    table = computed[1]["embedding_user_id/embeddings"]
    np.testing.assert_allclose(field(computed, "user_id"), table[world.transformed["user_id"]], rtol=1e-5)
    np.testing.assert_allclose(computed[0]["user"], table[world.transformed["user_id"]], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "vocabulary"), [("followed", "author_id"), ("history", "video_id"), ("title", "word")]
)
def test_a_multi_valued_field_is_the_mean_without_padding(world: Any, computed: Any, name: str, vocabulary: str):
    ids, table = world.transformed[name], computed[1][f"embedding_{vocabulary}/embeddings"]
    expected = [table[row[row > 0]].mean(axis=0) if row.any() else np.zeros(WIDTH) for row in ids]
    np.testing.assert_allclose(field(computed, name), expected, rtol=1e-4, atol=1e-5)
    assert (computed[0]["mask"][:, computed[2].index(name)] == ids.any(axis=1)).all()


def test_history_and_candidate_share_one_table(world: Any, computed: Any):
    table = computed[1]["embedding_video_id/embeddings"]
    np.testing.assert_allclose(computed[0]["video"], table[world.transformed["video_id"]], rtol=1e-5)
    np.testing.assert_allclose(computed[0]["history"], table[world.transformed["history"]], rtol=1e-5)
    assert (computed[0]["history_mask"] == (world.transformed["history"] > 0)).all()


def test_a_number_is_its_value_times_one_vector_and_always_present(world: Any, computed: Any):
    vectors, values = field(computed, "events"), world.transformed["events"]
    reference = np.abs(values).argmax()
    expected = values[:, None] * vectors[reference] / values[reference]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    assert computed[0]["mask"][:, computed[2].index("events")].all()


def test_a_vector_is_projected_and_absent_where_it_is_zeros(world: Any, computed: Any):
    values, weights, names = computed
    look = world.transformed["look"]
    there = look.any(axis=1)
    projected = look @ weights["project_look/kernel"] + weights["project_look/bias"]
    np.testing.assert_allclose(field(computed, "look"), projected * there[:, None], rtol=1e-4, atol=1e-5)
    assert (values["mask"][:, names.index("look")] == there).all()
    assert not there.all()
    np.testing.assert_allclose(values["modalities"][:, 0], field(computed, "look"))
    np.testing.assert_allclose(values["modalities"][:, 1], field(computed, "sound"))


def test_the_linear_part_sums_one_weight_per_raw_value(world: Any, computed: Any):
    values, weights, _ = computed
    expected = np.full(len(world.raw), weights["linear/bias"][0])
    for name in ("user_id", "video_id", "author"):
        expected += weights[f"linear_{name}/embeddings"][world.transformed[name], 0]
    for name in ("followed", "history", "title"):
        table = weights[f"linear_{name}/embeddings"][:, 0]
        expected += [table[row[row > 0]].mean() if row.any() else 0 for row in world.transformed[name]]
    expected += world.transformed["events"] * weights["linear_events/kernel"][0, 0]
    for name in ("look", "sound"):
        expected += world.transformed[name] @ weights[f"linear_{name}/kernel"][:, 0]
    np.testing.assert_allclose(values["linear"][:, 0], expected, rtol=1e-4, atol=1e-4)


def test_an_absent_id_is_masked_whatever_row_zero_holds(world: Any):
    inputs = keras_inputs(world.contract)
    fields = build_fields(world.contract, inputs, world.sizes, CONFIG)
    model = keras.Model(inputs, [fields.user, fields.mask])
    user, mask = model({**world.inputs, "user_id": tf.zeros([len(world.raw)], tf.int64)})
    assert not user.numpy().any()
    assert not mask.numpy()[:, 0].any()


def test_inputs_follow_the_contract(world: Any):
    inputs = keras_inputs(world.contract)
    assert [*inputs] == [f.name for f in world.contract.inputs]
    assert {name: tensor.shape[1:].as_list() for name, tensor in inputs.items() if tensor.shape.rank > 1} == {
        "followed": [3],
        "history": [4],
        "title": [3],
        "look": [3],
        "sound": [2],
    }
