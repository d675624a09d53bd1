"""The training loop of all models: strategy, precision, early stopping, exact resume, records of progress."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import tensorflow as tf
from pydantic import Field
from sklearn.metrics import roc_auc_score

from trainer.keras_version import keras
from trainer.settings import Settings

log = logging.getLogger("trainer")


class TrainingConfig(Settings):
    """How a model is trained.

    Attributes:
        epochs: At most so many.
        batch_size: Rows a step, over all replicas.
        learning_rate: Of Adam.
        patience: Stop after so many epochs without a better validation (see `Objective.best`).
        checkpoint_steps: Steps between two checkpoints within an epoch; there is one after each epoch too.
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
    checkpoint_steps: int = Field(default=1000, ge=1)
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

    @property
    def validation_batch_size(self) -> int:
        """Rows that are scored at once; without gradients they need less memory."""
        return 4 * self.batch_size


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


def resumable_folder(fn_args: Any, *splits: Rows, also: Sequence[str] = ()) -> str:
    """Where the training that TFX asks for keeps its checkpoints: of the very same work only.

    Other data, features or settings have their own folder below `custom_config["checkpoint_dir"]`, and start afresh.

    Args:
        fn_args: TFX's FnArgs.
        splits: What is learned from.
        also: What else is read, by file or pattern.
    """
    given = fn_args.custom_config
    files = [*(split.files for split in splits), *([list(also)] if also else [])]
    same = json.dumps([given, fn_args.transform_graph_path, *files], sort_keys=True)
    return f"{given['checkpoint_dir']}/{hashlib.sha256(same.encode()).hexdigest()[:16]}"


@contextmanager
def until_exported(checkpoint_dir: str, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within, a model is trained and exported; then its checkpoint is removed, so that a kill before costs no epoch.

    Workers leave together: one that had ended would not be there for a chief that has to start again.
    """
    yield
    _wait_for_all(strategy)
    if is_chief() and tf.io.gfile.exists(checkpoint_dir):
        tf.io.gfile.rmtree(checkpoint_dir)
    _wait_for_all(strategy)


def _wait_for_all(strategy: tf.distribute.Strategy) -> None:
    strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.ones([])), axis=None)


class Rows(Protocol):
    """One split of examples, as training reads it: `trainer.data.Split`, or clips."""

    @property
    def files(self) -> tuple[str, ...]:
        """Its TFRecord files."""

    @property
    def rows(self) -> int:
        """How many examples an epoch has."""

    def epochs(
        self, first: int, last: int, batch_size: int, seed: int, shuffle_rows: int, skip: int = 0
    ) -> tf.data.Dataset:
        """Batches of (inputs, label, weight), as `trainer.data.Split.epochs` says."""

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """All rows once, in order, as batches of (inputs, label, weight)."""

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and weights of all rows, in order."""


Tensors = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
        logits: The layer whose output joins the model's outputs as `logits`.
        loss: (inputs, outputs, labels, weights) of a batch to the mean loss, regularisation apart.
        metric: Makes the metric that is kept while training, of labels and logits; its name is `best`.
        label: From the labels of a batch to those of the metric.
        measure: (logits, labels, weights) of all validation rows to what is recorded, with `loss` and `best` in it.
        best: The entry of `measure` by which the best epoch is chosen; larger is better.
    """

    logits: str
    loss: Callable[[Tensors, Tensors, Any, tf.Tensor], tf.Tensor]
    metric: Callable[[], keras.metrics.Metric]
    label: Callable[[Any], tf.Tensor]
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]
    best: str


def fit(
    build: Callable[[], keras.Model],
    train: Rows,
    valid: Rows,
    objective: Objective,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    checkpoint_dir: str,
    run_dir: str,
) -> keras.Model:
    """Trains a model and returns it with the weights of its best epoch.

    A training that was killed goes on, when called again with the same arguments, after its last checkpoint, and ends
    as it would have ended: batches, dropout, optimizer and running metrics are those of an uninterrupted training.

    Args:
        build: Makes the model, whose outputs are a mapping.
        train: Rows to learn from.
        valid: Rows that decide when to stop and which weights are best.
        objective: Loss and metrics.
        config: How.
        strategy: From `make_strategy`.
        checkpoint_dir: Where the training is kept, also when it is done: see `until_exported`.
        run_dir: Where TensorBoard's records and `history.json` go.

    Returns:
        A new model, without traces of strategy and precision.
    """
    keras.utils.set_random_seed(config.seed)
    build = tf.autograph.experimental.do_not_convert(build)
    batch_size = min(config.batch_size, train.rows)
    steps = train.rows // batch_size
    with _precision(config), _saved_randomness(), strategy.scope():
        model = build()
        trainable = _Trainable.of(model, objective)
        trainable.compile(
            optimizer=_optimizer(config),
            jit_compile=config.xla,
            steps_per_execution=min(config.steps_per_execution, config.checkpoint_steps, steps),
        )
        trainable.optimizer.build(trainable.trainable_variables)
    progress = Progress(model, trainable, valid, objective, config, steps * batch_size, checkpoint_dir, run_dir)
    while not progress.finished:
        skip = progress.steps_done
        trainable.fit(
            train.epochs(progress.epoch, config.epochs, batch_size, config.seed, config.shuffle_rows, skip),
            initial_epoch=progress.epoch,
            epochs=progress.epoch + 1 if skip else config.epochs,
            steps_per_epoch=steps - skip,
            callbacks=[progress, keras.callbacks.TensorBoard(run_dir, write_graph=False)],
            verbose=0,
        )
    best = build()
    best.set_weights(progress.best_weights)
    return best


class _Trainable(keras.Model):
    """Keras's own steps with the loss of an objective, and without AutoGraph.

    Nothing in them needs AutoGraph, and converting all of tf_keras takes 10 s or more: it leaves Keras alone where that
    is called `keras`, and does not know the package `tf_keras`.
    """

    train_step = tf.autograph.experimental.do_not_convert(keras.Model.train_step)
    train_function: Any  # Keras's attribute

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Steps in a loop, as Keras has them, which traces a step once more, only to learn what the loop returns."""
        if self.train_function is None or force:
            step = tf.function(self._counted_step, jit_compile=True) if self.jit_compile else self._counted_step
            steps = self._steps_per_execution

            def after_one_more(done: tf.Tensor, iterator: Any) -> tf.Tensor:
                self.distribute_strategy.run(step, args=(next(iterator),))
                return done + 1

            def train_function(iterator: Any) -> dict[str, tf.Tensor]:
                one_more = partial(after_one_more, iterator=iterator)
                none = tf.zeros([], steps.dtype)
                tf.while_loop(lambda done: done < steps, one_more, [none], parallel_iterations=1)  # in their order
                return {metric.name: metric.result() for metric in self.metrics}

            self.train_function = tf.function(train_function, autograph=False, reduce_retracing=True)
        return self.train_function

    @tf.autograph.experimental.do_not_convert
    def _counted_step(self, data: Any) -> None:
        self.train_step(data)
        self._train_counter.assign_add(1)

    @classmethod
    def of(cls, model: keras.Model, objective: Objective) -> _Trainable:
        """The model with the logits among its outputs; it shares all weights."""
        trainable = cls(model.inputs, {**model.output, "logits": model.get_layer(objective.logits).output})
        trainable.objective = objective
        trainable.mean_loss, trainable.metric = keras.metrics.Mean(name="loss"), objective.metric()
        return trainable

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: tf.Tensor) -> tf.Tensor:
        """The loss of a batch; gradients of replicas are added, so that each gives its share."""
        loss = tf.add_n([tf.cast(self.objective.loss(x, y_pred, y, sample_weight), tf.float32), *self.losses])
        self.mean_loss.update_state(loss)
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: tf.Tensor) -> dict[str, tf.Tensor]:
        """Loss and metric of the epoch so far."""
        self.metric.update_state(self.objective.label(y), y_pred["logits"], sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}

    @tf.autograph.experimental.do_not_convert
    def predict_step(self, data: Any) -> tf.Tensor:
        """The logits of a batch of inputs."""
        return self(data, training=False)["logits"]


