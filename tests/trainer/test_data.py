"""Batches of transformed examples: complete, shuffled by seed and epoch, the same from memory and from disk."""

from typing import Any

import numpy as np
import pytest

from trainer.data import Split, positives, read
from trainer.keras_version import keras
from transform.contract import ContractError

IN_MEMORY, STREAMED = 1e9, 0.0


def load(world: Any, memory_bytes: float) -> Split:
    keras.utils.set_random_seed(0)  # as training does; the global seed must not matter
    spec = world.output.transformed_feature_spec()
    return read(world.fn_args.train_files, spec, world.contract, memory_bytes)


def keys(inputs: dict[str, Any], label: np.ndarray) -> list[tuple[Any, ...]]:
    """A row as one comparable value."""
    columns = [np.asarray(inputs[name]).reshape(len(label), -1).round(4).tolist() for name in sorted(inputs)]
    return list(zip(*[[tuple(row) for row in column] for column in columns], np.asarray(label).tolist(), strict=True))


def epoch_of(split: Split, epoch: int, seed: int = 0) -> list[tuple[Any, ...]]:
    batches = split.epochs(epoch, epoch + 1, batch_size=40, seed=seed, shuffle_rows=100)
    return [key for inputs, label, _ in batches for key in keys(inputs, label.numpy())]


@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, STREAMED])
def test_all_rows_come_in_order_from_memory_and_from_disk(world: Any, memory_bytes: float):
    split = load(world, memory_bytes)
    assert (split.columns is None) == (memory_bytes == STREAMED)
    assert split.rows == len(world.raw)
    got = [key for inputs, label, _ in split.in_order(7) for key in keys(inputs, label.numpy())]
    expected = keys({name: value.numpy() for name, value in world.inputs.items()}, world.transformed["clicked"])
    assert got == expected


@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, STREAMED])
def test_an_epoch_is_a_permutation_decided_by_seed_and_epoch(world: Any, memory_bytes: float):
    split = load(world, memory_bytes)
    first, again = epoch_of(split, 3), epoch_of(split, 3)
    assert first == again
    # 240 rows are 6 batches of 40: nothing is left over
    everything = keys({n: v.numpy() for n, v in world.inputs.items()}, world.transformed["clicked"])
    assert sorted(first) == sorted(everything)
    assert first != epoch_of(split, 4)
    assert first != epoch_of(split, 3, seed=1)


def test_clicks_alone_are_the_same_from_memory_and_from_disk(world: Any):
    """Full batches of clicks, so that how likely a video is to be drawn into one is the share of clicks it has."""
    kept, streamed = (positives(load(world, memory)) for memory in (IN_MEMORY, STREAMED))
    assert streamed.columns is None
    assert kept.rows == streamed.rows == int(world.transformed["clicked"].sum())
    one, other = ([label.numpy() for _, label, _ in s.epochs(0, 2, 16, 0, 100)] for s in (kept, streamed))
    assert [len(label) for label in other] == [len(label) for label in one] == [16] * (2 * (kept.rows // 16))
    assert np.concatenate(other).min() == 1
    in_order = [[key for i, label, _ in s.in_order(7) for key in keys(i, label.numpy())] for s in (kept, streamed)]
    assert in_order[0] == in_order[1]


@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, STREAMED])
def test_epochs_started_later_are_those_of_an_uninterrupted_run(world: Any, memory_bytes: float):
    split = load(world, memory_bytes)
    together = split.epochs(0, 3, batch_size=40, seed=0, shuffle_rows=100)
    rows = [key for inputs, label, _ in together for key in keys(inputs, label.numpy())]
    assert rows[480:] == epoch_of(split, 2)
    resumed = split.epochs(1, 3, batch_size=40, seed=0, shuffle_rows=100, skip=2)
    assert rows[320:] == [key for inputs, label, _ in resumed for key in keys(inputs, label.numpy())]


@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, STREAMED])
def test_answers_are_the_labels_and_weights_in_order(world: Any, memory_bytes: float):
    labels, weights = load(world, memory_bytes).answers()
    np.testing.assert_array_equal(labels, world.transformed["clicked"])
    np.testing.assert_array_equal(weights, np.ones(len(world.raw)))


def test_batches_have_full_size_and_the_leftover_changes(world: Any):
    split = load(world, IN_MEMORY)
    sizes = [len(label) for _, label, _ in split.epochs(0, 2, batch_size=100, seed=0, shuffle_rows=100)]
    assert sizes == [100, 100, 100, 100]  # 40 rows left over in each of two epochs


def test_inputs_are_int64_and_unweighted_rows_weigh_one(world: Any):
    inputs, label, weight = next(iter(load(world, IN_MEMORY).in_order(5)))
    assert {name: str(inputs[name].dtype.name) for name in ("history", "events")} == {
        "history": "int64",
        "events": "float32",
    }
    assert weight.numpy().tolist() == [1.0] * 5
    assert label.dtype.name == "float32"


def test_no_files_are_one_clear_error(world: Any):
    with pytest.raises(ContractError, match=r"expected transformed examples in /nowhere/\*, got 0 files with 0 rows"):
        read(["/nowhere/*"], world.output.transformed_feature_spec(), world.contract, IN_MEMORY)
