"""Retrieval by topic: two towers, trained with sampled softmax, and the index over the candidate tower's vectors.

Source: the topic learning paper, section III.B, has queues of each topic ordered by click-through rate. Those stay
(`TopicIndex`), and learned vectors join them: a query tower reads the user, the context and the history, a candidate
tower what is known of a video besides its counters, so that a video nobody has seen has a vector at once. The loss is
`tfrs.tasks.Retrieval` over the batch's candidates and some drawn evenly from the catalogue (mixed negative sampling,
Yang et al. 2020), logits corrected by the logarithm of how often each candidate is expected among them (logQ, Yi et
al. 2019).

B batch, U negatives drawn from the catalogue, V videos, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tensorflow_transform as tft
from pydantic import Field

from trainer.data import READ_BATCH, Split, positives, read, records
from trainer.export import transformed, write_warm_up
from trainer.inputs import Inputs, keras_inputs
from trainer.keras_version import keras
from trainer.layers.fields import IdDropout, MaskedMean, Present
from trainer.layers.perceptron import perceptron
from trainer.layers.recency import RecencyPooling, TopicShares, TopicTaste
from trainer.layers.topic_index import IndexSettings
from trainer.layers.vocabulary_embedding import VocabularyEmbedding
from trainer.ranker import Deep
from trainer.retrieval_export import candidate_features, export, query_features, topic_feature
from trainer.settings import Settings
from trainer.training import (
    Objective,
    Tensors,
    TrainingConfig,
    fit,
    is_chief,
    make_strategy,
    resumable_folder,
    until_exported,
)
from trainer.warm_start import Earlier, keep, seen_in, starting_from
from transform.contract import CATEGORICAL, Contract, Feature, Kind
from transform.impressions import vocabulary_size, vocabulary_sizes
from transform.schema import parse_spec

# TFRS asks a tensor for its length, which AutoGraph alone understands; `trainer.training` keeps it from all of Keras.
_RETRIEVAL_LOSS = tf.autograph.to_graph(tfrs.tasks.Retrieval.call, recursive=False)
TOP = 20  # validation recall is at so many
VALIDATED = 4096  # queries, spread over the validation rows
AT_ONCE = 256  # queries


class Config(Settings):
    """A retrieval model.

    Attributes:
        embedding_width: Of ids.
        width: D.
        deep: Perceptron of each tower, beside a linear map.
        embedding_l2: L2 penalty on embedding tables.
        id_dropout: Share of candidates' and users' ids replaced by an out-of-vocabulary index in training, so that
            towers learn to do without them.
        user_id: Whether the query tower reads the user's id.
        temperature: The dot product of unit vectors is divided by it.
        negatives: U.
        hard_negatives: Only so many negatives with the largest logits count; None is all.
        recent_clicks: Clicks whose topics are counted, the paper's N1.
        index: How the videos are stored and found.
    """

    embedding_width: int = Field(default=64, ge=1)
    width: int = Field(default=64, ge=1)
    deep: Deep = Deep(units=(128,), dropout=0.1)
    embedding_l2: float = Field(default=0.0, ge=0)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    user_id: bool = True
    temperature: float = Field(default=0.07, gt=0)
    negatives: int = Field(default=256, ge=0)
    hard_negatives: int | None = Field(default=None, ge=1)
    recent_clicks: int = Field(default=128, ge=1)
    index: IndexSettings = IndexSettings()


class Videos(NamedTuple):
    """The videos of the train split.

    Attributes:
        columns: Candidate features by name, [V, ...], of distinct videos.
        clicks: [rows of the video vocabulary]: how often each is a positive.
    """

    columns: dict[str, np.ndarray]
    clicks: np.ndarray


class TwoTowers(tfrs.Model):
    """Functional: from features to `query` [B, D], `candidate` [B, D], `negatives` [U, D] and `negative_ids` [U].

    `trainer.training.fit` trains it with the objective's loss; `compute_loss` is the same one for Keras's own `fit`,
    of (inputs, label, weight).

    Attributes:
        query_tower: From query features to unit vectors.
        candidate_tower: From candidate features to unit vectors.
        loss_of: Set by whoever trains with Keras's `fit`: `objective(...).loss`.
    """

    query_tower: keras.Model
    candidate_tower: keras.Model
    loss_of: Callable[[Tensors, Tensors, Any, tf.Tensor], tf.Tensor]

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Mean loss of a batch."""
        features, label, weight = inputs
        return self.loss_of(features, self(features, training=training), label, weight)


