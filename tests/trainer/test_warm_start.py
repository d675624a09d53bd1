"""A training goes on where an earlier one ended: every id keeps what was learned of it, whatever row it has now."""

from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer import ranker, topic_retrieval
from trainer.data import Split
from trainer.ranker import Config, build_model
from trainer.warm_start import Earlier, keep, seen_in, starting_from
from transform.contract import ContractError
from transform.impressions import vocabulary_entries

SMALL = Config(architecture="wide_and_deep", embedding_width=3, deep={"units": (4,)})
ENTRIES = {
    "user_id": [b"ann", b"bob"],
    "video_id": [b"v1", b"v2", b"v3"],
    "author_id": [b"a1"],
    "word": [b"clip"],
}


class Vocabularies:
    """Stands for what Transform wrote: entries alone."""

    def __init__(self, **entries: list[bytes]) -> None:
        self._entries = {**ENTRIES, **entries}

    def vocabulary_file_by_name(self, name: str) -> str:
        return ""

    def vocabulary_by_name(self, name: str) -> list[bytes]:
        return self._entries[name.removeprefix("vocabulary_")]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(entries) + 2 for name, entries in self._entries.items()}


@pytest.fixture
def earlier(world: Any, tmp_path: Path) -> SimpleNamespace:
    """A model of random weights, and what it left."""
    model = build_model(SMALL, world.contract, Vocabularies().sizes)
    model.set_weights([np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(model.get_weights())])
    keep(model, world.contract, Vocabularies(), str(tmp_path), {"video_id": np.array([0, 1, 0, 1, 0], bool)})
    return SimpleNamespace(model=model, folder=str(tmp_path))


def test_rows_follow_their_ids_and_new_ids_start_as_in_any_training(world: Any, earlier: SimpleNamespace):
    now = Vocabularies(video_id=[b"new", b"v3", b"v1"])
    built = build_model(SMALL, world.contract, now.sizes)
    fresh = built.get_layer("embedding_video_id").get_weights()[0]
    model = starting_from(Earlier(earlier.folder, world.contract, now), lambda: built)()
    before = earlier.model.get_layer("embedding_video_id").get_weights()[0]
    # Before: missing, v1, v2, v3, bucket. Now: missing, new, v3, v1, bucket.
    expected = np.stack([before[0], fresh[1], before[3], before[1], before[4]])
    np.testing.assert_array_equal(model.get_layer("embedding_video_id").get_weights()[0], expected)
    first_order = model.get_layer("linear_video_id").get_weights()[0]
    np.testing.assert_array_equal(
        first_order[[2, 3]], earlier.model.get_layer("linear_video_id").get_weights()[0][[3, 1]]
    )
    np.testing.assert_array_equal(first_order[1], 0)
    for one, other in zip(model.layers, earlier.model.layers, strict=True):
        if "video_id" not in one.name and "history" not in one.name:
            for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
                np.testing.assert_array_equal(mine, theirs, err_msg=one.name)


def test_ids_that_the_training_did_not_see_keep_what_was_learned_of_them(world: Any, earlier: SimpleNamespace):
    """A penalty pulls at every row; here it is played by a model of ones. What nobody ever saw is as any stranger."""
    now = Vocabularies(video_id=[b"new", b"v3", b"v1", b"others know it"])
    trained = build_model(SMALL, world.contract, now.sizes)
    trained.set_weights([np.ones_like(weight) for weight in trained.get_weights()])
    seen = {name: np.ones(rows, bool) for name, rows in now.sizes.items()}
    seen["video_id"] = np.array([True, True, False, True, False, True])
    bucket = trained.get_layer("embedding_video_id").get_weights()[0]
    bucket[5] = 7
    trained.get_layer("embedding_video_id").set_weights([bucket])
    Earlier(earlier.folder, world.contract, now).put_back(trained, seen)
    before = earlier.model.get_layer("embedding_video_id").get_weights()[0]
    one, stranger = np.ones(3), np.full(3, 7.0)
    expected = np.stack([one, one, before[3], one, stranger, stranger])
    np.testing.assert_array_equal(trained.get_layer("embedding_video_id").get_weights()[0], expected)
    assert (trained.get_layer("embedding_user_id").get_weights()[0] == 1).all()


