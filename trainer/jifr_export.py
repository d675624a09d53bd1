"""The exporter of JIFR and its baselines: the scorer, preprocessing and the catalogue in one SavedModel of stock ops.

What the scorer says of a video does not depend on who asks: it is worked out once and lies in tables, which `rebuild`
replaces without training. B batch, V videos, F frames, C width of a frame's vector. Signatures:

- `serving_default`: `examples`, string [B], serialized tf.Examples of a user's features and a video's id, to `score`
  float [B], `frame` int32 [B] (-1 for a video without frames), its `path` string [B], `frame_score` float [B] and
  `at_seconds` float [B] (NaN where not known), and `frame_scores` float [B, F] (NaN where there is no frame);
- `raw`: the same, with the features as named tensors (see `trainer.export`) instead of examples;
- `evaluate`: of `examples`, what `pipeline.cover_metrics` ranks by: `score`; `opened` bool [B], whether the user opened
  the video before, in the train split or in the request's history; `above` float [B], how many videos of the
  catalogue the user has not opened are scored higher (equal ones count half); `above_sampled` float [B, 10], the same
  among 1,000 drawn of them, ten times (neighbours in one shuffled order); `frame_scores`; and `popular_frame_scores`
  [B, F], those of the average user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from trainer.captured import captured
from trainer.export import _sparse, _tensor_spec, transformed
from trainer.layers.lots import scattered, seeds
from trainer.layers.pair_scorer import PairScorer, Shape, Shown, Tensors, standardised
from trainer.layers.video_numbers import VideoNumbers, ordered, take
from transform.contract import Contract, ContractError, Feature, Kind
from transform.frames import Frames, decode
from transform.schema import parse_spec

SAMPLED, REPEATS = 1000, 10
CHUNK = 1024
AVERAGED = 10_000  # users whose taste makes that of the average user, at most
_PERSON = "person/"


class Standard(NamedTuple):
    """By what frames are standardised: mean and deviation, each [C]."""

    mean: np.ndarray
    deviation: np.ndarray


class Opened(NamedTuple):
    """Who opened what in the train split, as rows of the tables of users and videos, by rising user.

    Attributes:
        users: Int64 [pairs].
        videos: Int64 [pairs].
    """

    users: np.ndarray
    videos: np.ndarray


def asked_features(contract: Contract) -> list[Feature]:
    """What a request holds: the ids of user and video, and what the user opened before."""
    histories = contract.histories
    return [contract.user_key, *histories, contract.video_key]


def raw_specs(contract: Contract) -> dict[str, tf.TensorSpec]:
    """The features of the signature `raw`."""
    return {f.name: _tensor_spec(f) for f in asked_features(contract)}


class _Scorer(tf.Module):
    """What no new catalogue changes; saved as `scorer`, and taken over by `rebuild`."""

    def __init__(
        self,
        scorer: PairScorer,
        contract: Contract,
        transform_output: tft.TFTransformOutput,
        opened: Opened,
        shape: Shape,
        standard: Standard,
    ) -> None:
        super().__init__()
        user, video, features = contract.user_key.name, contract.video_key.name, asked_features(contract)
        histories = [f.name for f in features if f.kind is Kind.HISTORY]
        layer = transform_output.transform_features_layer()
        self.opened_users, self.opened_videos = map(_kept, opened)
        mean, deviation = map(_kept, standard)
        self.standard = (mean, deviation)
        some = np.unique(opened.users)[:AVERAGED]
        nothing = {name: tf.zeros([len(some), 1], tf.int64) for name in histories}
        people = scorer.people({user: tf.constant(some), **nothing})
        self.average = {name: _kept(tf.reduce_mean(value, axis=0)) for name, value in people.items()}
        self.met_videos = met = _kept(shape.met_videos)

        def ask(raw: Mapping[str, Any]) -> Tensors:
            batch = tf.shape(raw[user])[0]
            inputs = transformed(layer, contract, raw, batch)
            inputs[user] = shape.met(inputs[user])
            watched = [tf.sparse.to_dense(raw[name], "") for name in histories]
            people = {f"{_PERSON}{name}": value for name, value in scorer.people(inputs).items()}
            watched = tf.concat([tf.zeros([batch, 0], tf.string), *watched], axis=1)
            seed = seeds(raw[user])
            return {**people, "user": inputs[user], "seed": seed, "video": raw[video], "watched": watched}

        def describe(ids: tf.Tensor, frames: tf.Tensor, mask: tf.Tensor) -> Tensors:
            rows = transformed(layer, contract, {video: ids}, tf.size(ids))[video]
            trained = tf.cast(tf.gather(met, rows), tf.float32)
            described = scorer.videos(Shown(rows, trained, standardised(frames, mask, mean, deviation), mask))
            alike = tf.zeros([*tf.unstack(tf.shape(mask)), 1])  # of a scorer that does not look at frames
            described = {name: value for name, value in described.items() if name != "alpha"}
            return {"looks": alike, **described, "row": tf.where(trained > 0, rows, -1)}

        def look(people: Tensors, looks: tf.Tensor) -> tf.Tensor:
            return scorer.look(people, looks) if scorer.looks else tf.zeros(tf.shape(looks)[:2])

        spec = parse_spec(contract)
        parsed = {f.name: spec[f.name] for f in features}
        examples, ids = tf.TensorSpec([None], tf.string, "examples"), tf.TensorSpec([None], tf.string)
        frames = tf.TensorSpec([None, None, len(standard.mean)]), tf.TensorSpec([None, None])

        # No AutoGraph: nothing here needs it, and it would convert all of tf_keras.
        self.ask = tf.function(lambda records: ask(tf.io.parse_example(records, parsed)), [examples], autograph=False)
        self.ask_raw = tf.function(
            lambda given: ask({f.name: _sparse(f, given[f.name]) for f in features}),
            [raw_specs(contract)],
            autograph=False,
        )
        self.describe = tf.function(describe, [ids, *frames], autograph=False)
        people = {name: tf.TensorSpec([None, *value.shape]) for name, value in self.average.items()}
        described = self.describe.get_concrete_function().structured_outputs
        looks = tf.TensorSpec([None, None, described["looks"].shape[2]])
        pairs = {
            name: tf.TensorSpec([None, None, *value.shape[1:]])
            for name, value in described.items()
            if name not in ("looks", "row")
        }
        self.score = tf.function(scorer.score, [people, pairs], autograph=False)
        self.look = tf.function(look, [people, looks], autograph=False)
        functions = self.ask, self.ask_raw, self.describe, self.score, self.look
        self.captured = captured([*scorer.variables, layer], [f.get_concrete_function() for f in functions])


class _Serving(VideoNumbers):
    """Holds what the signatures need, so that its variables, tables and files are saved."""

    def __init__(self, scorer: Any, frames: Frames, specs: dict[str, tf.TensorSpec]) -> None:
        order = ordered(frames.ids)
        super().__init__([frames.ids[i] for i in order], "frames")
        self.scorer, self._specs = scorer, specs
        self.mask, self.seconds = _kept(frames.mask[order]), _kept(frames.seconds[order])
        self.paths = _kept(frames.paths[order].astype("S"))
        described = _described(scorer, frames, order)
        self.looks = _kept(described.pop("looks"))
        rows = described.pop("row")
        numbers = np.full(1 + max(rows.max(), scorer.opened_videos.numpy().max(initial=0)), -1, np.int32)
        numbers[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        self.number_of_row = _kept(numbers)
        self.videos = {name: _kept(value) for name, value in described.items()}

    def save(self, directory: str) -> None:
        """Writes the SavedModel."""

        def serving_default(examples: tf.Tensor) -> Tensors:
            return self._cover(self.scorer.ask(examples))

        def raw(**features: tf.Tensor) -> Tensors:
            return self._cover(self.scorer.ask_raw(features))

        def evaluate(examples: tf.Tensor) -> Tensors:
            return self._evaluate(self.scorer.ask(examples))

        examples = tf.TensorSpec([None], tf.string, "examples")
        signatures = {
            function.__name__: tf.function(function, autograph=False).get_concrete_function(examples)
            for function in (serving_default, evaluate)
        }
        signatures["raw"] = tf.function(raw, autograph=False).get_concrete_function(**self._specs)
        tf.saved_model.save(self, directory, signatures=signatures)

    def _cover(self, asked: Tensors) -> Tensors:
        """The score of each video, and its best frame."""
        people, number = _people(asked), self.number_of(asked["video"])
        at, there = tf.maximum(number, 0), number >= 0
        videos = {name: take(value, at)[:, tf.newaxis] for name, value in self.videos.items()}
        scores, mask = self.scorer.look(people, take(self.looks, at)), self._frames_of(number)
        best = tf.argmax(tf.where(mask, scores, -np.inf), axis=1, output_type=tf.int32)
        shown = tf.reduce_any(mask, axis=1)
        return {
            "score": tf.where(there, self.scorer.score(people, videos)[:, 0], 0.0),
            "frame": tf.where(shown, best, -1),
            "frame_score": tf.where(shown, tf.gather(scores, best, batch_dims=1), np.nan),
            "path": tf.where(shown, tf.gather(take(self.paths, at), best, batch_dims=1), ""),
            "at_seconds": tf.where(shown, tf.gather(take(self.seconds, at), best, batch_dims=1), np.nan),
            "frame_scores": tf.where(mask, scores, np.nan),
        }

    def _frames_of(self, number: tf.Tensor) -> tf.Tensor:
        """Bool [B, F]: which frames a video has; none where it is not of the catalogue."""
        return (take(self.mask, tf.maximum(number, 0)) > 0) & (number >= 0)[:, tf.newaxis]

    def _evaluate(self, asked: Tensors) -> Tensors:
        people, number = _people(asked), self.number_of(asked["video"])
        scores = self.scorer.score(people, {n: tf.convert_to_tensor(v)[tf.newaxis] for n, v in self.videos.items()})
        own = tf.gather(scores, tf.maximum(number, 0), batch_dims=1)[:, tf.newaxis]
        unopened = self._unopened(asked)
        others = unopened & (tf.range(self.ids.shape[0]) != number[:, tf.newaxis])
        # By what is lower, so that a score that is no number beats nothing.
        beats = 1.0 - tf.cast(scores < own, tf.float32) - 0.5 * tf.cast(scores == own, tf.float32)
        beats = tf.where(others, beats, 0.0)

        cover = self._cover(asked)
        average = {
            name: tf.repeat(value[tf.newaxis], tf.size(number), 0) for name, value in self.scorer.average.items()
        }
        popular = self.scorer.look(average, take(self.looks, tf.maximum(number, 0)))
        last = tf.where(number >= 0, 0.0, np.inf)  # what the catalogue lacks is never found
        return {
            "score": cover["score"],
            "opened": ~tf.gather(unopened, tf.maximum(number, 0), batch_dims=1) & (number >= 0),
            "above": tf.reduce_sum(beats, axis=1) + last,
            "above_sampled": self._above_of_drawn(beats, others, asked["seed"]) + last[:, tf.newaxis],
            "frame_scores": cover["frame_scores"],
            "popular_frame_scores": tf.where(self._frames_of(number), popular, np.nan),
        }

    def _unopened(self, asked: Tensors) -> tf.Tensor:
        """Bool [B, V]: what the user opened neither in the train split nor in the request's history."""
        users, opened = asked["user"], tf.convert_to_tensor(self.scorer.opened_users)
        pairs = tf.ragged.range(tf.searchsorted(opened, users), tf.searchsorted(opened, users, side="right"))
        numbers = take(self.number_of_row, take(self.scorer.opened_videos, pairs.values))
        watched = self.number_of(asked["watched"])
        rows = tf.concat([pairs.value_rowids(), tf.cast(tf.where(watched >= 0)[:, 0], tf.int64)], axis=0)
        columns = tf.concat([numbers, tf.boolean_mask(watched, watched >= 0)], axis=0)
        places = tf.boolean_mask(tf.stack([tf.cast(rows, tf.int32), columns], axis=1), columns >= 0)
        unopened = tf.ones([tf.size(users), self.ids.shape[0]], bool)
        return tf.tensor_scatter_nd_update(unopened, places, tf.zeros(tf.shape(places)[:1], bool))

    def _above_of_drawn(self, beats: tf.Tensor, others: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """How many of the videos drawn beat the one asked for [B, REPEATS].

        A draw is `SAMPLED` neighbours in a shuffled order of the others, which is a ring, and the next one begins a
        tenth of the ring further on: each is as good a sample as one drawn anew, and where there are fewer than ten
        times as many videos they overlap. On 3,900 videos this takes a third of the time of drawing anew.
        """
        order = tf.argsort(tf.where(others, self._lots(seed), -1.0), axis=1, direction="DESCENDING")
        before = tf.pad(tf.cumsum(tf.gather(beats, order, batch_dims=1), axis=1), [[0, 0], [1, 0]])
        ring = tf.reduce_sum(tf.cast(others, tf.int32), axis=1, keepdims=True)
        start = tf.range(REPEATS) * ring // REPEATS
        end = start + tf.minimum(SAMPLED, ring)

        def until(place: tf.Tensor) -> tf.Tensor:
            return tf.gather(before, place, batch_dims=1)

        return until(tf.minimum(end, ring)) - until(start) + until(tf.maximum(end - ring, 0))

    def _lots(self, seed: tf.Tensor) -> tf.Tensor:
        """A number from 0 to 1 for each user and video [B, V].

        They depend on the ids alone: every model that leaves out the same videos is asked about the same ones.
        """
        own = scattered(seed[:, tf.newaxis])
        mixed = scattered(tf.bitwise.bitwise_xor(own, tf.convert_to_tensor(self.fingerprints)))
        return tf.cast(tf.bitwise.bitwise_and(mixed, 2**24 - 1), tf.float32) / 2**24


def _people(asked: Tensors) -> Tensors:
    return {name.removeprefix(_PERSON): value for name, value in asked.items() if name.startswith(_PERSON)}


def _described(scorer: Any, frames: Frames, order: np.ndarray) -> dict[str, np.ndarray]:
    """What the scorer says of the catalogue's videos, in that order."""
    ids = np.array(frames.ids, object)
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    parts = [scorer.describe(tf.constant(ids[i], tf.string), frames.vectors[i], frames.mask[i]) for i in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _kept(value: Any) -> tf.Variable:
    return tf.Variable(value, trainable=False)


def export(
    scorer: PairScorer,
    contract: Contract,
    transform_output: tft.TFTransformOutput,
    frames: Frames,
    opened: Opened,
    shape: Shape,
    standard: Standard,
    directory: str,
) -> None:
    """Writes the SavedModel of a trained scorer.

    Args:
        scorer: Computing in float32.
        contract: The features.
        transform_output: What Transform wrote.
        frames: The catalogue; a video may have no frame.
        opened: What evaluation leaves out.
        shape: What the scorer was made for.
        standard: As in training.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.
    """
    parts = _Scorer(scorer, contract, transform_output, opened, shape, standard)
    _Serving(parts, frames, raw_specs(contract)).save(directory)


def rebuild(saved_model: str, records: Iterable[bytes], directory: str) -> None:
    """Writes the SavedModel anew with other videos; what was learned stays as it is.

    Args:
        saved_model: Folder of a model that `export` wrote.
        records: Frame examples of the whole catalogue to be served.
        directory: Where to.

    Raises:
        ContractError: No videos, one twice, frames of another width, or no such model.
    """
    loaded = tf.saved_model.load(saved_model)
    if not hasattr(loaded, "scorer"):
        raise ContractError(
            f"{saved_model}: expected a model of videos and frames, got one with the signatures "
            f"{', '.join(loaded.signatures)}: give the folder of a version that jifr exported"
        )
    frames, width = decode(records), len(loaded.scorer.standard[0].numpy())
    if frames.vectors.shape[2] != width:
        raise ContractError(
            f"{saved_model}: expected frames of {width} values, got {frames.vectors.shape[2]}: set the encoder of "
            "frames back, or train anew"
        )
    _Serving(loaded.scorer, frames, loaded.signatures["raw"].structured_input_signature[1]).save(directory)