class UniformVideos(keras.__internal__.layers.BaseRandomLayer):
    """Draws videos from the catalogue, each as likely, with replacement.

    Attributes:
        columns: Of the catalogue.
        count: U.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], count: int) -> None:
        super().__init__()
        # Tensors, which a graph captures; arrays would be written into it, and a graph may have no more than 2 GB.
        self.columns, self.count = {name: tf.constant(column) for name, column in columns.items()}, count

    def call(self, anchor: tf.Tensor) -> Inputs:
        """Anything to features of videos, [U, ...]."""
        total = next(iter(self.columns.values())).shape[0]
        rows = self._random_generator.random_uniform([self.count], 0, total, tf.int32)
        return {name: tf.gather(column, rows) for name, column in self.columns.items()}


def build_model(config: Config, contract: Contract, sizes: Mapping[str, int], videos: Videos) -> TwoTowers:
    """The towers that `config` describes, over the transformed features of `contract`.

    Args:
        config: Architecture and sizes.
        contract: Where inputs, embedding tables and roles come from.
        sizes: Embedding table rows by vocabulary; see `transform.impressions.vocabulary_sizes`.
        videos: Where negatives are drawn from, and what topics the history's videos have.
    """
    inputs, tables = keras_inputs(contract), _tables(config, contract, sizes)
    encode = partial(_encoded, config, contract, tables)
    key = contract.video_key.name
    of_query = {f.name: inputs[f.name] for f in query_features(contract) if _read(f, contract, config)}
    of_video = {f.name: inputs[f.name] for f in candidate_features(contract)}
    topics = [part for part in [_topic_taste(config, contract, tables, videos, of_query)] if part is not None]
    query_tower = keras.Model(of_query, _unit(config, [*encode(of_query), *topics]), name="query")
    candidate_tower = keras.Model(of_video, _unit(config, encode(of_video)), name="candidate")
    drawn = UniformVideos({name: videos.columns[name] for name in of_video}, config.negatives)(inputs[key])
    query, candidate = query_tower(of_query), candidate_tower(of_video)
    towers = keras.layers.Concatenate(name="towers", dtype="float32")([query, candidate])
    outputs = {"query": query, "candidate": candidate, "towers": towers}
    outputs |= {"negatives": candidate_tower(drawn), "negative_ids": drawn[key]}
    model = TwoTowers(inputs, outputs)
    model.query_tower, model.candidate_tower = query_tower, candidate_tower
    return model


def objective(config: Config, contract: Contract, videos: Videos) -> Objective:
    """Sampled softmax over clicks; the best epoch has the highest recall at 20 among the validation rows' videos.

    Args:
        config: Temperature and negatives.
        contract: Names the video's id.
        videos: How often each is clicked.
    """
    task = tfrs.tasks.Retrieval(
        temperature=config.temperature, num_hard_negatives=config.hard_negatives, remove_accidental_hits=True
    )
    share = tf.constant(videos.clicks / max(videos.clicks.sum(), 1), tf.float32)
    key = contract.video_key.name
    total = len(videos.columns[key])

    def loss(inputs: Tensors, outputs: Tensors, label: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        ids = tf.concat([inputs[key], outputs["negative_ids"]], axis=0)
        weight = weight * label  # only clicks teach
        probability = sampling_probability(tf.gather(share, ids), total, label, config.negatives)
        summed = _RETRIEVAL_LOSS(
            task,
            outputs["query"],
            tf.concat([outputs["candidate"], outputs["negatives"]], axis=0),
            sample_weight=weight,
            # TFRS takes 1e-6 for anything less, as rare videos of a large catalogue are; a common factor is no matter.
            candidate_sampling_probability=probability / tf.reduce_max(probability),
            candidate_ids=ids,
            compute_metrics=False,
            compute_batch_metrics=False,
        )
        return tf.math.divide_no_nan(summed, tf.reduce_sum(weight))

    return Objective(
        logits="towers",
        loss=loss,
        metric=partial(keras.metrics.MeanMetricWrapper, _hits_in_batch, name="recall"),
        label=lambda label: label,
        measure=partial(measure, temperature=config.temperature),
        best="recall",
    )


def sampling_probability(share: tf.Tensor, videos: int, batch: tf.Tensor, negatives: int) -> tf.Tensor:
    """How likely a candidate of the mixed batch is a given video: (B share + U / V) / (B + U).

    Args:
        share: [any], of the video among clicks.
        videos: V.
        batch: [B, ...], for its length.
        negatives: U.

    Returns:
        [any].
    """
    rows = tf.cast(tf.shape(batch)[0], tf.float32)
    return (rows * share + negatives / videos) / (rows + negatives)


def measure(towers: np.ndarray, labels: np.ndarray, weights: np.ndarray, temperature: float) -> dict[str, float]:
    """Loss and recall at 20 of clicks among all distinct videos that occur in the rows.

    Args:
        towers: [rows, 2 D], query beside candidate.
        labels: [rows]; only clicks count.
        weights: [rows].
        temperature: As in training.
    """
    clicked = np.flatnonzero((labels > 0) & (weights > 0))
    queries, candidates = np.split(towers[clicked].astype(np.float32), 2, axis=1)
    distinct, positive = np.unique(candidates, axis=0, return_inverse=True)
    if not len(clicked):
        return {"loss": float("nan"), "recall": float("nan")}
    chosen = np.unique(np.linspace(0, len(clicked) - 1, VALIDATED).astype(int))
    losses, hits = np.zeros(len(chosen)), np.zeros(len(chosen), bool)
    for start in range(0, len(chosen), AT_ONCE):  # all would be gigabytes with many videos
        part = slice(start, start + AT_ONCE)
        scores = queries[chosen[part]] @ distinct.T / temperature
        own = np.take_along_axis(scores, positive.ravel()[chosen[part], None], axis=1)
        best = scores.max(axis=1, keepdims=True)
        losses[part] = (np.log(np.exp(scores - best).sum(axis=1, keepdims=True)) + best - own)[:, 0]
        hits[part] = (scores > own).sum(axis=1) < TOP
    given = weights[clicked][chosen]
    return {"loss": float(np.average(losses, weights=given)), "recall": float(np.average(hits, weights=given))}


def _hits_in_batch(label: tf.Tensor, towers: tf.Tensor) -> tf.Tensor:
    """1 for each row whose own candidate is among the best 20 of the batch."""
    queries, candidates = tf.split(towers, 2, axis=1)
    scores = tf.matmul(queries, candidates, transpose_b=True)
    better = tf.reduce_sum(tf.cast(scores > tf.linalg.diag_part(scores)[:, tf.newaxis], tf.int32), axis=1)
    return tf.cast(better < TOP, tf.float32)


def _tables(config: Config, contract: Contract, sizes: Mapping[str, int]) -> dict[str, VocabularyEmbedding]:
    used = [*candidate_features(contract), *query_features(contract)]
    names = dict.fromkeys(str(f.vocabulary) for f in used if f.kind in CATEGORICAL and _read(f, contract, config))
    penalty = keras.regularizers.L2(config.embedding_l2) if config.embedding_l2 else None
    start = keras.initializers.RandomNormal(stddev=0.05)
    width = config.embedding_width
    how = {"embeddings_initializer": start, "embeddings_regularizer": penalty}
    return {n: VocabularyEmbedding(n, sizes[n], width, name=f"embedding_{n}", **how) for n in names}


def _read(feature: Feature, contract: Contract, config: Config) -> bool:
    return config.user_id or feature is not contract.user_key


def _encoded(
    config: Config, contract: Contract, tables: Mapping[str, VocabularyEmbedding], inputs: Inputs
) -> list[tf.Tensor]:
    """A vector [B, any] of each feature."""
    return [_vector(config, contract, tables, contract.feature(name), value) for name, value in inputs.items()]


def _vector(
    config: Config,
    contract: Contract,
    tables: Mapping[str, VocabularyEmbedding],
    feature: Feature,
    value: tf.Tensor,
) -> tf.Tensor:
    if feature.kind is Kind.NUMBER:
        return value[:, tf.newaxis]
    if feature.kind is Kind.VECTOR:
        return value
    table = tables[str(feature.vocabulary)]
    if feature.kind is Kind.ID:
        rate = config.id_dropout if feature in (contract.video_key, contract.user_key) else 0.0
        buckets = contract.vocabularies[str(feature.vocabulary)].oov_buckets
        return table(IdDropout(table.input_dim, buckets, rate)(value))
    pooling = RecencyPooling() if feature.kind is Kind.HISTORY else MaskedMean()
    return pooling((table(value), Present()(value)))


def _topic_taste(
    config: Config,
    contract: Contract,
    tables: Mapping[str, VocabularyEmbedding],
    videos: Videos,
    inputs: Inputs,
) -> tf.Tensor | None:
    feature = topic_feature(contract)
    history = next(iter(contract.histories), None)
    if feature is None or feature.kind is not Kind.IDS or history is None:
        return None
    key, given = videos.columns[contract.video_key.name], videos.columns[feature.name]
    topics_of = np.zeros((len(videos.clicks), given.shape[1]), np.int32)
    topics_of[key] = given
    table = tables[str(feature.vocabulary)]
    return TopicTaste(table)(TopicShares(topics_of, table.input_dim, config.recent_clicks)(inputs[history.name]))


def _unit(config: Config, parts: list[tf.Tensor]) -> tf.Tensor:
    """Linear map plus perceptron, then length 1: [B, D]."""
    joined = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    deep = keras.layers.Dense(config.width)(perceptron(joined, config.deep))
    summed = keras.layers.Add(dtype="float32")([keras.layers.Dense(config.width)(joined), deep])
    return tf.math.l2_normalize(summed, axis=1)


def videos_of(train: Split, rows: int) -> Videos:
    """The videos of a split: features at the first impression, and clicks by each of the vocabulary's `rows`."""
    contract = train.contract
    key, names = contract.video_key.name, [f.name for f in candidate_features(contract)]
    columns: dict[str, np.ndarray] = {}
    clicks = np.zeros(rows)
    for inputs, label, _ in train.in_order(READ_BATCH).as_numpy_iterator():
        clicks += np.bincount(inputs[key], label, rows)
        joined = {name: np.concatenate([columns[name], inputs[name]]) if columns else inputs[name] for name in names}
        ids, first = np.unique(joined[key], return_index=True)
        columns = {name: column[first[ids != 0]] for name, column in joined.items()}
    return Videos(columns, clicks)


