"""The loop learns, stops, resumes after a kill, repeats itself; every strategy and precision gives the same."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import ranker
from trainer.data import Split
from trainer.keras_version import keras
from trainer.ranker import Config, build_model, run_fn
from trainer.training import CLICKS, TrainingConfig, auc, fit, is_chief, logloss, make_strategy
from transform.contract import ContractError, parse

ROOT = Path(__file__).parent.parent.parent
CONTRACT = parse("""\
name: pairs
vocabularies: {user_id: {}, video_id: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: clicked, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}
""")
SIZES = {"user_id": 42, "video_id": 42}
SMALL = {"embedding_width": 4, "deep": {"units": [8]}, "embedding_l2": 0.0, "linear_l2": 0.0}


def planted(seed: int, rows: int) -> Split:
    """A user likes the videos of the same parity, and nothing but the pair tells: an exclusive or."""
    random = np.random.default_rng(seed)
    user, video = random.integers(1, 41, rows, dtype=np.int32), random.integers(1, 41, rows, dtype=np.int32)
    columns = {"user_id": user, "video_id": video, "clicked": ((user + video) % 2).astype(np.float32)}
    return Split(CONTRACT, (), {}, rows, columns)


TRAIN, VALID = planted(1, 1200), planted(2, 400)


def train(
    folder: Path, model: dict[str, Any] | None = None, strategy: tf.distribute.Strategy | None = None, **training: Any
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Trains on the planted rows; gives the model and the history."""
    config = TrainingConfig.of({"batch_size": 100, "epochs": 3, "patience": 9, **training}, "training")
    build = partial(build_model, Config.of({**SMALL, **(model or {})}, "model"), CONTRACT, SIZES)
    trained = fit(
        build,
        TRAIN,
        VALID,
        CLICKS,
        config,
        strategy or tf.distribute.get_strategy(),
        str(folder / "checkpoint"),
        str(folder / "run"),
    )
    return trained, json.loads((folder / "run" / "history.json").read_text())


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def validation_auc(model: keras.Model) -> float:
    inputs, label, weight = next(iter(VALID.in_order(VALID.rows)))
    return auc(model(inputs)["score"].numpy(), label.numpy(), weight.numpy())


def test_the_ranker_learns_an_exclusive_or_that_no_linear_model_can(tmp_path: Path):
    config = {"epochs": 15, "learning_rate": 0.02}
    ranker, _ = train(tmp_path / "ranker", **config)
    linear, _ = train(tmp_path / "lr", {"architecture": "lr"}, **config)
    assert validation_auc(ranker) > 0.9
    assert abs(validation_auc(linear) - 0.5) < 0.1


def test_the_best_epoch_is_returned_and_patience_ends_training(tmp_path: Path):
    # lr on an exclusive or learns noise: it soon has no better epoch
    model, history = train(tmp_path, {"architecture": "lr"}, epochs=40, patience=2, learning_rate=0.05)
    aucs = [entry["val_auc"] for entry in history]
    assert len(history) < 40
    assert len(history) - 1 - int(np.argmax(aucs)) == 2
    assert validation_auc(model) == pytest.approx(max(aucs), abs=1e-6)


def test_the_record_holds_every_epoch_and_one_line_is_logged_for_each(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "trainer"):
        _, history = train(tmp_path, epochs=2)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"loss", "auc", "val_loss", "val_auc", "seconds", "rows_per_second"} <= set(history[0])
    lines = [record.getMessage() for record in caplog.records if record.name == "trainer"]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert list((tmp_path / "run").glob("train/events.out.tfevents.*"))