class Progress(keras.callbacks.Callback):
    """Validates after each epoch, keeps the best weights, stops early, records, and saves all that to resume.

    Keras has callbacks for each of these, but its BackupAndRestore forgets what EarlyStopping knows (the best weights
    and how long ago they were), the state of dropout and the metrics of the epoch it interrupts, so that a resumed
    training would end elsewhere than an uninterrupted one.
    """

    def __init__(
        self,
        built: keras.Model,
        trainable: keras.Model,
        valid: Rows,
        objective: Objective,
        config: TrainingConfig,
        rows: int,
        checkpoint_dir: str,
        run_dir: str,
    ) -> None:
        super().__init__()
        self.built, self.objective, self.config, self.rows = built, objective, config, rows
        self.run_dir = run_dir
        self.inputs = valid.in_order(config.validation_batch_size).map(lambda inputs, label, weight: inputs)
        self.labels, self.weights = valid.answers()
        with tf.device("CPU"):
            self.best = [tf.Variable(value, trainable=False) for value in built.get_weights()]
            self.history_json = tf.Variable("[]", dtype=tf.string, trainable=False)
            # What an interrupted epoch had done, how long it took, and the sums of its metrics.
            self.partial_json = tf.Variable("{}", dtype=tf.string, trainable=False)
        state = tf.train.Checkpoint(
            model=trainable,
            best=self.best,
            history=self.history_json,
            partial=self.partial_json,
            random=_random_generators(trainable),
        )
        # Every worker takes part in saving, but only the chief's files count.
        directory = checkpoint_dir if is_chief() else f"{checkpoint_dir}/not_chief"
        self.manager = tf.train.CheckpointManager(state, directory, max_to_keep=1)
        saved = tf.train.latest_checkpoint(checkpoint_dir)
        if saved:
            state.restore(saved).assert_existing_objects_matched()
            log.info("resuming after epoch %d, step %d", self.epoch, self.steps_done)
            self._write_history()  # there may be no epoch left that would
        self.resumed = self._partial

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per finished epoch."""
        return list(json.loads(self.history_json.numpy()))

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @property
    def steps_done(self) -> int:
        """How many steps of the next epoch are done."""
        return int(self._partial.get("steps", 0))

    @property
    def _partial(self) -> dict[str, Any]:
        return dict(json.loads(self.partial_json.numpy()))

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or patience is at its end."""
        history = self.history
        best = max((i for i, entry in enumerate(history) if entry["best"]), default=len(history))
        return len(history) >= self.config.epochs or len(history) - 1 - best >= self.config.patience

    @property
    def best_weights(self) -> list[np.ndarray]:
        """Weights of the best epoch by validation."""
        return [variable.numpy() for variable in self.best]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock, or goes on with an epoch that was interrupted."""
        before = self.resumed
        self.started, self.skipped = time.perf_counter() - before.get("seconds", 0.0), before.get("steps", 0)
        for variable, value in zip(self._sums(), before.get("sums", []), strict=False):
            variable.assign(value)
        self.resumed = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves every `checkpoint_steps` steps; Keras calls once an execution, with the number of its last step.

        After the last step of an epoch nothing is left to go on with: the end of the epoch saves.
        """
        done = self.skipped + batch + 1
        due = done // self.config.checkpoint_steps > self.steps_done // self.config.checkpoint_steps
        if due and batch + 1 < self.params["steps"]:
            sums = [variable.numpy().tolist() for variable in self._sums()]
            seconds = time.perf_counter() - self.started
            self.partial_json.assign(json.dumps({"steps": done, "seconds": seconds, "sums": sums}))
            self.manager.save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Validates, then saves everything in one checkpoint: a kill at any moment leaves the last one whole."""
        seconds = time.perf_counter() - self.started
        logits = self.model.predict(self.inputs, verbose=0).astype(np.float64)
        measured = self.objective.measure(logits, self.labels, self.weights)
        logs.update({f"val_{name}": value for name, value in measured.items()})
        history, name = self.history, f"val_{self.objective.best}"
        best_before = max((entry[name] for entry in history if entry[name] is not None), default=-math.inf)
        # Where the metric is not defined (the AUC of one class), the latest weights count as the best.
        improved = not logs[name] <= best_before
        if improved:
            for variable, value in zip(self.best, self.built.get_weights(), strict=True):
                variable.assign(value)
        entry = {"epoch": epoch + 1, **{name: _json_number(value) for name, value in logs.items()}}
        entry |= {"seconds": round(seconds, 3), "rows_per_second": round(self.rows / seconds), "best": improved}
        self.history_json.assign(json.dumps([*history, entry]))
        self.partial_json.assign("{}")
        self.manager.save()
        self._report(entry)
        self.model.stop_training = self.finished

    def _sums(self) -> list[tf.Variable]:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    def _report(self, entry: dict[str, Any]) -> None:
        names = (name for prefix in ("", "val_") for name in (f"{prefix}loss", f"{prefix}{self.objective.best}"))
        values = [f"{name} {entry[name]:.4f}" for name in names if entry[name] is not None]
        log.info(
            "epoch %d/%d  %s  %s rows/s",
            entry["epoch"],
            self.config.epochs,
            "  ".join(values),
            entry["rows_per_second"],
        )
        self._write_history()

    def _write_history(self) -> None:
        if is_chief():
            tf.io.gfile.makedirs(self.run_dir)
            with tf.io.gfile.GFile(f"{self.run_dir}/history.json", "w") as file:
                file.write(self.history_json.numpy().decode())


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Exact weighted area under the ROC curve, all arguments [rows]; NaN where one class is absent."""
    both = len(np.unique(labels[weights > 0])) == 2
    return float(roc_auc_score(labels, scores, sample_weight=weights)) if both else math.nan