def with_catalogue(
    videos: Videos, files: Sequence[str], contract: Contract, transform_output: tft.TFTransformOutput
) -> Videos:
    """The videos of a split, and those of the catalogue that have a row: a day shows but a few of what is known.

    Args:
        videos: Of the split.
        files: TFRecord files of examples of all videos.
        contract: The features.
        transform_output: What Transform wrote.
    """
    used, key = candidate_features(contract), contract.video_key.name
    spec, layer = {f.name: parse_spec(contract)[f.name] for f in used}, transform_output.transform_features_layer()
    parts = []
    for chunk in records(files).batch(READ_BATCH):
        rows = transformed(layer, contract, tf.io.parse_example(chunk, spec), tf.size(chunk))
        parts.append({f.name: rows[f.name].numpy() for f in used})
    known = vocabulary_size(str(contract.video_key.vocabulary), transform_output)
    catalogue = {f.name: np.concatenate([part[f.name] for part in parts]) for f in used}
    new = (catalogue[key] > 0) & (catalogue[key] <= known) & ~np.isin(catalogue[key], videos.columns[key])
    columns = {name: np.concatenate([column, catalogue[name][new]]) for name, column in videos.columns.items()}
    return videos._replace(columns=columns)


def run_fn(fn_args: Any) -> None:
    """Trains the towers and exports them with an index of the whole catalogue: what TFX's Trainer calls.

    Args:
        fn_args: TFX's FnArgs with `raw_files` and `catalogue_files`, as `components.trainer` makes them.
            `custom_config` as `trainer.ranker.run_fn` says, with keys of this module's `Config`.
    """
    given = fn_args.custom_config
    contract = Contract.from_json(given["contract"])
    config = Config.of(given.get("model", {}), "model")
    training = TrainingConfig.of(given.get("training", {}), "training")
    strategy = make_strategy(training)
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    feature_spec = transform_output.transformed_feature_spec()
    train = read(fn_args.train_files, feature_spec, contract, training.memory_bytes)
    valid = read(fn_args.eval_files, feature_spec, contract, training.memory_bytes)
    sizes, earlier = vocabulary_sizes(contract, transform_output), Earlier.of(fn_args, contract, transform_output)
    videos = videos_of(train, sizes[str(contract.video_key.vocabulary)])
    files = sorted(tf.io.gfile.glob(fn_args.catalogue_files))
    if earlier:
        videos = with_catalogue(videos, files, contract, transform_output)
    build = starting_from(earlier, partial(build_model, config, contract, sizes, videos))
    aim, checkpoint_dir = objective(config, contract, videos), resumable_folder(fn_args, train, valid)
    clicks = positives(train)
    with until_exported(checkpoint_dir, strategy):
        model = fit(build, clicks, positives(valid), aim, training, strategy, checkpoint_dir, fn_args.model_run_dir)
        if earlier:
            earlier.put_back(model, seen_in(train, sizes))
        if is_chief():
            sample, _, _ = next(iter(clicks.epochs(0, 1, min(READ_BATCH, clicks.rows), training.seed, READ_BATCH)))
            catalogue = records(files).as_numpy_iterator()
            export(model, contract, transform_output, catalogue, sample, config.index, fn_args.serving_model_dir)
            write_warm_up(fn_args.raw_files, fn_args.serving_model_dir)
            keep(model, contract, transform_output, fn_args.serving_model_dir)