def test_a_seed_repeats_a_training_and_another_does_not(tmp_path: Path):
    model = {"deep": {"units": [8], "dropout": 0.2}, "id_dropout": 0.1}
    first, again, other = (train(tmp_path / name, model, seed=seed)[0] for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    np.testing.assert_allclose(weights(first), weights(again), rtol=0, atol=1e-6)
    assert np.abs(weights(first) - weights(other)).max() > 0.01


DROPOUT = {"deep": {"units": [8], "dropout": 0.3}, "id_dropout": 0.1}
KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/trainer"]
import test_training
from trainer.training import Progress
report, save, validate = Progress._report, Progress.on_train_batch_end, Progress.on_epoch_end
def hang_after_epoch(self, entry):
    report(self, entry)
    if entry["epoch"] == 2 and sys.argv[3] == "epoch":
        print("killable", flush=True)
        time.sleep(600)
def hang_after_step(self, batch, logs=None):
    save(self, batch, logs)
    if self.epoch == 1 and self.steps_done == 10 and sys.argv[3] == "step":
        print("killable", flush=True)
        time.sleep(600)
def hang_before_validation(self, epoch, logs):
    if epoch == 1 and sys.argv[3] == "validation":
        print("killable", flush=True)
        time.sleep(600)
    validate(self, epoch, logs)
Progress._report, Progress.on_train_batch_end = hang_after_epoch, hang_after_step
Progress.on_epoch_end = hang_before_validation
test_training.train(Path(sys.argv[2]), test_training.DROPOUT, epochs=3, checkpoint_steps=int(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, list[dict[str, Any]]]:
    return train(tmp_path_factory.mktemp("whole"), DROPOUT, epochs=3, checkpoint_steps=5)


@pytest.mark.parametrize(("moment", "every", "epochs_before"), [("epoch", 5, 2), ("step", 5, 1), ("validation", 4, 1)])
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: tuple[keras.Model, list[dict[str, Any]]], moment: str, every: int, epochs_before: int
):
    """With dropout; killed after an epoch, within the second one at the 10th of its 12 steps, or after the 12th, which
    `checkpoint_steps` divides, before validation."""
    whole, history = uninterrupted
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path), moment, str(every)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "killable\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = json.loads((tmp_path / "run" / "history.json").read_text())
    resumed, after = train(tmp_path, DROPOUT, epochs=3, checkpoint_steps=every)
    assert len(before) == epochs_before
    assert after[:epochs_before] == before  # their seconds too: these epochs were not run again
    for name in ("loss", "auc", "val_loss", "val_auc"):
        np.testing.assert_allclose([e[name] for e in after], [e[name] for e in history], atol=1e-5)
    np.testing.assert_allclose(weights(resumed), weights(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [({"xla": True}, 1e-3), ({"mixed_precision": "bfloat16"}, 0.03), ({"mixed_precision": "float16"}, 0.01)],
)
def test_compiled_and_16_bit_training_score_as_plain_training(
    tmp_path: Path, setting: dict[str, Any], tolerance: float
):
    plain, _ = train(tmp_path / "plain")
    changed, _ = train(tmp_path / "changed", **setting)
    inputs, _, _ = next(iter(VALID.in_order(VALID.rows)))
    got = changed(inputs)["score"]
    assert got.dtype == tf.float32
    assert {layer.compute_dtype for layer in changed.layers} <= {"float32", "int64", None}
    assert keras.mixed_precision.global_policy().name == "float32"
    np.testing.assert_allclose(got, plain(inputs)["score"], rtol=0, atol=tolerance)


TWO_REPLICAS = """
import sys
from pathlib import Path
import tensorflow as tf
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/trainer"]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_training
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
test_training.train(Path(sys.argv[2]), strategy=strategy)
"""


def test_two_replicas_reach_the_loss_of_one(tmp_path: Path):
    _, one = train(tmp_path / "one")
    subprocess.run([sys.executable, "-c", TWO_REPLICAS, str(ROOT), str(tmp_path / "two")], check=True, timeout=300)
    two = json.loads((tmp_path / "two" / "run" / "history.json").read_text())
    for name in ("loss", "val_loss", "val_auc"):
        np.testing.assert_allclose([e[name] for e in two], [e[name] for e in one], atol=2e-3)


def test_a_mirrored_strategy_of_one_device_is_none(tmp_path: Path):
    strategy = make_strategy(TrainingConfig.of({"strategy": "mirrored"}, "training"))
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    (mirrored, _), (plain, _) = train(tmp_path / "mirrored", strategy=strategy), train(tmp_path / "plain")
    np.testing.assert_allclose(weights(mirrored), weights(plain), atol=1e-5)


@pytest.mark.parametrize(
    ("cluster", "task", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "worker", "index": 0}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "chief", "index": 0}, True),
    ],
)
def test_one_worker_of_a_cluster_writes(monkeypatch: pytest.MonkeyPatch, cluster: Any, task: Any, chief: bool):
    assert is_chief()  # alone
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert is_chief() == chief


