"""The training loop of all ranking models: strategy, precision, early stopping, resume, records of progress."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from pydantic import Field

from trainer.data import Split
from trainer.keras_version import keras
from trainer.settings import Settings

log = logging.getLogger("trainer")


class TrainingConfig(Settings):
    """How a model is trained.

    Attributes:
        epochs: At most so many.
        batch_size: Rows a step, over all replicas.
        learning_rate: Of Adam.
        patience: Stop after so many epochs without a better validation AUC.
        seed: Decides initial weights, order and dropout.
        mixed_precision: Compute in a 16-bit type (variables stay float32; what is exported computes in float32).
        xla: Compile the training step.
        strategy: One device, all local devices, or all workers of TF_CONFIG.
        steps_per_execution: Steps between two returns to Python.
        shuffle_rows: Buffer that shuffles a split too large for memory.
        memory_gigabytes: What the parsed training split may take before it is streamed.
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    patience: int = Field(default=2, ge=1)
    seed: int = 0
    mixed_precision: Literal["none", "bfloat16", "float16"] = "none"
    xla: bool = False
    strategy: Literal["none", "mirrored", "multi_worker"] = "none"
    steps_per_execution: int = Field(default=16, ge=1)
    shuffle_rows: int = Field(default=200_000, ge=1)
    memory_gigabytes: float = Field(default=4.0, ge=0)

    @property
    def memory_bytes(self) -> float:
        """`memory_gigabytes` in bytes."""
        return self.memory_gigabytes * 2**30


