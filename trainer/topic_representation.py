"""What topics are learned from: cover and title of a video to one vector, trained on its categories and tags.

Source: "Multimodal Topic Learning for Video Recommendation", section III.A.1, eq. 1-2. Categories have a softmax each.
The paper prints the categorical cross-entropy for tags too, of which a video has several: here every tag is a yes or no
of its own, and the loss is the sum over tags of the sigmoid's cross-entropy. A video's tags are never an input, and
what is unknown (a category that is missing, a video without tags) is not learned from.

B batch, S pixels, L words, V tags of a video, D width of the representation; M1, M2, M3: how many primary and
secondary categories and tags there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from pydantic import Field, model_validator
from typing_extensions import Self

from trainer.captured import save
from trainer.keras_version import keras
from trainer.layers.bert import Bert
from trainer.layers.fields import AnyPresent, MaskedMean, Present
from trainer.layers.mmoe import MixtureOfExperts
from trainer.layers.transformer import transformer
from trainer.settings import Settings
from trainer.topic_data import HAS_COVER, LABELS, TITLE_TEXT, pack, read, read_inputs, transform
from trainer.training import Objective, TrainingConfig, fit, is_chief, make_strategy, resumable_folder, until_exported
from trainer.visual.cover import inception_resnet_v2, small_cnn
from transform import clips, videos
from transform.clip_settings import SHAPE_FILE

TASKS = ("primary", "secondary", "tags")  # in the order of LABELS

Tensors = dict[str, tf.Tensor]


class Published(Settings):
    """A published BERT: see `trainer.layers.bert`.

    Attributes:
        folder: Of its SavedModel.
        vocabulary: File of its word pieces.
        lower_case: Whether that is of lower-cased text.
        tuned: Whether it is trained on.
    """

    folder: str
    vocabulary: str
    lower_case: bool = True
    tuned: bool = True


class Config(Settings):
    """A topic representation. With `cover: null` or `title: null` it is of the other alone.

    Attributes:
        cover: Encoder of covers.
        cover_size: S of the video examples.
        cover_filters: Of each block of `cnn`.
        cover_weights: Weights of `inception_resnet_v2`, a file of Keras's; None: trained from the start.
        title: Encoder of titles.
        title_width: W of `transformer`, a multiple of `title_heads`.
        title_layers: Blocks of `transformer`.
        title_heads: Heads of its attention.
        bert: What `bert` is.
        experts: H of the mixture.
        expert_units: U of an expert.
        tower_units: Hidden units of a task's tower.
        dropout: Within the transformer, and of each task's mixture.
        weights: Of the three losses: primary, secondary, tags. The sum over tags is several times the others, and at
            equal weight the classes are learned less well (KuaiRec).
    """

    cover: Literal["cnn", "inception_resnet_v2"] | None = "cnn"
    cover_size: int = Field(default=96, ge=8)
    cover_filters: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    cover_weights: str | None = None
    title: Literal["transformer", "bert"] | None = "transformer"
    title_width: int = Field(default=64, ge=1)
    title_layers: int = Field(default=2, ge=0)
    title_heads: int = Field(default=4, ge=1)
    bert: Published | None = None
    experts: int = Field(default=12, ge=1)
    expert_units: int = Field(default=64, ge=1)
    tower_units: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    weights: tuple[float, float, float] = (1.0, 1.0, 0.1)

    @model_validator(mode="after")
    def _check_encoders(self) -> Self:
        if not (self.cover or self.title):
            raise ValueError("expected a cover encoder, a title encoder, or both")
        if self.cover == "inception_resnet_v2" and self.cover_size < 75:
            raise ValueError("inception_resnet_v2 needs a cover_size of at least 75")
        if self.cover_weights and self.cover != "inception_resnet_v2":
            raise ValueError("cover_weights are of `cover: inception_resnet_v2`")
        if (self.title == "bert") != (self.bert is not None):
            raise ValueError("`title: bert`, and only that, needs `bert` with folder and vocabulary")
        if self.title_width % self.title_heads:
            raise ValueError("title_width must be a multiple of title_heads")
        return self


class TopicTrainingConfig(TrainingConfig):
    """How a topic representation is trained: see `TrainingConfig`.

    Attributes:
        batch_size: Videos a step, over all replicas; the default is the paper's.
        shuffle_rows: Buffer of encoded videos that shuffles.
    """

    batch_size: int = Field(default=300, ge=1)
    shuffle_rows: int = Field(default=20_000, ge=1)


def build_model(config: Config, sizes: Mapping[str, int]) -> keras.Model:
    """The model that `config` describes; its layer `logits` [B, M1 + M2 + M3] is what the loss is of.

    Args:
        config: Architecture and sizes.
        sizes: `transform.videos.sizes`.

    Returns:
        From {cover uint8 [B, S, S, 3] and has_cover bool [B] (with `cover`), title int64 [B, L] (`transformer`) or
        title_text string [B] (`bert`)} to, all float32, z [B, D] (zeros where cover and title are missing), and the
        probabilities primary [B, M1], secondary [B, M2] and tags [B, M3].
    """
    inputs, parts = {}, []
    if config.cover:
        inputs[videos.COVER] = keras.Input((config.cover_size, config.cover_size, 3), name=videos.COVER)
        inputs[HAS_COVER] = keras.Input((), name=HAS_COVER, dtype="float32")
        parts.append(_masked(_cover(config, inputs[videos.COVER]), inputs[HAS_COVER]))
    if config.title == "transformer":
        inputs[clips.TITLE] = keras.Input((None,), name=clips.TITLE, dtype="int64")
        parts.append(_title(config, inputs[clips.TITLE], sizes[clips.TITLE]))
    if config.bert:
        inputs[TITLE_TEXT] = keras.Input((), name=TITLE_TEXT, dtype="string")
        parts.append(_bert(config.bert, inputs[TITLE_TEXT]))
    z = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    classes = [sizes[name] for name in LABELS]
    logits = keras.layers.Concatenate(name="logits", dtype="float32")(_heads(config, z, classes))
    primary, secondary, tags = tf.split(logits, classes, axis=1)
    outputs = {"primary": tf.nn.softmax(primary), "secondary": tf.nn.softmax(secondary), "tags": tf.sigmoid(tags)}
    return keras.Model(inputs, {"z": tf.cast(z, tf.float32), **outputs}, name="topic_representation")


def _cover(config: Config, pixels: tf.Tensor) -> tf.Tensor:
    if config.cover == "cnn":
        return small_cnn(pixels, config.cover_filters)
    return inception_resnet_v2(pixels, config.cover_weights)


def _title(config: Config, title: tf.Tensor, rows: int) -> tf.Tensor:
    """The mean over its words: small titles have no sentence for a [CLS] to stand for."""
    words, mask = transformer(
        title,
        rows,
        videos.TITLE_WORDS,
        config.title_width,
        config.title_layers,
        config.title_heads,
        config.dropout,
    )
    return _masked(MaskedMean()((words, mask)), AnyPresent()(mask))


def _bert(bert: Published, titles: tf.Tensor) -> tf.Tensor:
    layer = Bert(bert.folder, bert.vocabulary, bert.lower_case, videos.TITLE_WORDS, bert.tuned)
    return _masked(layer(titles), Present()(titles))


def _masked(vector: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """A part of z: of a length that is the same for all encoders of one width, and zeros where there is nothing."""
    return keras.layers.LayerNormalization(scale=False, center=False)(vector) * tf.cast(present, vector.dtype)[:, None]


def _heads(config: Config, z: tf.Tensor, classes: list[int]) -> list[tf.Tensor]:
    """Eq. 1: the logits of each task, from its own mixture of the shared experts through its tower h^k."""
    mixtures = MixtureOfExperts(config.experts, config.expert_units, len(TASKS))(z)
    # Few tags out of many are right: from p = 1/M3 on, the sum over tags is no larger than the other losses.
    rare = {"tags": keras.initializers.Constant(-math.log(max(classes[-1] - 1, 1)))}
    logits = []
    for index, (task, number) in enumerate(zip(TASKS, classes, strict=True)):
        hidden = keras.layers.Dropout(config.dropout)(mixtures[:, index])
        hidden = keras.layers.Dense(config.tower_units, "relu")(hidden)
        head = keras.layers.Dense(number, bias_initializer=rare.get(task, "zeros"), name=f"{task}_logits")
        logits.append(head(hidden))
    return logits


def losses(logits: tf.Tensor, labels: tf.Tensor, classes: list[int]) -> dict[str, tf.Tensor]:
    """Eq. 2, task by task: the mean over videos whose label is known; 0 where there is none.

    Args:
        logits: float [B, M1 + M2 + M3].
        labels: int64 [B, 2 + V], as `trainer.topic_data.pack` gives them.
        classes: M1, M2, M3.

    Returns:
        Cross-entropy in nats by task; of tags the sum over all tags.
    """
    parts = tf.split(tf.cast(logits, tf.float32), classes, axis=1)
    of_tags = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(tag_targets(labels, classes), parts[2]), axis=1)
    of_classes = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels[:, i], 0), parts[i]) for i in range(2)
    ]
    known = tf.unstack(_known(labels), axis=1)
    return {
        task: tf.reduce_sum(entropy * there) / tf.maximum(tf.reduce_sum(there), 1.0)
        for task, entropy, there in zip(TASKS, [*of_classes, of_tags], known, strict=True)
    }


def hits(logits: tf.Tensor, labels: tf.Tensor, classes: list[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether the likeliest class of each task is right (for tags: one of the video's), and where that is known.

    Returns:
        float32 [B, 3] of 0 and 1 (0 where unknown), and float32 [B, 3].
    """
    primary, secondary, tags = (tf.argmax(part, axis=1) for part in tf.split(logits, classes, axis=1))
    of_tags = tf.reduce_any(labels[:, 2:] == tags[:, tf.newaxis] + 1, axis=1)
    right = tf.stack([labels[:, 0] == primary, labels[:, 1] == secondary, of_tags], axis=1)
    known = _known(labels)
    return tf.cast(right, tf.float32) * known, known


