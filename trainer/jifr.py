r"""JIFR: which videos a user opens, and by which frame of each, learned from opened videos alone.

Source: Wu et al. 2019, "Personalized multimedia item and key frame recommendation", section 3. A user a and a video i
meet in two spaces, that of who opened what (u_a, v_i) and that of looks (w_a, x_i)::

    x_i  = sum_j alpha_ij P c_j,    alpha_ij = softmax over the frames of i of  w1 f(W1 [v_i, W0 c_j])      eq. 5-7
    r_ai = beta_1 u_a.v_i + beta_2 w_a.x_i,  beta = softmax of  w2 f(W2 [u_a, v_i]), w2 f(W2 [w_a, x_i])    eq. 8-10
    l_ak = w_a.(P c_k) + ln alpha_ik                                                                        eq. 4

f is ReLU. Learned is -ln sigma(r_ai - r_aj) + lambda |Theta|^2 for an opened video i and ten others j, drawn anew each
time (eq. 3, whose print lacks "-ln"; |Theta|^2 is that of a triple's free vectors). A frame that somebody liked is
never learned from. What is ours:

- eq. 4 has no ln alpha. But what attention has learned to leave out of x_i, P was never trained on, and P c of such a
  frame says nothing (docs/decisions/0008). Where all alpha are equal the order is that of the print, and so it is with
  `attended_frames: false`.
- A video that training does not know has x_i alone, and one without frames v_i alone: both softmaxes are masked.
- Frames are standardised.
- "Knows" means that somebody opened the video (that the user opened any): of others nothing was learned.
- In training some ids count as unknown (`id_dropout`), so that new users and videos are answered by what was learned
  for them.

B batch, N negatives, K = 1 + N, U distinct videos of a batch, F frames, C width of a frame's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from pydantic import Field, field_validator, model_validator

from trainer.baselines.pairwise.acf import Acf
from trainer.baselines.pairwise.bpr import Bpr
from trainer.baselines.pairwise.cdl import Cdl
from trainer.baselines.pairwise.vbpr import Vbpr
from trainer.baselines.pairwise.vpoi import Vpoi
from trainer.data import READ_BATCH, Split, positives, read, records
from trainer.export import transformed, write_warm_up
from trainer.inputs import keras_inputs
from trainer.jifr_export import Opened, Standard, export
from trainer.keras_version import keras
from trainer.layers.fields import IdDropout
from trainer.layers.masked_softmax import masked_softmax
from trainer.layers.pair_scorer import (
    PairScorer,
    Shape,
    Shown,
    Tensors,
    linear,
    mean_frame,
    product,
    standardised,
)
from trainer.settings import Settings
from trainer.training import Objective, TrainingConfig, fit, is_chief, make_strategy, resumable_folder, until_exported
from trainer.warm_start import Earlier, keep, seen_in, starting_from
from transform.contract import Contract, ContractError
from transform.frames import Frames, decode
from transform.impressions import vocabulary_sizes

BASELINES: dict[str, Callable[[Config, Shape], PairScorer]] = {
    "bpr": Bpr,
    "vbpr": Vbpr,
    "acf": Acf,
    "cdl": Cdl,
    "vpoi": Vpoi,
}
_LEAST = 1e-6  # of an attention weight, for its logarithm
RATED = -1e9  # score of a negative that the user has opened: it counts for nothing


class Config(Settings):
    """A model of videos and their frames.

    Attributes:
        architecture: `jifr`, or the name of a baseline.
        width: d1, of the space of who opened what.
        visual_width: d2, of the space of looks.
        content_attention: Whether x_i is attended (eq. 5) or the mean of the frames (eq. 1).
        rating_attention: Whether the two products are weighed (eq. 8) or added up (eq. 2). Without either attention
            this is the paper's JIFR_NA.
        attended_frames: Whether the score of a frame has ln alpha; without it is eq. 4 as printed.
        attention_units: Of the hidden layers of both attentions.
        attention_l2: L2 penalty on the matrices of both.
        negatives: N.
        l2: lambda, on the free vectors of a triple.
        projection_l2: L2 penalty on the matrices that bring frames into a space, JIFR's P and W0 and the like of
            baselines; `bpr` and `acf` have none. Where pictures tell little it keeps them from being learned by heart.
        id_dropout: Share of users and of videos that count as unknown in training.
        picture_weight: Of the pictures in the loss of `vpoi`.
    """

    architecture: str = "jifr"
    width: int = Field(default=32, ge=1)
    visual_width: int = Field(default=32, ge=1)
    content_attention: bool = True
    rating_attention: bool = True
    attended_frames: bool = True
    attention_units: int = Field(default=32, ge=1)
    attention_l2: float = Field(default=0.0, ge=0)
    negatives: int = Field(default=10, ge=1)
    l2: float = Field(default=1e-3, ge=0)
    projection_l2: float = Field(default=0.0, ge=0)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    picture_weight: float = Field(default=0.1, ge=0)

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, name: str) -> str:
        known = ("jifr", *BASELINES)
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return name

    @model_validator(mode="after")
    def _check_widths(self) -> Config:
        if self.rating_attention and self.width != self.visual_width:
            raise ValueError(
                "one network weighs both spaces (eq. 9), so that width and visual_width must be equal, got "
                f"{self.width} and {self.visual_width}: set `rating_attention: false`, or make them equal"
            )
        return self


class Jifr(PairScorer):
    """The paper's model; see the head of this module."""

    free = ("u", "v", "w")

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(name="scorer")
        self.user = shape.user
        self.user_table = shape.table_of_users(config.width, "U")
        self.video_table = shape.table_of_videos(config.width, "V")
        self.visual_table = shape.table_of_users(config.visual_width, "W")
        self.project = linear(config.visual_width, name="P", l2=config.projection_l2)
        attention = config.attention_units, config.attention_l2
        self.content = _Weigher(*attention, "content_attention") if config.content_attention else None
        self.reduce = (
            linear(config.visual_width, name="W0", l2=config.projection_l2) if config.content_attention else None
        )
        self.rating = _Weigher(*attention, "rating_attention") if config.rating_attention else None
        self.attended_frames = config.attended_frames

    def people(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        """u and w."""
        return {"u": self.user_table(inputs[self.user]), "w": self.visual_table(inputs[self.user])}

    def videos(self, shown: Shown) -> Tensors:
        """v (zeros for a new video), x (zeros without a frame), which are there, P c with ln alpha or 0, and alpha."""
        v = self.video_table(shown.ids) * shown.known[:, tf.newaxis]
        looks = self.project(shown.frames)
        if self.content is not None and self.reduce is not None:
            alpha = masked_softmax(self.content(v[:, tf.newaxis], self.reduce(shown.frames)), shown.mask)
            x = tf.einsum("uf,ufd->ud", alpha, looks)
        else:
            x = mean_frame(looks, shown.mask)
            alpha = masked_softmax(tf.zeros_like(shown.mask), shown.mask)
        spaces = tf.stack([shown.known, tf.reduce_max(shown.mask, axis=1)], axis=1)
        attended = tf.math.log(alpha + _LEAST) if self.attended_frames else tf.zeros_like(alpha)
        looks = tf.concat([looks, attended[:, :, tf.newaxis]], axis=2)
        return {"v": v, "x": x, "spaces": spaces, "looks": looks, "alpha": alpha}

    def score(self, people: Tensors, videos: Tensors) -> tf.Tensor:
        """r: eq. 8, or eq. 2 without rating attention."""
        products = tf.stack([product(people["u"], videos["v"]), product(people["w"], videos["x"])], axis=-1)
        if self.rating is None:
            return tf.reduce_sum(products, axis=-1)
        pairs = (people["u"], videos["v"]), (people["w"], videos["x"])
        weights = tf.stack([self.rating(person[:, tf.newaxis], video) for person, video in pairs], axis=-1)
        return tf.reduce_sum(masked_softmax(weights, videos["spaces"]) * products, axis=-1)

    def look(self, people: Tensors, looks: tf.Tensor) -> tf.Tensor:
        """l: eq. 4."""
        return product(people["w"], looks[:, :, :-1]) + looks[:, :, -1]


class _Weigher(keras.layers.Layer):
    """w f(W [a, b]), W in two parts so that neither a nor b need be repeated for the other.

    Equal weights are what it starts from, w being zeros.
    """

    def __init__(self, units: int, l2: float, name: str) -> None:
        super().__init__(name=name)
        self.first, self.second = (linear(units, l2=l2) for _ in range(2))
        self.weigh = linear(1, l2=l2, kernel_initializer="zeros")

    def call(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """[..., any] each, which broadcast, to [...]."""
        return self.weigh(tf.nn.relu(self.first(first) + self.second(second)))[..., 0]


class Triples(keras.__internal__.layers.BaseRandomLayer):
    """Scores each row's video beside N videos of the train split, drawn with replacement, each as likely.

    Training draws anew each time. Outside of it a batch always meets the same ones, so that epochs, and settings, are
    compared by what was learned and not by luck.

    Attributes:
        scorer: The model.
        config: `negatives`, `id_dropout` and `l2`.
        shape: What the scorer is made for.
        video: Name of the input that holds the video's row.
    """

    def __init__(self, scorer: PairScorer, config: Config, shape: Shape, opened: Opened, video: str) -> None:
        super().__init__(name="triples")
        self.scorer, self.config, self.shape, self.video = scorer, config, shape, video
        # Tensors rather than arrays, which every use of would put into the graph.
        self.catalogue = tf.constant(np.unique(opened.videos))
        self.pairs = tf.constant(np.unique(self._pair(opened.users, opened.videos)))
        self.frames, self.mask = tf.constant(shape.frames), tf.constant(shape.mask)
        self.met = tf.constant(shape.met_videos)
        self.forget_user = IdDropout(shape.users, shape.buckets, config.id_dropout)
        self.forget_video = IdDropout(shape.videos, 1, config.id_dropout)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool | None = None) -> Tensors:
        """Features to `scores` [B, 1 + N], the row's own video first, and `penalty` [B]."""
        users, own = inputs[self.shape.user], inputs[self.video]
        drawn = tf.gather(self.catalogue, self._draw(users, own, training))
        met = tf.concat([own[:, tf.newaxis], drawn], axis=1)
        distinct, which = tf.unique(tf.reshape(met, [-1]))
        ids = self.forget_video(distinct, training=training)
        parts = (tf.gather(self.met, ids), tf.gather(self.frames, distinct), tf.gather(self.mask, distinct))
        shown = Shown(ids, *(tf.cast(part, self.compute_dtype) for part in parts))
        forgetful = {**inputs, self.shape.user: self.forget_user(self.shape.met(users), training=training)}
        scored = self.scorer(forgetful, shown, tf.reshape(which, tf.shape(met)), self.config.l2)
        rated = self._holds(self._pair(users[:, tf.newaxis], drawn))
        rated = tf.concat([tf.zeros_like(rated[:, :1]), rated], axis=1)
        scores = tf.where(rated, RATED, tf.cast(scored["scores"], tf.float32))
        return {"scores": scores, "penalty": tf.cast(scored["penalty"], tf.float32)}

    def _draw(self, users: tf.Tensor, own: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Places in the catalogue, [B, N]."""
        count, end = [tf.size(users), self.config.negatives], tf.size(self.catalogue)
        if training:
            return self._random_generator.random_uniform(count, 0, end, tf.int32)
        seed = tf.stack([tf.reduce_sum(users), tf.reduce_sum(own)])
        return tf.random.stateless_uniform(count, seed, 0, end, tf.int32)

    def _pair(self, users: Any, videos: Any) -> Any:
        return users * self.shape.videos + videos

    def _holds(self, pairs: tf.Tensor) -> tf.Tensor:
        """Whether the train split has each pair."""
        flat = tf.reshape(pairs, [-1])
        place = tf.minimum(tf.searchsorted(self.pairs, flat), tf.size(self.pairs) - 1)
        return tf.reshape(tf.gather(self.pairs, place) == flat, tf.shape(pairs))


def build_scorer(config: Config, shape: Shape) -> PairScorer:
    """The scorer that `config` describes."""
    return BASELINES.get(config.architecture, Jifr)(config, shape)


def build_model(config: Config, contract: Contract, shape: Shape, opened: Opened) -> keras.Model:
    """The model that `config` describes, for training; its layer `triples` holds the scorer.

    Args:
        config: Architecture and sizes.
        contract: Where inputs come from.
        shape: What the scorer is made for.
        opened: Of the train split.

    Returns:
        From {feature: tensor} to `scores` [B, 1 + N] and `penalty` [B].
    """
    inputs = keras_inputs(contract)
    triples = Triples(build_scorer(config, shape), config, shape, opened, contract.video_key.name)
    outputs = triples(inputs)
    scores = keras.layers.Activation("linear", name="scores", dtype="float32")(outputs["scores"])
    return keras.Model(inputs, {**outputs, "scores": scores}, name=config.architecture)


def objective() -> Objective:
    """BPR (eq. 3); the best epoch puts an opened video most often above one drawn: its AUC is the largest."""

    def loss(
        inputs: Mapping[str, tf.Tensor], outputs: Mapping[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        scores = tf.cast(outputs["logits"], tf.float32)
        counted = tf.cast(scores[:, 1:] > RATED, tf.float32)
        each = tf.nn.softplus(scores[:, 1:] - scores[:, :1]) * counted
        each = tf.math.divide_no_nan(tf.reduce_sum(each, axis=1), tf.reduce_sum(counted, axis=1))
        weight = weight * label  # only what was opened teaches
        return tf.math.divide_no_nan(tf.reduce_sum(weight * (each + outputs["penalty"])), tf.reduce_sum(weight))

    return Objective(
        logits="scores",
        loss=loss,
        metric=partial(keras.metrics.MeanMetricWrapper, lambda label, scores: _wins(scores), name="auc"),
        label=lambda label: label,
        measure=measure,
        best="auc",
    )


def measure(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Loss and AUC of the opened rows against the videos drawn for each.

    Args:
        scores: [rows, 1 + N].
        labels: [rows].
        weights: [rows].
    """
    counted = scores[:, 1:] > RATED
    weight = (weights * (labels > 0))[:, np.newaxis] * counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    if not weight.any():
        return {"loss": float("nan"), "auc": float("nan")}
    margin = np.where(counted, scores[:, :1] - scores[:, 1:], 0.0)
    wins = (margin > 0) + 0.5 * (margin == 0)
    return {
        "loss": float(np.average(np.logaddexp(0, -margin), weights=weight)),
        "auc": float(np.average(wins, weights=weight)),
    }


def _wins(scores: tf.Tensor) -> tf.Tensor:
    """Share of the negatives below the positive one, [B]."""
    counted = tf.cast(scores[:, 1:] > RATED, tf.float32)
    wins = tf.cast(scores[:, :1] > scores[:, 1:], tf.float32) * counted
    return tf.math.divide_no_nan(tf.reduce_sum(wins, axis=1), tf.reduce_sum(counted, axis=1))


def shape_of(
    contract: Contract,
    sizes: Mapping[str, int],
    frames: Frames,
    rows: np.ndarray,
    opened: Opened,
    earlier: Earlier | None = None,
) -> tuple[Shape, Standard]:
    """What a scorer is made for, and by what frames are standardised: those of the videos that were opened.

    Args:
        contract: Names the inputs.
        sizes: Rows by vocabulary.
        frames: Of the catalogue.
        rows: [V], of those videos in the table of videos.
        opened: In the train split.
        earlier: Whose users and videos were met too.

    Raises:
        ContractError: None of the videos opened has a frame.
    """
    names = str(contract.user_key.vocabulary), str(contract.video_key.vocabulary)
    users, count = (sizes[name] for name in names)
    met_users, met_videos = (
        earlier.met(name, sizes[name]) if earlier else np.zeros(sizes[name], bool) for name in names
    )
    met_users[opened.users], met_videos[opened.videos] = True, True
    trained = met_videos[rows]
    seen = frames.vectors[(frames.mask > 0) & trained[:, np.newaxis]]
    if not len(seen):
        raise ContractError(
            "jifr: expected videos of the train split with frames, got none: give the videos media, `frame_paths` or "
            "`cover_path`"
        )
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    # What hardly varies would dwarf all else in a video where it does.
    standard = Standard(mean, np.maximum(deviation, max(1e-6, 0.01 * float(deviation.mean()))))
    mask = np.zeros((count, frames.mask.shape[1]), np.float32)
    vectors = np.zeros((*mask.shape, len(mean)), np.float32)
    mask[rows[trained]] = frames.mask[trained]
    vectors[rows[trained]] = standardised(frames.vectors[trained], frames.mask[trained], *standard)
    histories = (f.name for f in contract.histories)
    buckets = contract.vocabularies[str(contract.user_key.vocabulary)].oov_buckets
    inputs = contract.user_key.name, next(histories, None)
    return Shape(users, count, *inputs, vectors, mask, met_users, met_videos, names, buckets), standard


def opened_in(clicks: Split, sizes: Mapping[str, int]) -> Opened:
    """Who opened what in a split, each pair once, but for users and videos out of vocabulary.

    Args:
        clicks: The split.
        sizes: Rows by vocabulary.
    """
    contract = clicks.contract
    keys = contract.user_key, contract.video_key
    ends = [sizes[str(k.vocabulary)] - contract.vocabularies[str(k.vocabulary)].oov_buckets for k in keys]
    names = contract.user_key.name, contract.video_key.name
    pairs = [
        np.stack([inputs[name][label > 0] for name in names], axis=1)
        for inputs, label, _ in clicks.in_order(READ_BATCH).as_numpy_iterator()
    ]
    found = np.unique(np.concatenate(pairs).astype(np.int64), axis=0)
    users, videos = found[((found > 0) & (found < ends)).all(axis=1)].T
    return Opened(users, videos)


def run_fn(fn_args: Any) -> None:
    """Trains and exports JIFR or a baseline of it: what TFX's Trainer calls.

    Args:
        fn_args: TFX's FnArgs with `raw_files` and `frames_files`, as `components.trainer` makes them. `custom_config`
            as `trainer.ranker.run_fn` says, with keys of this module's `Config`.
    """
    given = fn_args.custom_config
    contract = Contract.from_json(given["contract"])
    config = Config.of(given.get("model", {}), "model")
    training = TrainingConfig.of(given.get("training", {}), "training")
    strategy = make_strategy(training)
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    feature_spec = transform_output.transformed_feature_spec()
    train = positives(read(fn_args.train_files, feature_spec, contract, training.memory_bytes))
    valid = positives(read(fn_args.eval_files, feature_spec, contract, training.memory_bytes))
    frames = decode(records(sorted(tf.io.gfile.glob(fn_args.frames_files))).as_numpy_iterator())
    key, sizes = contract.video_key.name, vocabulary_sizes(contract, transform_output)
    layer, ids = transform_output.transform_features_layer(), tf.constant(frames.ids)
    rows = transformed(layer, contract, {key: ids}, tf.size(ids))[key].numpy()
    opened, earlier = opened_in(train, sizes), Earlier.of(fn_args, contract, transform_output)
    shape, standard = shape_of(contract, sizes, frames, rows, opened, earlier)
    build = starting_from(earlier, partial(build_model, config, contract, shape, opened))
    checkpoint_dir = resumable_folder(fn_args, train, valid, also=fn_args.frames_files)
    with until_exported(checkpoint_dir, strategy):
        model = fit(build, train, valid, objective(), training, strategy, checkpoint_dir, fn_args.model_run_dir)
        if earlier:
            earlier.put_back(model, seen_in(train, sizes))
        if is_chief():
            scorer = model.get_layer("triples").scorer
            export(scorer, contract, transform_output, frames, opened, shape, standard, fn_args.serving_model_dir)
            write_warm_up(fn_args.raw_files, fn_args.serving_model_dir)
            met = dict(zip(shape.vocabularies, (shape.met_users, shape.met_videos), strict=True))
            keep(model, contract, transform_output, fn_args.serving_model_dir, met)