def logloss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of the binary cross-entropy in nats; arguments as in `auc`."""
    return float(np.average(np.logaddexp(0, logits) - labels * logits, weights=weights))


def _measure_clicks(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    scores = np.ravel(logits)
    return {"loss": logloss(scores, labels, weights), "auc": auc(scores, labels, weights)}


def _cross_entropy(inputs: Tensors, outputs: Tensors, label: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(label, tf.cast(outputs["logits"][:, 0], tf.float32))
    return tf.reduce_mean(entropy * weight)


CLICKS = Objective(
    logits="logit",
    loss=_cross_entropy,
    metric=partial(keras.metrics.AUC, name="auc", from_logits=True),
    label=lambda label: label[:, tf.newaxis],
    measure=_measure_clicks,
    best="auc",
)


def _random_generators(model: keras.Model) -> list[tf.random.Generator]:
    """What dropout draws from: Keras leaves it out of checkpoints, and offers no other way to it."""
    random = [layer for layer in model.submodules if isinstance(layer, keras.__internal__.layers.BaseRandomLayer)]
    return [layer._random_generator._generator for layer in random]


@contextmanager
def _saved_randomness() -> Iterator[None]:
    """Layers made within draw from generators whose state is a variable, not from ops that count in secret."""
    keras.backend.experimental.enable_tf_random_generator()
    try:
        yield
    finally:
        keras.backend.experimental.disable_tf_random_generator()


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
