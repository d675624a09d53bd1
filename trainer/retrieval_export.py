"""The exporter of retrieval models: towers, preprocessing and index in one SavedModel of stock ops.

B batch, N answers, D width, E entries. Signatures:

- `serving_default`: `examples`, string [B], serialized tf.Examples of user and context features, any of which may be
  missing, to `video_ids`, `topics` and `sources` ('topic' or 'queue'), string [B, N], and `scores`, float [B, N], best
  first; '' behind the last answer. Videos of the user's history are never answered.
- `retrieve`: `examples` as well, `exclude`, string [B, any], videos not to be answered, and `queue`, string [B, any],
  candidates of a queue store;
- `raw`: as `retrieve`, with the features as named tensors (see `trainer.export`) instead of examples;
- `candidates`: `examples` of video features to `video_ids` [B], `vectors` float [B, D], `topics` string [B, any] and
  `trained` bool [B], whether the id was known in training: what an index is built of;
- `evaluate`: the answers of `serving_default` with `trained` bool [B, N], `exact_ids` string [B, 100], what reading the
  whole index would have found first, and `catalogue_size` int [B].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from trainer.captured import captured
from trainer.export import _sparse, _tensor_spec, transformed
from trainer.layers.topic_index import COMPARED, Catalogue, IndexSettings, TopicIndex, fill_queues
from transform.contract import Contract, ContractError, Feature, Kind, Role
from transform.impressions import vocabulary_size
from transform.schema import parse_spec

CHUNK = 4096
ANSWERS = ("video_ids", "scores", "topics", "sources")
TOPIC_VOCABULARY, CATEGORY = "topic", "videos.primary_category"

Tensors = dict[str, tf.Tensor]


def query_features(contract: Contract) -> list[Feature]:
    """What the query tower reads, and a request holds: what is known without knowing the video."""
    return [f for f in contract.inputs if f.about == "user"]


def candidate_features(contract: Contract) -> list[Feature]:
    """What the candidate tower reads: of role video, but for counters, which a new video lacks."""
    return [f for f in contract.select(roles=(Role.VIDEO,)) if f.table != "derived"]


def topic_feature(contract: Contract) -> Feature | None:
    """By what the index is partitioned: learned topics, else the primary category, else None (by its own clusters)."""
    features = candidate_features(contract)
    learned = (f for f in features if f.kind is Kind.IDS and f.vocabulary == TOPIC_VOCABULARY)
    category = (f for f in features if f.kind is Kind.ID and f.source == CATEGORY)
    return next(learned, next(category, None))


class _Towers:
    """What no new index changes: preprocessing and both towers."""

    def __init__(self, model: Any, contract: Contract, transform_output: tft.TFTransformOutput) -> None:
        self.query_tower, self.candidate_tower = model.query_tower, model.candidate_tower
        self.tft_layer = transform_output.transform_features_layer()
        self._contract, self._known = contract, _known_videos(contract, transform_output)
        examples = tf.TensorSpec([None], tf.string, "examples")
        # No AutoGraph: nothing here needs it, and it would convert all of tf_keras.
        self.query = tf.function(self._query, [examples], autograph=False)
        self.query_raw = tf.function(self._query_raw, [raw_specs(contract)], autograph=False)
        self.candidates = tf.function(self._candidates, [examples], autograph=False)

    def kept(self) -> tf.Module:
        """The functions as they are saved, under `towers`, for `rebuild` to take over."""
        functions = [f.get_concrete_function() for f in (self.query, self.query_raw, self.candidates)]
        module = tf.Module()
        module.query, module.query_raw, module.candidates = self.query, self.query_raw, self.candidates
        module.captured = captured([self.query_tower, self.candidate_tower, self.tft_layer], functions)
        return module

    def _query(self, examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors [B, D], and the videos of the history, string [B, any]."""
        return self._queried(tf.io.parse_example(examples, self._spec(query_features(self._contract))))

    def _query_raw(self, features: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        return self._queried({f.name: _sparse(f, features[f.name]) for f in query_features(self._contract)})

    def _queried(self, raw: Mapping[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        histories = [f.name for f in self._contract.histories]
        watched = [tf.sparse.to_dense(raw[name], "") for name in histories]
        batch = tf.shape(raw[self._contract.user_key.name])[0]
        vectors = self.query_tower(_inputs(self.query_tower, self._transform(raw, batch)), training=False)
        return vectors, tf.concat([tf.zeros([batch, 0], tf.string), *watched], axis=1)

    def _candidates(self, examples: tf.Tensor) -> Tensors:
        raw = tf.io.parse_example(examples, self._spec(candidate_features(self._contract)))
        transformed = self._transform(raw, tf.size(examples))
        key, feature = self._contract.video_key.name, topic_feature(self._contract)
        topics = tf.zeros([tf.size(examples), 0], tf.string)
        if feature is not None:
            given = raw[feature.name]
            topics = tf.sparse.to_dense(given, "") if feature.kind is Kind.IDS else given[:, tf.newaxis]
        return {
            "video_ids": raw[key],
            "vectors": self.candidate_tower(_inputs(self.candidate_tower, transformed), training=False),
            "topics": topics,
            "trained": (transformed[key] > 0) & (transformed[key] <= self._known),
        }

    def _spec(self, features: Sequence[Feature]) -> dict[str, Any]:
        spec = parse_spec(self._contract)
        return {f.name: spec[f.name] for f in features}

    def _transform(self, raw: Mapping[str, Any], batch: tf.Tensor) -> Tensors:
        return transformed(self.tft_layer, self._contract, raw, batch)


class _Serving(tf.Module):
    """Holds what the signatures need, so that its variables, tables and files are saved."""

    def __init__(self, towers: Any, index: TopicIndex, specs: dict[str, tf.TensorSpec]) -> None:
        super().__init__()
        self.towers, self.index, self._specs = towers, index, specs

    def save(self, directory: str) -> None:
        """Writes the SavedModel."""

        def serving_default(examples: tf.Tensor) -> Tensors:
            answers = self._answer(*self.towers.query(examples))
            return {name: answers[name] for name in ANSWERS}

        def retrieve(examples: tf.Tensor, exclude: tf.Tensor, queue: tf.Tensor) -> Tensors:
            return self._retrieve(self.towers.query(examples), exclude, queue)

        def raw(exclude: tf.Tensor, queue: tf.Tensor, **features: tf.Tensor) -> Tensors:
            return self._retrieve(self.towers.query_raw(features), exclude, queue)

        def candidates(examples: tf.Tensor) -> Tensors:
            return dict(self.towers.candidates(examples))

        def evaluate(examples: tf.Tensor) -> Tensors:
            queries, history = self.towers.query(examples)
            exact = self._answer(queries, history, exact=True)["video_ids"][:, :COMPARED]
            size = tf.fill(tf.shape(examples), self.index.ids.shape[0])
            return {**self._answer(queries, history), "exact_ids": exact, "catalogue_size": size}

        examples = tf.TensorSpec([None], tf.string, "examples")
        more = {name: tf.TensorSpec([None, None], tf.string, name) for name in ("exclude", "queue")}
        signatures = {
            function.__name__: tf.function(function, autograph=False).get_concrete_function(examples)
            for function in (serving_default, candidates, evaluate)
        }
        signatures["retrieve"] = tf.function(retrieve, autograph=False).get_concrete_function(examples, **more)
        signatures["raw"] = tf.function(raw, autograph=False).get_concrete_function(**self._specs, **more)
        tf.saved_model.save(self, directory, signatures=signatures)

    def _retrieve(self, asked: tuple[tf.Tensor, tf.Tensor], exclude: tf.Tensor, queue: tf.Tensor) -> Tensors:
        queries, history = asked
        answers = self.index.answer(queries, tf.concat([history, exclude], axis=1), history, queue)
        return {name: answers[name] for name in ANSWERS}

    def _answer(self, queries: tf.Tensor, history: tf.Tensor, exact: bool = False) -> Tensors:
        return self.index.answer(queries, history, history, tf.zeros([tf.shape(queries)[0], 0], tf.string), exact)


def raw_specs(contract: Contract) -> dict[str, tf.TensorSpec]:
    """The query features of the signature `raw`."""
    return {f.name: _tensor_spec(f) for f in query_features(contract)}


def export(
    model: Any,
    contract: Contract,
    transform_output: tft.TFTransformOutput,
    videos: Iterable[bytes],
    sample: Mapping[str, Any],
    settings: IndexSettings,
    directory: str,
) -> None:
    """Writes the SavedModel of `model` with an index of `videos`.

    Args:
        model: `trainer.topic_retrieval.TwoTowers`, computing in float32.
        contract: The features.
        transform_output: What Transform wrote.
        videos: As for `rebuild`.
        sample: Transformed features of queries like those to come, by which the number of probes is chosen.
        settings: Of the index.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.

    Raises:
        ContractError: No videos, or one twice.
    """
    towers = _Towers(model, contract, transform_output)
    # Called as it is: `predict` would convert all of Keras to AutoGraph first, which takes seconds.
    queries = model.query_tower(_inputs(model.query_tower, sample), training=False).numpy()
    index = TopicIndex(_catalogue(towers.candidates, videos), settings, queries)
    _Serving(towers.kept(), index, raw_specs(contract)).save(directory)


def rebuild(
    saved_model: str,
    videos: Iterable[bytes],
    directory: str,
    settings: IndexSettings | None = None,
    queues: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the SavedModel anew with an index of other videos; towers and preprocessing stay as they are.

    Args:
        saved_model: Folder of a retrieval model.
        videos: Serialized tf.Examples of video features: the whole catalogue to be served.
        directory: Where to.
        settings: Of the index; None keeps those of the model.
        queues: Videos by topic, best first, as a queue store gives them; None: queues are empty.

    Raises:
        ContractError: No videos, one twice, or no retrieval model.
    """
    loaded = tf.saved_model.load(saved_model)
    if "candidates" not in loaded.signatures:
        raise ContractError(
            f"{saved_model}: expected a retrieval model with the signature `candidates`, got "
            f"{', '.join(loaded.signatures)}: give the folder of a version that topic retrieval exported"
        )
    if settings is None:
        settings = IndexSettings.of(json.loads(loaded.index.settings_json.numpy()), "index")
    index = TopicIndex(_catalogue(loaded.towers.candidates, videos), settings, loaded.index.sample.numpy())
    fill_queues(index, queues or {})
    given = loaded.signatures["raw"].structured_input_signature[1]
    specs = {name: spec for name, spec in given.items() if name not in ("exclude", "queue")}
    _Serving(loaded.towers, index, specs).save(directory)


def _catalogue(candidates: Callable[[tf.Tensor], Tensors], videos: Iterable[bytes]) -> Catalogue:
    rows, parts = iter(videos), []
    while chunk := list(islice(rows, CHUNK)):
        parts.append({name: value.numpy() for name, value in candidates(tf.constant(chunk)).items()})
    if not parts:
        raise ContractError("index: expected videos, got none: give the catalogue that is to be served")
    return Catalogue(
        [name.decode() for part in parts for name in part["video_ids"]],
        np.concatenate([part["vectors"] for part in parts]),
        [[topic.decode() for topic in row if topic] for part in parts for row in part["topics"]],
        np.concatenate([part["trained"] for part in parts]),
    )


def _known_videos(contract: Contract, transform_output: tft.TFTransformOutput) -> int:
    return vocabulary_size(str(contract.video_key.vocabulary), transform_output)


def _inputs(tower: Any, features: Mapping[str, Any]) -> dict[str, Any]:
    return {name: features[name] for name in tower.input_names}