def tag_targets(labels: tf.Tensor, classes: list[int]) -> tf.Tensor:
    """1 for each of a video's tags, float32 [B, M3]."""
    return tf.reduce_max(tf.one_hot(labels[:, 2:] - 1, classes[2]), axis=1)


def _known(labels: tf.Tensor) -> tf.Tensor:
    known = tf.concat([labels[:, :2] >= 0, tf.reduce_any(labels[:, 2:] > 0, axis=1, keepdims=True)], axis=1)
    return tf.cast(known, tf.float32)


def objective(config: Config, classes: list[int]) -> Objective:
    """All tasks, weighted; the best epoch has the highest `score`, the mean over tasks of the share of hits."""

    def score(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        right, known = hits(logits, tf.cast(labels, tf.int64), classes)  # Keras's metrics make floats of them
        return tf.math.divide_no_nan(tf.reduce_sum(right, axis=1), tf.reduce_sum(known, axis=1))

    def loss(inputs: Any, outputs: Any, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return _weighted(config, losses(outputs["logits"], labels, classes))

    return Objective(
        logits="logits",
        loss=loss,
        metric=partial(keras.metrics.MeanMetricWrapper, fn=score, name="score"),
        label=lambda labels: labels,
        measure=partial(measure, config, classes),
        best="score",
    )


def measure(
    config: Config, classes: list[int], logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Loss and share of hits of each task, the weighted loss, and the mean share of the tasks that have labels."""
    answers, truth = tf.constant(logits, tf.float32), tf.constant(labels, tf.int64)
    by_task = losses(answers, truth, classes)
    right, known = (value.numpy().sum(axis=0) for value in hits(answers, truth, classes))
    shares = {f"{task}_hits": float(right[i] / known[i]) for i, task in enumerate(TASKS) if known[i]}
    return {
        "loss": float(_weighted(config, by_task)),
        "score": float(np.mean(list(shares.values()))) if shares else math.nan,
        **{f"{task}_loss": float(value) for task, value in by_task.items()},
        **shares,
    }


def _weighted(config: Config, by_task: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.add_n([weight * by_task[task] for task, weight in zip(TASKS, config.weights, strict=True)])


class _Serving(tf.Module):
    """Holds what the signatures capture."""

    def __init__(self, model: keras.Model, config: Config, transform_output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.weights = model.variables
        # What a published BERT keeps besides: tables and frozen variables.
        self.published = [(layer.tokenizer, layer.encoder) for layer in model.layers if isinstance(layer, Bert)]
        self.tft_layer = transform_output.transform_features_layer()
        self._config = config

    def signatures(self, model: keras.Model) -> dict[str, tf.types.experimental.ConcreteFunction]:
        def answer(examples: tf.Tensor) -> tuple[Tensors, Tensors]:
            raw = tf.io.parse_example(examples, videos.parse_spec())
            inputs = read_inputs(raw, self.tft_layer, model.input_names, self._config.cover_size)
            return raw, model(inputs, training=False)

        def serving_default(examples: tf.Tensor) -> Tensors:
            raw, answered = answer(examples)
            labels = pack(transform(self.tft_layer, raw))
            logits = tf.concat([answered[task] for task in TASKS], axis=1)
            right, known = hits(logits, labels, [answered[task].shape[1] for task in TASKS])
            judged = {"hit": tf.unstack(right, axis=1), "known": tf.unstack(known, axis=1)}
            named = {f"{task}_{name}": v[i] for name, v in judged.items() for i, task in enumerate(TASKS)}
            return {**{task: answered[task] for task in TASKS}, **named}

        def embed(examples: tf.Tensor) -> Tensors:
            raw, answered = answer(examples)
            return {clips.VIDEO_ID: raw[clips.VIDEO_ID], "z": answered["z"]}

        # No AutoGraph: nothing here needs it, and it would convert all of tf_keras.
        examples = tf.TensorSpec([None], tf.string, "examples")
        return {
            function.__name__: tf.function(function, autograph=False).get_concrete_function(examples)
            for function in (serving_default, embed)
        }


def export(model: keras.Model, config: Config, transform_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes a SavedModel whose signatures take `examples`, string [B], serialized video examples.

    - `serving_default`: probabilities primary [B, M1], secondary [B, M2] and tags [B, M3]; and, by the example's own
      labels, `<task>_hit` and `<task>_known` [B], for evaluation;
    - `embed`: video_id string [B] and z float [B, D].

    Args:
        model: As `build_model` makes it, computing in float32.
        config: What it was made from.
        transform_output: What Transform wrote.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.
    """
    serving = _Serving(model, config, transform_output)
    save(serving, serving.signatures(model), directory)
    path = f"{directory}/{SHAPE_FILE}"
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(videos.shape(config.cover_size))


def run_fn(fn_args: Any) -> None:
    """Trains and exports one topic representation: what TFX's Trainer calls.

    Args:
        fn_args: TFX's FnArgs. `custom_config` holds `model` and `training` (keys of `Config` and `TopicTrainingConfig`)
            and `checkpoint_dir` (where an unfinished training of the same inputs is kept).
    """
    given = fn_args.custom_config
    config = Config.of(given.get("model", {}), "model")
    training = TopicTrainingConfig.of(given.get("training", {}), "training")
    strategy = make_strategy(training)
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    sizes = videos.sizes(transform_output)
    inputs = build_model(config, sizes).input_names
    train, valid = (
        read(files, transform_output, inputs, config.cover_size) for files in (fn_args.train_files, fn_args.eval_files)
    )
    goal = objective(config, [sizes[name] for name in LABELS])
    build, checkpoint_dir = partial(build_model, config, sizes), resumable_folder(fn_args, train, valid)
    with until_exported(checkpoint_dir, strategy):
        model = fit(build, train, valid, goal, training, strategy, checkpoint_dir, fn_args.model_run_dir)
        if is_chief():
            export(model, config, transform_output, fn_args.serving_model_dir)