def make_strategy(config: TrainingConfig) -> tf.distribute.Strategy:
    """The strategy of `config`; to be called before anything else that computes, as multi-worker training demands."""
    if config.strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    if config.strategy == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief() -> bool:
    """Whether this process is the one that writes: alone, or the first of the workers in TF_CONFIG."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return resolver.task_type in (None, "", "chief") or (
        resolver.task_type == "worker" and resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


def fit(
    build: Callable[[], keras.Model],
    train: Split,
    valid: Split,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    checkpoint_dir: str,
    run_dir: str,
) -> keras.Model:
    """Trains a model and returns it with the weights of its best epoch.

    A training that was killed goes on, when called again with the same arguments, after the last epoch it had finished;
    without dropout it then gives what it would have given.

    Args:
        build: Makes the model; its layer `logit` gives the logit [B, 1].
        train: Rows to learn from.
        valid: Rows that decide when to stop and which weights are best.
        config: How.
        strategy: From `make_strategy`.
        checkpoint_dir: Where unfinished training is kept; cleared at the end.
        run_dir: Where TensorBoard's records and `history.json` go.

    Returns:
        A new model, without traces of strategy and precision.
    """
    keras.utils.set_random_seed(config.seed)
    batch_size = min(config.batch_size, train.rows)
    steps = train.rows // batch_size
    with _precision(config), strategy.scope():
        model = build()
        trainable = _Trainable(model.inputs, model.get_layer("logit").output)
        trainable.compile(
            optimizer=_optimizer(config),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            weighted_metrics=[keras.metrics.AUC(name="auc", from_logits=True)],
            jit_compile=config.xla,
            steps_per_execution=min(config.steps_per_execution, steps),
        )
        trainable.optimizer.build(trainable.trainable_variables)
    progress = Progress(trainable, valid, config, steps * batch_size, checkpoint_dir, run_dir)
    if not progress.finished:
        batches = train.epochs(progress.epoch, config.epochs, batch_size, config.seed, config.shuffle_rows)
        callbacks = [progress, keras.callbacks.TensorBoard(run_dir)]
        trainable.fit(
            batches,
            initial_epoch=progress.epoch,
            epochs=config.epochs,
            steps_per_epoch=steps,
            callbacks=callbacks,
            verbose=0,
        )
    best = build()
    best.set_weights(progress.best_weights)
    progress.clear()
    return best


class _Trainable(keras.Model):
    """Keras's own steps without AutoGraph: nothing in them needs it, and converting all of tf_keras takes 10 s or more.

    AutoGraph leaves Keras alone where it is called `keras`; it does not know the package `tf_keras`.
    """

    train_step = tf.autograph.experimental.do_not_convert(keras.Model.train_step)
    predict_step = tf.autograph.experimental.do_not_convert(keras.Model.predict_step)


class Progress(keras.callbacks.Callback):
    """Validates after each epoch, keeps the best weights, stops early, records, and saves all that to resume.

    Keras has callbacks for each of these, but its BackupAndRestore forgets what EarlyStopping knows (the best weights
    and how long ago they were), so that a resumed training would end elsewhere than an uninterrupted one.
    """

    def __init__(
        self, model: keras.Model, valid: Split, config: TrainingConfig, rows: int, checkpoint_dir: str, run_dir: str
    ) -> None:
        super().__init__()
        self.config, self.rows, self.checkpoint_dir, self.run_dir = config, rows, checkpoint_dir, run_dir
        batches = valid.in_order(4 * config.batch_size)
        self.inputs = batches.map(lambda inputs, label, weight: inputs)
        answers = list(batches.map(lambda inputs, label, weight: (label, weight)).as_numpy_iterator())
        self.labels, self.weights = (np.concatenate(part) for part in zip(*answers, strict=True))
        with tf.device("CPU"):
            self.best = [tf.Variable(value, trainable=False) for value in model.get_weights()]
            self.history_json = tf.Variable("[]", dtype=tf.string, trainable=False)
        state = tf.train.Checkpoint(model=model, best=self.best, history=self.history_json)
        # Every worker takes part in saving, but only the chief's files count.
        directory = checkpoint_dir if is_chief() else f"{checkpoint_dir}/not_chief"
        self.manager = tf.train.CheckpointManager(state, directory, max_to_keep=1)
        saved = tf.train.latest_checkpoint(checkpoint_dir)
        if saved:
            state.restore(saved).assert_existing_objects_matched()
            log.info("resuming after epoch %d", self.epoch)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per finished epoch."""
        return list(json.loads(self.history_json.numpy()))

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or patience is at its end."""
        history = self.history
        best = max((i for i, entry in enumerate(history) if entry["best"]), default=len(history))
        return len(history) >= self.config.epochs or len(history) - 1 - best >= self.config.patience

    @property
    def best_weights(self) -> list[np.ndarray]:
        """Weights of the epoch with the highest validation AUC."""
        return [variable.numpy() for variable in self.best]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Validates, then saves everything in one checkpoint: a kill at any moment leaves the last one whole."""
        seconds = time.perf_counter() - self.started
        logits = np.ravel(self.model.predict(self.inputs, verbose=0)).astype(np.float64)
        logs["val_loss"] = logloss(logits, self.labels, self.weights)
        logs["val_auc"] = auc(logits, self.labels, self.weights)
        history = self.history
        best_before = max((entry["val_auc"] for entry in history if entry["val_auc"] is not None), default=-math.inf)
        # Where the AUC is not defined (one class only), the latest weights count as the best.
        improved = not logs["val_auc"] <= best_before
        if improved:
            for variable, value in zip(self.best, self.model.get_weights(), strict=True):
                variable.assign(value)
        entry = {"epoch": epoch + 1, **{name: _json_number(value) for name, value in logs.items()}}
        entry |= {"seconds": round(seconds, 3), "rows_per_second": round(self.rows / seconds), "best": improved}
        self.history_json.assign(json.dumps([*history, entry]))
        self.manager.save()
        self._report(entry)
        self.model.stop_training = self.finished

    def clear(self) -> None:
        """Removes the checkpoint of a training that is done."""
        if is_chief() and tf.io.gfile.exists(self.checkpoint_dir):
            tf.io.gfile.rmtree(self.checkpoint_dir)

    def _report(self, entry: dict[str, Any]) -> None:
        values = [
            f"{name} {entry[name]:.4f}" for name in ("loss", "auc", "val_loss", "val_auc") if entry[name] is not None
        ]
        log.info(
            "epoch %d/%d  %s  %s rows/s",
            entry["epoch"],
            self.config.epochs,
            "  ".join(values),
            entry["rows_per_second"],
        )
        if is_chief():
            tf.io.gfile.makedirs(self.run_dir)
            with tf.io.gfile.GFile(f"{self.run_dir}/history.json", "w") as file:
                file.write(self.history_json.numpy().decode())


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Area under the ROC curve, exact: the share of (positive, negative) pairs in the right order, ties counting half.

    Args:
        scores: [rows].
        labels: [rows] of 0 and 1.
        weights: [rows].

    Returns:
        0 to 1; NaN where one class is absent.
    """
    _, rank = np.unique(scores, return_inverse=True)
    positive = np.bincount(rank, weights * labels)
    negative = np.bincount(rank, weights * (1 - labels))
    pairs = positive.sum() * negative.sum()
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs) if pairs else math.nan


def logloss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of the binary cross-entropy in nats; arguments as in `auc`."""
    return float(np.average(np.logaddexp(0, logits) - labels * logits, weights=weights))


def _optimizer(config: TrainingConfig) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(config.learning_rate)


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


@contextmanager
def _precision(config: TrainingConfig) -> Iterator[None]:
    """Keras's precision policy is global: set while the model is made, and put back."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(
        "float32" if config.mixed_precision == "none" else f"mixed_{config.mixed_precision}"
    )
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