def test_what_a_split_tells_of_is_seen(world: Any):
    columns = {name: values[:1] for name, values in world.transformed.items()}
    (row,) = world.raw[:1]
    seen = seen_in(Split(world.contract, (), {}, 1, columns), world.sizes)
    for vocabulary, given in (("user_id", [row["user_id"]]), ("video_id", [row["video_id"], *row["history"]])):
        entries = vocabulary_entries(vocabulary, world.output)
        names = {entries[i - 1].decode() for i in np.flatnonzero(seen[vocabulary][:-1]) if i}
        assert names == set(given)
        assert seen[vocabulary][-1]  # the bucket, which ids that are dropped out train


def test_marks_follow_their_ids(world: Any, earlier: SimpleNamespace):
    now = Vocabularies(video_id=[b"new", b"v3", b"v1", b"v2"])
    met = Earlier(earlier.folder, world.contract, now).met("video_id", 6)
    assert met.tolist() == [False, False, True, True, False, False]


def test_buckets_of_another_number_start_anew(world: Any, earlier: SimpleNamespace):
    vocabularies = {**world.contract.vocabularies}
    vocabularies["video_id"] = vocabularies["video_id"].model_copy(update={"oov_buckets": 2})
    contract = world.contract.model_copy(update={"vocabularies": vocabularies})
    built = build_model(SMALL, contract, {**Vocabularies().sizes, "video_id": 6})
    fresh = built.get_layer("embedding_video_id").get_weights()[0]
    model = starting_from(Earlier(earlier.folder, contract, Vocabularies()), lambda: built)()
    np.testing.assert_array_equal(model.get_layer("embedding_video_id").get_weights()[0][4:], fresh[4:])


def test_a_model_of_other_settings_or_features_is_refused(world: Any, earlier: SimpleNamespace):
    wider = SMALL.model_copy(update={"embedding_width": 5})
    build = partial(build_model, wider, world.contract, Vocabularies().sizes)
    with pytest.raises(ContractError, match=r"expected a model of the same settings to go on from, .*without --span"):
        starting_from(Earlier(earlier.folder, world.contract, Vocabularies()), build)()
    fewer = tuple(f for f in world.contract.features if f.name != "sound")
    with pytest.raises(ContractError, match="expected a model of the same features"):
        Earlier(earlier.folder, world.contract.model_copy(update={"features": fewer}), Vocabularies())


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (ranker, {"architecture": "mhsa_crossing", "embedding_width": 4}),
        (topic_retrieval, {"embedding_width": 6, "width": 4, "deep": {"units": (5,)}, "index": {"answers": 4}}),
    ],
    ids=["ranker", "retrieval"],
)
def test_a_model_that_learns_next_to_nothing_more_answers_as_the_served_one(
    world: Any, tmp_path: Path, module: ModuleType, settings: dict[str, Any]
):
    def trained(name: str, warm: str, **training: Any) -> np.ndarray:
        fn_args = world.fn_args
        fn_args.custom_config = {
            "contract": world.contract.to_json(),
            "model": settings,
            "training": {"batch_size": 48, **training},
            "checkpoint_dir": str(tmp_path / "checkpoint"),
            "warm_start": warm,
        }
        fn_args.model_run_dir, fn_args.serving_model_dir = str(tmp_path / f"run-{name}"), str(tmp_path / name)
        module.run_fn(fn_args)
        answer = tf.saved_model.load(str(tmp_path / name)).signatures["serving_default"]
        return np.asarray(answer(examples=tf.constant([world.example(row) for row in world.raw[:9]]))[SCORES[module]])

    served = trained("1", "", epochs=4, learning_rate=0.05)
    warm = trained("2", str(tmp_path / "1"), epochs=1, learning_rate=1e-9)
    cold = trained("3", "", epochs=1, learning_rate=1e-9)
    np.testing.assert_allclose(warm, served, atol=1e-4)
    assert np.abs(cold - served).max() > 0.05


SCORES = {ranker: "score", topic_retrieval: "scores"}
