"""The feed in one call: models of retrieval, ranking and covers, and what is known of videos, in one SavedModel.

Each stage keeps the graph it was served with (its signature `raw`); what lies between them is plain ops and tables, so
that nothing is trained here and `shortlist index` makes the tables anew. B batch, L length of the longest feed asked
for, C candidates given, M modalities, T most topics of a video. Signatures:

- `serving_default` and `recommend`: `examples`, string [B], serialized tf.Examples of user features and of what
  `transform.feed` lists, any of which may be missing, to `video_ids`, `sources` ('topic', 'queue', 'catalogue',
  'popular' or 'explore') and `frame_paths`, string [B, L]; `scores`, `frame_scores` and `at_seconds`, float [B, L];
  `frames` int32 [B, L] (-1: no frame); `topics` string [B, L, T]; `modality_weights` float [B, L, M] from a ranker that
  weighs; and `candidates` int32 [B], how many were ranked. Best first, by the ranker's score and, where the settings
  say so, that of retrieval; '' behind the last video of a feed.
- `rank`: `examples`, and `video_ids` string [B, C], to `scores` [B, C] and `modality_weights`: nothing is left out.
- `cover`: `examples`, and `video_ids` string [B, C], to `frames`, `frame_paths`, `frame_scores`, `at_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.captured import save
from trainer.jifr_export import asked_features
from trainer.layers.arrangement import Kept, arrange
from trainer.layers.lots import scattered, seeds
from trainer.layers.topic_index import fill_queues
from trainer.layers.video_numbers import VideoNumbers, ordered, take
from trainer.retrieval_export import query_features, topic_feature
from transform import feed
from transform.contract import Contract, ContractError, Feature, Kind
from transform.feed import FeedSettings
from transform.schema import parse_spec

CHUNK = 4096
COMPETING = 1000  # of the candidates, the best so many compete for places
HOUR = 3600
UNLIKELY = 1e-6  # a ranker's score counts as no less
_FRAMES = {"frames": "frame", "frame_paths": "path", "frame_scores": "frame_score", "at_seconds": "at_seconds"}

Tensors = dict[str, tf.Tensor]


class Stages(NamedTuple):
    """Folders of the SavedModels that a feed is made of.

    Attributes:
        ranker: Scores.
        retriever: Finds candidates; None: all videos are candidates.
        chooser: Chooses frames; None: no video has any.
    """

    ranker: str
    retriever: str | None = None
    chooser: str | None = None


class _Asked(NamedTuple):
    """A parsed request; all tensors [B, ...]."""

    features: Tensors
    now: tf.Tensor
    length: tf.Tensor
    exclude: tf.Tensor
    queue: tf.Tensor
    categories: tf.Tensor
    events: tf.Tensor
    rates: tf.Tensor
    profile: tf.Tensor


class Feed(VideoNumbers):
    """A feed, which holds what its signatures capture.

    Args:
        stages: Models of the same contract, with the signature `raw`.
        videos: Serialized tf.Examples of the whole catalogue, with the features about videos and, as far as they are
            known, what `transform.feed` lists of videos.
        contract: The features.
        settings: Of the feed.
        queues: Videos by topic, best first, which the retrieval model takes candidates from in place of those it was
            saved with; None: it keeps them.

    Attributes:
        ranker: The loaded stage; `retriever` and `chooser` are None where there is none.
        answers: By name, the signatures that will be saved.

    Raises:
        ContractError: No videos, or one twice.
    """

    # Tables have a row more than there are videos: that of a video which the catalogue lacks.

    def __init__(
        self,
        stages: Stages,
        videos: Iterable[bytes],
        contract: Contract,
        settings: FeedSettings,
        queues: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        tables = _tables(videos, contract)
        key = contract.video_key.name
        order = ordered([video.decode() for video in tables[key]])
        super().__init__([tables[key][i].decode() for i in order], "feed")
        self._contract, self._settings = contract, settings
        self.ranker, self.retriever, self.chooser = map(_loaded, stages)
        if queues is not None and self.retriever is not None:
            fill_queues(self.retriever.index, queues)
        of_user = [f.name for f in query_features(contract)]
        of_pair = [f.name for f in asked_features(contract)]
        self._reads = {
            "ranker": _inputs(self.ranker, stages.ranker, [f.name for f in contract.inputs]),
            "retriever": _inputs(self.retriever, stages.retriever, [*of_user, "exclude", "queue"]),
            "chooser": _inputs(self.chooser, stages.chooser, of_pair),
        }
        self._weighs_retrieval = self.retriever is not None and settings.retrieval_weight > 0
        described = {f.name: f for f in contract.inputs if f.about == "video" and f.name != key}
        self.features = {name: _table(tables[name][order], feature) for name, feature in described.items()}
        between = feed.PUBLISHED_AT, feed.PRIMARY_CATEGORY, feed.FUSED_VECTOR
        self.published, self.category, self.content = (_table(tables[name][order]) for name in between)
        topic, author = topic_feature(contract), _author(contract)
        self.topics = _table(_listed(tables[topic.name][order]) if topic else np.full([len(order), 1], b"", object))
        first, categories = self.topics.numpy()[:-1, 0], tables[feed.PRIMARY_CATEGORY][order]
        self.topic = _table(_codes(map(_capped_by, first, categories)), missing=-1)
        self.author = _table(_codes(tables[author.name][order] if author else [b""] * len(order)), missing=-1)
        popular = _in_turn(_codes(first), tables[feed.POSITIVES][order])
        self.popular = tf.Variable(popular, trainable=False)
        self.strides = tf.Variable(_primes_above(len(popular)), trainable=False)
        self.answers = self._signatures()

    def save(self, directory: str) -> None:
        """Writes the SavedModel; the folder is made if need be."""
        save(self, self.answers, directory)

    def _signatures(self) -> dict[str, Any]:
        def recommend(examples: tf.Tensor) -> Tensors:
            return self._recommend(self._parse(examples))

        def rank(examples: tf.Tensor, video_ids: tf.Tensor) -> Tensors:
            return self._scores(self._parse(examples), video_ids)

        def cover(examples: tf.Tensor, video_ids: tf.Tensor) -> Tensors:
            return self._covers(self._parse(examples), video_ids)

        examples = tf.TensorSpec([None], tf.string, "examples")
        pairs = examples, tf.TensorSpec([None, None], tf.string, "video_ids")
        whole = tf.function(recommend, autograph=False).get_concrete_function(examples)
        return {
            "serving_default": whole,
            "recommend": whole,
            "rank": tf.function(rank, autograph=False).get_concrete_function(*pairs),
            "cover": tf.function(cover, autograph=False).get_concrete_function(*pairs),
        }

    def _parse(self, examples: tf.Tensor) -> _Asked:
        spec, width = parse_spec(self._contract), int(self.content.shape[1])
        named = query_features(self._contract)
        parsed = tf.io.parse_example(
            examples,
            {
                **{f.name: spec[f.name] for f in named},
                feed.NOW: tf.io.FixedLenFeature([], tf.int64, -1),
                feed.LENGTH: tf.io.FixedLenFeature([], tf.int64, self._settings.length),
                **{name: tf.io.VarLenFeature(tf.string) for name in (feed.EXCLUDE, feed.QUEUE, feed.CATEGORIES)},
                **{name: tf.io.VarLenFeature(tf.float32) for name in (feed.CATEGORY_EVENTS, feed.CATEGORY_RATES)},
                feed.PROFILE: tf.io.FixedLenFeature([width], tf.float32, [0.0] * width),
            },
        )
        now, length = parsed[feed.NOW], tf.clip_by_value(parsed[feed.LENGTH], 0, self._settings.most)
        clock = tf.cast(tf.timestamp(), tf.int64)
        return _Asked(
            features={f.name: _dense(parsed[f.name]) for f in named},
            now=tf.where(now < 0, clock, now),
            length=tf.cast(length, tf.int32),
            exclude=_dense(parsed[feed.EXCLUDE]),
            queue=_dense(parsed[feed.QUEUE]),
            categories=tf.sparse.to_dense(parsed[feed.CATEGORIES], feed.NO_CATEGORIES),
            events=_dense(parsed[feed.CATEGORY_EVENTS]),
            rates=_dense(parsed[feed.CATEGORY_RATES]),
            profile=parsed[feed.PROFILE],
        )

    def _recommend(self, asked: _Asked) -> Tensors:
        ids, sources, nearness = self._candidates(asked)
        answer = self._scores(asked, ids)
        order = self._order(answer["scores"], nearness)
        best = tf.math.top_k(tf.where(ids != "", order, -np.inf), tf.minimum(tf.shape(ids)[1], COMPETING)).indices
        competing = {name: tf.gather(value, best, batch_dims=1) for name, value in answer.items()}
        names, origins, order = (tf.gather(part, best, batch_dims=1) for part in (ids, sources, order))
        place = self._places(asked, names, origins, order)
        shown, there = tf.maximum(place, 0), place >= 0

        def at(value: tf.Tensor) -> tf.Tensor:
            return tf.gather(value, shown, batch_dims=1)

        video_ids = tf.where(there, at(names), "")
        return {
            "video_ids": video_ids,
            "sources": tf.where(there, at(origins), ""),
            "topics": take(self.topics, self._rows(video_ids)),
            "candidates": tf.reduce_sum(tf.cast(ids != "", tf.int32), axis=1),
            **{name: at(value) for name, value in competing.items()},
            **self._covers(asked, video_ids),
        }

    def _rows(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows of the tables, any shape."""
        number = self.number_of(ids)
        return tf.where(number < 0, self.ids.shape[0], number)

    def _order(self, scores: tf.Tensor, nearness: tf.Tensor) -> tf.Tensor:
        """What candidates are ordered by, of the ranker's scores and those of retrieval."""
        if not self._weighs_retrieval:
            return scores
        return tf.math.log(tf.maximum(scores, UNLIKELY)) + self._settings.retrieval_weight * nearness

    def _candidates(self, asked: _Asked) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids, sources and, where they count, scores of retrieval [B, N]; '' is none."""
        watched = [asked.features[f.name] for f in self._contract.histories]
        batch = tf.shape(asked.now)[0]
        history = tf.concat([tf.zeros([batch, 0], tf.string), *watched], axis=1)
        exclude = tf.concat([history, asked.exclude], axis=1)
        if self.retriever is None:
            ids = self._all_but(exclude)
            sources = tf.where(ids == "", "", "catalogue")
        else:
            answer = self._ask("retriever", {**asked.features, "exclude": asked.exclude, "queue": asked.queue})
            gone = self.number_of(answer["video_ids"]) < 0  # of the catalogue since the index was built
            ids, sources = (tf.where(gone, "", answer[name]) for name in ("video_ids", "sources"))
        nearness = answer["scores"] if self._weighs_retrieval else tf.zeros(tf.shape(ids))
        if not watched:
            return ids, sources, nearness
        new = ~tf.reduce_any(history != "", axis=1)[:, tf.newaxis]

        def with_popular() -> tuple[tf.Tensor, tf.Tensor]:
            for_new, sources_for_new = self._popular(asked, exclude, tf.shape(ids)[1])
            return tf.where(new, for_new, ids), tf.where(new, sources_for_new, sources)

        ids, sources = tf.cond(tf.reduce_any(new), with_popular, lambda: (ids, sources))
        return ids, sources, tf.where(new, 0.0, nearness)

    def _ask(self, stage: str, values: Mapping[str, tf.Tensor]) -> Tensors:
        """What a stage answers; it is given what it reads."""
        return dict(getattr(self, stage).signatures["raw"](**{name: values[name] for name in self._reads[stage]}))

    def _all_but(self, exclude: tf.Tensor) -> tf.Tensor:
        """The whole catalogue for each user, with '' for what is excluded."""
        batch, videos, numbers = tf.shape(exclude)[0], self.ids.shape[0], self.number_of(exclude)
        rows = tf.repeat(tf.range(batch)[:, tf.newaxis], tf.shape(exclude)[1], axis=1)
        places = tf.reshape(tf.stack([rows, tf.where(numbers < 0, videos, numbers)], axis=-1), [-1, 2])
        out = tf.scatter_nd(places, tf.ones(tf.shape(places)[:1], tf.int32), [batch, videos + 1])[:, :-1] > 0
        return tf.where(out, "", tf.convert_to_tensor(self.ids)[tf.newaxis])

    def _popular(self, asked: _Asked, exclude: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """For somebody without history: the most popular of all topics in turn, and some by lot, [B, width]."""
        videos, batch, excluded = self.ids.shape[0], tf.shape(exclude)[0], self.number_of(exclude)
        number = tf.minimum(width, COMPETING)
        lots = tf.cast(tf.math.ceil(self._settings.explore_share * tf.cast(number, tf.float64)), tf.int32)
        first = tf.minimum(number - lots + tf.shape(exclude)[1], videos)
        popular = tf.repeat(self.popular[tf.newaxis, :first], batch, axis=0)
        chosen = _first(_not_in(popular, excluded), number - lots)
        # Places in the order of popularity by a stride that is prime to their number, so that none comes twice.
        draws = tf.minimum(first + 8 * lots, videos)
        own = scattered(tf.bitwise.bitwise_xor(seeds(asked.features[self._contract.user_key.name]), asked.now))
        stride = take(self.strides, tf.cast(tf.math.floormod(own, self.strides.shape[0]), tf.int32))[:, tf.newaxis]
        drawn = scattered(own)[:, tf.newaxis] + stride * tf.range(tf.cast(draws, tf.int64))
        drawn = tf.cast(tf.math.floormod(drawn, videos), tf.int32)
        taken = tf.gather(chosen, tf.minimum(drawn, first - 1), batch_dims=1) & (drawn < first)
        by_lot = take(self.popular, drawn)
        explored = _first(_not_in(by_lot, excluded) & ~taken, lots)
        both = tf.concat([popular, by_lot], axis=1)
        kept = tf.ragged.boolean_mask(both, tf.concat([chosen, explored], axis=1)).to_tensor(-1)
        kept = tf.pad(kept, [[0, 0], [0, width - tf.shape(kept)[1]]], constant_values=-1)
        count = tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1, keepdims=True)
        sources = tf.where(tf.range(width) < count, "popular", "explore")
        return tf.where(kept < 0, "", take(self.ids, tf.maximum(kept, 0))), tf.where(kept < 0, "", sources)

    def _scores(self, asked: _Asked, ids: tf.Tensor) -> Tensors:
        """`scores` [B, N] and what else the ranker says; 0 where an id is ''."""
        places = tf.cast(tf.where(ids != ""), tf.int32)  # what is padding need not be scored
        answer = self._ask("ranker", self._pairs(asked, places[:, 0], tf.gather_nd(ids, places)))
        whole = {n: tf.scatter_nd(places, v, tf.concat([tf.shape(ids), tf.shape(v)[1:]], 0)) for n, v in answer.items()}
        return {"scores": whole.pop("score"), **whole}

    def _pairs(self, asked: _Asked, who: tf.Tensor, ids: tf.Tensor) -> Tensors:
        """All that a ranker reads of pairs of user and video, each [pairs, ...]."""
        rows = self._rows(ids)
        values = {name: tf.gather(value, who) for name, value in asked.features.items()}
        values |= {name: take(value, rows) for name, value in self.features.items()}
        values[self._contract.video_key.name] = ids
        known = {
            "derived.video_age_hours": self._ages(asked, who, rows),
            "derived.content_match": self._match(asked, who, rows),
            **self._of_category(asked, who, rows),
        }
        return values | {f.name: known[f.source] for f in self._contract.inputs if f.about == "both"}

    def _ages(self, asked: _Asked, who: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Hours since publication; NaN where not known."""
        published = take(self.published, rows)
        seconds = tf.cast(tf.maximum(tf.gather(asked.now, who) - published, 0), tf.float64)
        return tf.where(published != feed.UNKNOWN_TIME, tf.cast(seconds / HOUR, tf.float32), np.nan)

    def _match(self, asked: _Asked, who: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Cosine of content and profile; NaN where either is not known."""
        profile, content = tf.gather(asked.profile, who), take(self.content, rows)
        known = tf.reduce_any(profile != 0, axis=1) & tf.reduce_any(content != 0, axis=1)
        length = tf.where(known, tf.norm(profile, axis=1), 1.0)
        return tf.where(known, tf.reduce_sum(profile * content, axis=1) / length, np.nan)

    def _of_category(self, asked: _Asked, who: tf.Tensor, rows: tf.Tensor) -> Tensors:
        category = take(self.category, rows)
        here = tf.gather(asked.categories, who) == category[:, tf.newaxis]
        met, known = tf.reduce_any(here, axis=1), category != feed.NO_CATEGORIES
        values = zip((asked.events, asked.rates), feed.NEVER_MET, strict=True)
        events, rates = (
            tf.where(met, tf.reduce_sum(tf.where(here, tf.gather(value, who), 0.0), axis=1), default)
            for value, default in values
        )
        events, rates = (tf.where(known, value, np.nan) for value in (events, rates))
        return {"derived.user_category_events": events, "derived.user_category_positive_rate": rates}

    def _places(self, asked: _Asked, ids: tf.Tensor, sources: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        settings, rows = self._settings, self._rows(ids)
        published = take(self.published, rows)
        age = asked.now[:, tf.newaxis] - published
        fresh = (published != feed.UNKNOWN_TIME) & (age >= 0) & (age <= int(settings.fresh_hours * HOUR))
        groups = [(take(self.author, rows), settings.per_author), (take(self.topic, rows), settings.per_topic)]
        kept = [Kept(fresh, settings.fresh_share), Kept(sources == "explore", settings.explore_share)]
        return arrange(scores, ids != "", groups, kept, asked.length)

    def _covers(self, asked: _Asked, ids: tf.Tensor) -> Tensors:
        """The frame chosen for each video [B, C]."""
        if self.chooser is None:
            none, nan = tf.fill(tf.shape(ids), -1), tf.fill(tf.shape(ids), np.float32(np.nan))
            return {"frames": none, "frame_paths": tf.strings.substr(ids, 0, 0), "frame_scores": nan, "at_seconds": nan}
        who = tf.repeat(tf.range(tf.shape(ids)[0]), tf.shape(ids)[1])
        key = self._contract.video_key.name
        wanted = [f.name for f in asked_features(self._contract) if f.name != key]
        people = {name: tf.gather(asked.features[name], who) for name in wanted}
        answer = self._ask("chooser", {**people, key: tf.reshape(ids, [-1])})
        return {name: tf.reshape(answer[theirs], tf.shape(ids)) for name, theirs in _FRAMES.items()}


def _tables(videos: Iterable[bytes], contract: Contract) -> dict[str, np.ndarray]:
    """By name, what is known of the videos, in their order; lists padded with ''."""
    spec = parse_spec(contract)
    wanted = {f.name: spec[f.name] for f in contract.inputs if f.about == "video"}
    wanted |= {
        feed.PUBLISHED_AT: tf.io.FixedLenFeature([], tf.int64, feed.UNKNOWN_TIME),
        feed.PRIMARY_CATEGORY: tf.io.FixedLenFeature([], tf.string, feed.NO_CATEGORIES),
        feed.FUSED_VECTOR: tf.io.VarLenFeature(tf.float32),
        feed.POSITIVES: tf.io.FixedLenFeature([], tf.float32, 0.0),
    }
    longest = {f.name: f.max_length for f in contract.inputs if f.kind is Kind.IDS}
    rows, parts = iter(videos), []
    while chunk := list(islice(rows, CHUNK)):
        part = {n: _dense(v).numpy() for n, v in tf.io.parse_example(tf.constant(chunk), wanted).items()}
        parts.append({n: _listed(v)[:, : longest[n]] if n in longest else v for n, v in part.items()})
    if not parts:
        raise ContractError("feed: expected videos, got none: give the catalogue that is to be served")
    return {name: _stacked([part[name] for part in parts]) for name in wanted}


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(1, *(part.shape[1] for part in parts))
    blank = b"" if parts[0].dtype == object else 0
    return np.concatenate([np.pad(p, [(0, 0), (0, width - p.shape[1])], constant_values=blank) for p in parts])


def _table(values: np.ndarray, feature: Feature | None = None, missing: Any = None) -> tf.Variable:
    """With a last row of what is missing."""
    values = np.asarray(values)
    if missing is None:
        missing = b"" if values.dtype == object else np.nan if feature and feature.kind is Kind.NUMBER else 0
    blank = np.full([1, *values.shape[1:]], missing, values.dtype)
    return tf.Variable(np.concatenate([values, blank]), trainable=False)


def _listed(values: np.ndarray) -> np.ndarray:
    """Lists [V, any] with what is not '' at the front, at least one column; an id is a list of one."""
    values = values.reshape(len(values), -1)
    if not values.shape[1]:
        return np.full([len(values), 1], b"", object)
    return np.take_along_axis(values, np.argsort(values == b"", axis=1, kind="stable"), axis=1)


def _codes(names: Iterable[bytes]) -> np.ndarray:
    """A number for each name; -1 for ''."""
    names = list(names)
    number = {name: position for position, name in enumerate(sorted({*names} - {b""}))}
    return np.array([number.get(name, -1) for name in names], np.int32)


def _capped_by(topic: bytes, category: bytes) -> bytes:
    """A video's first topic; its primary category where it has none, by a name that no topic has; '' without either."""
    known = category not in (b"", feed.NO_CATEGORIES.encode())
    return topic or (b"\0" + category if known else b"")


def _in_turn(group: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Videos by rank within their group, the most popular ones of all groups first."""
    order = np.lexsort((-positives, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=group[order][:1] - 1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.asarray(order[np.lexsort((-positives[order], rank))], np.int32)


def _primes_above(number: int, count: int = 8) -> np.ndarray:
    """The first primes above a number, int64 [count]."""
    found: list[int] = []
    while len(found) < count:
        number += 1
        if number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            found.append(number)
    return np.array(found, np.int64)


def _not_in(numbers: tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
    """Bool [B, N]: which numbers are not among the excluded ones [B, any]."""
    return ~tf.reduce_any(numbers[:, :, tf.newaxis] == excluded[:, tf.newaxis, :], axis=2)


def _first(there: tf.Tensor, most: tf.Tensor) -> tf.Tensor:
    """Bool [B, N]: the first ones of each row that are there."""
    return there & (tf.cumsum(tf.cast(there, tf.int32), axis=1) <= most)


def _author(contract: Contract) -> Feature | None:
    return next((f for f in contract.inputs if f.source == "videos.author_id" and f.kind is Kind.ID), None)


def _loaded(path: str | None) -> Any:
    return None if path is None else tf.saved_model.load(path)


def _inputs(stage: Any, path: str | None, given: Sequence[str]) -> list[str]:
    """What a stage's signature `raw` reads.

    Raises:
        ContractError: It has none, or reads what is not given.
    """
    if stage is None:
        return []
    if "raw" not in stage.signatures:
        raise ContractError(
            f"{path}: expected a model with the signature `raw`, got {', '.join(stage.signatures)}: train it anew"
        )
    names = sorted(stage.signatures["raw"].structured_input_signature[1])
    lacking = sorted(set(names) - set(given))
    if lacking:
        raise ContractError(
            f"{path}: this model reads {', '.join(lacking)}, which the contract has no more: train it until it is "
            "pushed, or put the feature back"
        )
    return names


def _dense(value: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    return tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