def test_a_split_smaller_than_a_batch_still_trains(tmp_path: Path):
    _, history = train(tmp_path, batch_size=5000, epochs=1)
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=0.01)  # one step from scores of about one half


def test_an_undefined_auc_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one_class = replace(VALID, columns={**(VALID.columns or {}), "clicked": np.ones(VALID.rows, np.float32)})
    monkeypatch.setitem(globals(), "VALID", one_class)
    _, history = train(tmp_path, epochs=3, patience=1)
    assert [(entry["val_auc"], entry["best"]) for entry in history] == [(None, True)] * 3


def test_unknown_training_keys_are_refused():
    with pytest.raises(ContractError, match=r"training.epoch: unknown key \(did you mean 'epochs'\?\)"):
        TrainingConfig.of({"epoch": 1}, "training")


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0]), st.floats(0.5, 2)), min_size=2, max_size=20
    ).filter(lambda rows: len({label for _, label, _ in rows}) == 2)
)
@settings(max_examples=50)
def test_auc_is_the_weighted_share_of_pairs_in_the_right_order(rows: list[tuple[int, float, float]]):
    score, label, weight = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = weight[label == 1][:, None] * weight[label == 0]
    difference = score[label == 1][:, None] - score[label == 0]
    expected = (pairs * ((difference > 0) + (difference == 0) / 2)).sum() / pairs.sum()
    assert auc(score, label, weight) == pytest.approx(expected)


def test_logloss_is_the_cross_entropy_of_the_sigmoid():
    # sigmoid(0) = 1/2: ln 2; sigmoid(ln 3) = 3/4, label 0: ln 4; weights 3 and 1
    got = logloss(np.array([0, np.log(3)]), np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    assert got == pytest.approx((3 * np.log(2) + np.log(4)) / 4)


def test_run_fn_writes_a_model_that_beats_chance_and_its_record(world: Any, tmp_path: Path):
    args = world.fn_args
    args.serving_model_dir, args.model_run_dir = str(tmp_path / "model"), str(tmp_path / "run")
    args.custom_config = {
        "contract": world.contract.to_json(),
        "model": {"embedding_width": 4, "deep": {"units": [8]}},
        "training": {"epochs": 12, "batch_size": 24, "learning_rate": 0.02, "patience": 12},
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }
    run_fn(args)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert max(entry["val_auc"] for entry in history) > 0.9
    assert (tmp_path / "model" / "saved_model.pb").is_file()
    assert (tmp_path / "model" / "assets.extra" / "tf_serving_warmup_requests").is_file()
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_an_export_that_came_to_no_end_costs_no_epoch(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = world.fn_args
    args.serving_model_dir, args.model_run_dir = str(tmp_path / "model"), str(tmp_path / "run")
    training = {"epochs": 2, "batch_size": 24}
    args.custom_config = {
        "contract": world.contract.to_json(),
        "model": {"architecture": "lr"},
        "training": training,
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }

    def cut_off(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ranker, "export", cut_off)
        with pytest.raises(OSError, match="no space"):
            run_fn(args)
    before = (tmp_path / "run" / "history.json").read_text()
    assert len(json.loads(before)) == 2
    args.model_run_dir = str(tmp_path / "again")  # TFX's own, for each try
    run_fn(args)
    assert (tmp_path / "again" / "history.json").read_text() == before  # with the seconds: nothing was learned again
    assert (tmp_path / "model" / "saved_model.pb").is_file()
    assert list((tmp_path / "checkpoint").iterdir()) == []
