"""The served index of retrieval: videos by topic, a few contiguous pages read a query, exact scores within.

Each topic's videos are cut into cells around unit centres (a topic may have one cell or many, and a video sits in a
cell of each of its topics). A query reads the cells whose centres it points at most. Cells are stored as pages of
`PAGE` rows, one behind the other: copying whole pages is what makes plain ops fast, for a gather by row costs as much a
row as the score itself. Only ops of a stock TensorFlow occur.

B batch, V videos, D width, K cells, G pages, T topics, R most topics of a video, N answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from pydantic import Field

from trainer.layers.video_numbers import VideoNumbers, ordered, take
from trainer.settings import Settings

PAGE = 8
SAMPLE = 256  # queries that are kept to choose the number of probes by, at a rebuild too
COMPARED = 100  # recall of the index is at so many
CHUNK = 8192  # rows that are compared with all centres at once
LEAST = np.finfo(np.float32).min  # score of an answer that is missing


class IndexSettings(Settings):
    """How videos are stored and found.

    Attributes:
        cells: K; None is 8 sqrt(rows), so that centres and pages both grow by the root of the catalogue.
        probes: Cells a query reads; None is the fewest that reach `target_recall` on sample queries, and hold enough.
        target_recall: Share of the true best 100 that lies in the cells read.
        answers: N, the paper's N3.
        queue_share: Share of the answers kept for candidates of topic queues.
        queue_topics: The user's most frequent topics whose queues are read, the paper's N2.
        iterations: Of K-means.
        seed: Of K-means.
    """

    cells: int | None = Field(default=None, ge=1)
    probes: int | None = Field(default=None, ge=1)
    target_recall: float = Field(default=0.985, gt=0, le=1)
    answers: int = Field(default=600, ge=1)
    queue_share: float = Field(default=0.1, ge=0, le=1)
    queue_topics: int = Field(default=4, ge=1)
    iterations: int = Field(default=5, ge=1)
    seed: int = 0


class Found(NamedTuple):
    """Rows of the index for a batch of queries, each [B, rows]; number -1 (score -inf) is nothing."""

    scores: tf.Tensor
    numbers: tf.Tensor
    topics: tf.Tensor


class Catalogue(NamedTuple):
    """What an index is built of.

    Attributes:
        ids: [V], distinct.
        vectors: Float32 [V, D]; of length 1 if the cells are to be of use.
        topics: Topics of each video, best first; None, or nothing for any video, makes each cell a topic.
        trained: Bool [V], whether the towers knew the video when they were trained; None is all.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    topics: Sequence[Sequence[str]] | None = None
    trained: np.ndarray | None = None


class TopicIndex(VideoNumbers):
    """Finds videos for query vectors; see the head of this module. Its queues are empty until `fill_queues`.

    Args:
        catalogue: The videos.
        settings: How.
        sample: Queries [any, D] like those to come; None takes the videos themselves.

    Raises:
        ContractError: No videos, or one twice.
    """

    def __init__(self, catalogue: Catalogue, settings: IndexSettings, sample: np.ndarray | None = None) -> None:
        catalogue = _reordered(catalogue, ordered(catalogue.ids))
        super().__init__(catalogue.ids, "index")
        cells = _cells(catalogue, settings)
        self.settings, self.settings_json = settings, _kept(settings.model_dump_json())
        self.trained = _kept(np.ones(len(catalogue.ids), bool) if catalogue.trained is None else catalogue.trained)
        self.topic_names, self.video_topics = _kept(cells.names), _kept(cells.video_topics)
        self.centres = _kept(np.ascontiguousarray(cells.centres.T))
        self._lay_out(catalogue.vectors, cells)
        self.queues = _kept(np.full([len(cells.names), _longest_queue(catalogue, settings)], -1, np.int32))
        self.sample = _kept(_sample(catalogue.vectors if sample is None else sample, settings.seed))
        wanted = settings.probes or _fewest_probes(self.sample.numpy(), catalogue.vectors, cells, settings)
        self.probes = min(wanted, len(cells.centres))

    def _lay_out(self, vectors: np.ndarray, cells: _Cells) -> None:
        """Rows of each cell one behind the other, the last page of a cell filled up with rows scored -inf.

        Behind all cells comes one page that is empty.
        """
        counts = np.bincount(cells.cell, minlength=len(cells.centres))
        first = np.concatenate([[0], np.cumsum(-(-counts // PAGE))]).astype(np.int32)
        order = np.argsort(cells.cell, kind="stable")
        within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        slots = first[cells.cell[order]] * PAGE + within
        total = (first[-1] + 1) * PAGE
        rows, numbers = np.zeros((total, vectors.shape[1]), np.float32), np.full(total, -1)
        rows[slots], numbers[slots] = vectors[cells.video[order]], cells.video[order]
        slot_of = np.zeros(len(vectors), np.int32)
        slot_of[cells.video[order][::-1]] = slots[::-1]
        self.first, self.slot_of = _kept(first), _kept(slot_of)
        self.pages = _kept(rows.reshape(-1, PAGE * vectors.shape[1]))
        self.numbers = _kept(numbers.reshape(-1, PAGE).astype(np.int32))
        self.bias = _kept(np.where(numbers < 0, -np.inf, 0.0).astype(np.float32).reshape(-1, PAGE))
        self.page_topics = _kept(np.append(np.repeat(cells.topic, np.diff(first)), 0).astype(np.int32))

    def search(self, queries: tf.Tensor, rows: tf.Tensor | int) -> Found:
        """The best rows of the probed cells, [B, D] to [B, rows], B at least 1; a video of R topics is up to R rows."""
        probed = tf.math.top_k(queries @ self.centres, self.probes, sorted=False).indices

        def alone() -> tuple[tf.Tensor, tf.Tensor]:
            scores, slots = self._scan(queries[0], probed[0], rows)
            return scores[tf.newaxis], slots[tf.newaxis]

        def each() -> tuple[tf.Tensor, tf.Tensor]:
            types = (tf.float32, tf.int32)
            return tf.map_fn(lambda one: self._scan(one[0], one[1], rows), (queries, probed), fn_output_signature=types)

        return self._found(*tf.cond(tf.equal(tf.shape(queries)[0], 1), alone, each))

    def brute_force(self, queries: tf.Tensor, rows: tf.Tensor | int) -> Found:
        """What `search` would find if it read all cells; a query at a time, for the scores of many need much memory."""
        vectors, bias = tf.reshape(self.pages, [-1, queries.shape[1]]), tf.reshape(self.bias, [-1])

        def best(query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            top = tf.math.top_k(tf.linalg.matvec(vectors, query) + bias, tf.minimum(rows, tf.size(bias)))
            return top.values, top.indices

        return self._found(*tf.map_fn(best, queries, fn_output_signature=(tf.float32, tf.int32)))

    def _found(self, scores: tf.Tensor, slots: tf.Tensor) -> Found:
        numbers = tf.gather(tf.reshape(self.numbers, [-1]), slots)
        return Found(scores, numbers, take(self.page_topics, slots // PAGE))

    def _scan(self, query: tf.Tensor, probed: tf.Tensor, rows: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """One query [D]: scores of the best `rows` of the cells [probes], and their places among the pages' rows."""
        starts, limits = take(self.first, probed), take(self.first, probed + 1)
        pages = tf.raw_ops.RaggedRange(starts=starts, limits=limits, deltas=1).rt_dense_values
        read = tf.reshape(take(self.pages, pages), [-1, query.shape[0]])
        scores = tf.reshape(tf.matmul(read, query[:, tf.newaxis]), [-1, PAGE]) + take(self.bias, pages)
        # The best rows lie in as many pages with the best maxima, and few pages are soon sorted.
        best_pages = tf.math.top_k(
            tf.reduce_max(scores, axis=1), tf.minimum(rows, tf.size(pages)), sorted=False
        ).indices
        candidates = tf.reshape(tf.gather(scores, best_pages), [-1])
        best = tf.math.top_k(candidates, tf.minimum(rows, tf.size(candidates)))
        slots = tf.gather(tf.gather(pages, best_pages), best.indices // PAGE) * PAGE + best.indices % PAGE
        missing = [[0, rows - tf.size(slots)]]
        empty = self.numbers.shape[0] * PAGE - 1  # a row of the last page, which is empty
        return tf.pad(best.values, missing, constant_values=-np.inf), tf.pad(slots, missing, constant_values=empty)

    def answer(
        self, queries: tf.Tensor, seen: tf.Tensor, history: tf.Tensor, live: tf.Tensor, exact: bool = False
    ) -> dict[str, tf.Tensor]:
        """Candidates for a batch of users, best first.

        Args:
            queries: Float32 [B, D].
            seen: String [B, any], videos not to be answered; '' and unknown ones count for nothing.
            history: String [B, any], videos clicked: their most frequent topics choose the queues. Where it tells of no
                topic, the cells that the query points at do.
            live: String [B, any], candidates of a queue store, before those of the queues that were built in.
            exact: Read all cells.

        Returns:
            `video_ids` string, `scores` float32, `topics` string, `sources` string ('topic' or 'queue'), `trained` bool
            (whether the towers were trained with the video), each [B, N]; '' behind the last answer.
        """
        batch, copies, count = tf.shape(queries)[0], self.video_topics.shape[1], self.settings.answers
        # A loop over no query, and counts of none, have no shape: an empty batch is answered as one of a zero vector.
        fill = [[0, tf.maximum(1 - batch, 0)], [0, 0]]
        queries, seen, history, live = (tf.pad(part, fill) for part in (queries, seen, history, live))
        watched = self.number_of(seen)
        watched_rows = Found(tf.zeros_like(watched, tf.float32), watched, tf.zeros_like(watched))
        rows = (count + tf.shape(seen)[1]) * copies
        found = _joined(watched_rows, self.brute_force(queries, rows) if exact else self.search(queries, rows))
        # A video has a row for each topic that was probed: what queues leave room for is counted in videos.
        found = _at(found, _first_of_each(found.numbers, tf.shape(seen)[1], count, self.ids.shape[0]))
        queued = self._queued(queries, self.number_of(history), self.number_of(live))
        head = count - int(count * self.settings.queue_share)
        joined = _joined(watched_rows, _columns(found, 0, head), queued, _columns(found, head, None))
        kept = _first_of_each(joined.numbers, tf.shape(seen)[1], count, self.ids.shape[0])
        named = self._named(joined, kept, tf.shape(seen)[1] + head, tf.shape(queued.numbers)[1])
        return {name: part[:batch] for name, part in named.items()}

    def _queued(self, queries: tf.Tensor, history: tf.Tensor, live: tf.Tensor) -> Found:
        """Candidates of queues, live ones first, then the best of each of the user's topics, the second best, ..."""
        topics = self._favourite_topics(queries, history)
        built_in = tf.transpose(take(self.queues, topics), [0, 2, 1])
        batch = tf.shape(queries)[0]
        width = self.queues.shape[1] * topics.shape[1]
        numbers = tf.concat([live, tf.reshape(built_in, [batch, width])], axis=1)
        live_topics = take(self.video_topics, tf.maximum(live, 0))[:, :, 0]
        names = tf.concat([live_topics, tf.tile(topics, [1, self.queues.shape[1]])], axis=1)
        rows = tf.gather(tf.reshape(self.pages, [-1, queries.shape[1]]), take(self.slot_of, tf.maximum(numbers, 0)))
        return Found(tf.einsum("bqd,bd->bq", rows, queries), numbers, names)

    def _favourite_topics(self, queries: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        """The topics that occur most in the videos clicked; the query's nearest ones where they are too few."""
        wanted = min(self.settings.queue_topics, self.topic_names.shape[0], self.centres.shape[1])
        of_videos = tf.where(history[:, :, tf.newaxis] < 0, -1, take(self.video_topics, tf.maximum(history, 0)))
        flat = tf.reshape(of_videos, [tf.shape(history)[0], -1]) + 1
        counts = tf.math.bincount(flat, minlength=self.topic_names.shape[0] + 1, axis=-1)[:, 1:]
        most = tf.math.top_k(counts, wanted)
        nearest = tf.math.top_k(queries @ self.centres, wanted).indices
        return tf.where(most.values > 0, most.indices, take(self.page_topics, take(self.first, nearest)))

    def _named(
        self, rows: Found, kept: tf.Tensor, queue_from: tf.Tensor, queue_size: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Rows [B, W] at the columns `kept` [B, N] (-1 nothing), by falling score, in words."""
        missing, at = kept < 0, tf.maximum(kept, 0)
        scores = tf.where(missing, LEAST, tf.gather(rows.scores, at, batch_dims=1))
        ordered = tf.math.top_k(scores, self.settings.answers)
        missing, at = (tf.gather(part, ordered.indices, batch_dims=1) for part in (missing, at))
        numbers = tf.maximum(tf.gather(rows.numbers, at, batch_dims=1), 0)
        topics = take(self.topic_names, tf.gather(rows.topics, at, batch_dims=1))
        queued = (at >= queue_from) & (at < queue_from + queue_size)
        return {
            "video_ids": tf.where(missing, "", take(self.ids, numbers)),
            "scores": ordered.values,
            "topics": tf.where(missing, "", topics),
            "sources": tf.where(missing, "", tf.where(queued, "queue", "topic")),
            "trained": take(self.trained, numbers) & ~missing,
        }


def fill_queues(index: Any, queues: Mapping[str, Sequence[str]]) -> None:
    """Puts the videos of topic queues into an index, in place of those it held.

    Args:
        index: A `TopicIndex`, or what is loaded of one in a SavedModel: nothing else of it changes.
        queues: Videos by topic, best first. Topics and videos that the index lacks are left out, and so is what is
            behind the longest queue that it has room for.
    """
    if not index.queues.shape[1] and any(topic.decode() in queues for topic in index.topic_names.numpy()):
        logging.warning("the index has no room for topic queues: train retrieval anew, or build its index anew")
    number = {video.decode(): position for position, video in enumerate(index.ids.numpy())}
    table = np.full(index.queues.shape, -1, np.int32)
    for row, topic in zip(table, index.topic_names.numpy(), strict=True):
        numbers = [number[video] for video in queues.get(topic.decode(), ()) if video in number][: len(row)]
        row[: len(numbers)] = numbers
    index.queues.assign(table)


class _Cells(NamedTuple):
    """Which video sits where: pairs of video and cell, and what the cells are."""

    video: np.ndarray  # [pairs]
    cell: np.ndarray  # [pairs]
    centres: np.ndarray  # [K, D], unit rows
    topic: np.ndarray  # [K]
    names: list[str]  # [T]
    video_topics: np.ndarray  # [V, R], -1 behind the last
    video_cells: np.ndarray  # [V, R]


def spherical_k_means(vectors: np.ndarray, cells: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K-means by dot product with centres of length 1, which for such a probe beats plain K-means by a third.

    Args:
        vectors: [n, D].
        cells: At most so many; those that end up empty are left out.
        iterations: Of at most 64 vectors a cell.
        seed: Decides the start.

    Returns:
        The cell of each vector [n], and the centres [K, D].
    """
    random = np.random.default_rng(seed)
    centres = tf.math.l2_normalize(vectors[random.choice(len(vectors), min(cells, len(vectors)), replace=False)], 1)
    learned = vectors[random.permutation(len(vectors))[: 64 * cells]]
    for _ in range(iterations):
        sums = tf.math.unsorted_segment_sum(learned, _nearest(learned, centres), len(centres))
        centres = tf.where(tf.norm(sums, axis=1, keepdims=True) > 0, tf.math.l2_normalize(sums, 1), centres)
    used, cell = np.unique(_nearest(vectors, centres), return_inverse=True)
    return cell, centres.numpy()[used]


def _nearest(vectors: np.ndarray, centres: tf.Tensor) -> np.ndarray:
    chunks = (vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK))
    return np.concatenate([tf.argmax(tf.matmul(chunk, centres, transpose_b=True), 1).numpy() for chunk in chunks])


def _cells(catalogue: Catalogue, settings: IndexSettings) -> _Cells:
    """Each topic cut into its share of the cells; without topics, each cell is one."""
    given = _given_topics(catalogue)
    videos = len(catalogue.ids)
    labels = [tuple(dict.fromkeys(topics)) or ("other",) for topics in given] if given else [("",)] * videos
    pairs = [(video, topic) for video, topics in enumerate(labels) for topic in topics]
    video, names = np.array([v for v, _ in pairs]), sorted({topic for _, topic in pairs})
    number = {name: position for position, name in enumerate(names)}
    topic_of_pair = np.array([number[topic] for _, topic in pairs])
    total = settings.cells or round(8 * len(pairs) ** 0.5)
    cell, centres = np.zeros(len(pairs), int), []
    topic: list[int] = []
    for position in range(len(names)):
        members = np.flatnonzero(topic_of_pair == position)
        share = max(1, round(total * len(members) / len(pairs)))
        own, own_centres = spherical_k_means(
            catalogue.vectors[video[members]], share, settings.iterations, settings.seed
        )
        cell[members] = own + len(topic)
        centres.append(own_centres)
        topic += [position] * len(own_centres)
    if not given:
        topic, topic_of_pair = list(range(len(topic))), cell
        names = [f"c{position:05d}" for position in topic]
    columns = np.arange(len(pairs)) - np.repeat(np.cumsum([0, *map(len, labels[:-1])]), list(map(len, labels)))
    video_topics = np.full((videos, max(map(len, labels))), -1, np.int32)
    video_cells = video_topics.copy()
    video_topics[video, columns], video_cells[video, columns] = topic_of_pair, cell
    return _Cells(video, cell, np.concatenate(centres), np.array(topic), names, video_topics, video_cells)


def _given_topics(catalogue: Catalogue) -> Sequence[Sequence[str]] | None:
    """Topics of the videos; None where no video has any."""
    return catalogue.topics if catalogue.topics is not None and any(catalogue.topics) else None


def _fewest_probes(queries: np.ndarray, vectors: np.ndarray, cells: _Cells, settings: IndexSettings) -> int:
    """The least number of cells that hold `target_recall` of the queries' true best, and videos enough to answer with.

    Enough are twice as many as are answered, for so many may have been seen; counted in their first cells alone, and
    for `target_recall` of the queries.
    """
    best = tf.math.top_k(queries @ vectors.T, min(COMPARED, len(vectors))).indices.numpy()
    order = np.argsort(-(queries @ cells.centres.T), axis=1)
    ranks = np.argsort(order, axis=1)
    ranks = np.concatenate([ranks, np.full((len(ranks), 1), len(cells.centres))], axis=1)  # cell -1 is never read
    needed = ranks[np.arange(len(ranks))[:, None, None], cells.video_cells[best]].min(axis=2)
    held = np.bincount(cells.video_cells[:, 0], minlength=len(cells.centres))[order].cumsum(axis=1)
    enough = np.argmax(held >= min(2 * settings.answers, len(vectors)), axis=1)
    return 1 + max(_least(needed, settings.target_recall), _least(enough, settings.target_recall))


def _least(values: np.ndarray, share: float) -> int:
    """The least number that is no less than a share of the values."""
    return int(np.sort(values, axis=None)[int(np.ceil(share * values.size)) - 1])


def _longest_queue(catalogue: Catalogue, settings: IndexSettings) -> int:
    """How much of a topic's queue is kept: room for watched ones, and none where cells are the topics."""
    if not _given_topics(catalogue):
        return 0
    return -(-3 * int(settings.answers * settings.queue_share) // settings.queue_topics)


def _first_of_each(numbers: tf.Tensor, skipped: tf.Tensor, count: int, videos: int) -> tf.Tensor:
    """Columns of the first `count` distinct numbers of each row that do not occur in its first `skipped` columns.

    Args:
        numbers: Int32 [B, W]; -1 is nothing.
        skipped: Scalar.
        count: N.
        videos: V.

    Returns:
        Int32 [B, N], -1 behind the last.
    """
    batch, width = tf.shape(numbers)[0], tf.shape(numbers)[1]
    keys = tf.cast(numbers, tf.int64) + tf.cast(tf.range(batch)[:, tf.newaxis], tf.int64) * videos
    places = tf.cast(tf.where(tf.reshape(numbers, [-1]) >= 0)[:, 0], tf.int32)
    distinct, group = tf.unique(tf.gather(tf.reshape(keys, [-1]), places))
    first = tf.gather(places, tf.math.unsorted_segment_min(tf.range(tf.size(group)), group, tf.size(distinct)))
    first = tf.boolean_mask(first, first % width >= skipped)
    rows = tf.RaggedTensor.from_value_rowids(first % width, first // width, batch, validate=False)
    return rows.to_tensor(-1, shape=[None, count])


def _joined(*parts: Found) -> Found:
    return Found(*(tf.concat(columns, axis=1) for columns in zip(*parts, strict=True)))


def _at(found: Found, columns: tf.Tensor) -> Found:
    """The rows at the columns [B, N], nothing at -1."""
    scores, numbers, topics = (tf.gather(part, tf.maximum(columns, 0), batch_dims=1) for part in found)
    return Found(tf.where(columns < 0, LEAST, scores), tf.where(columns < 0, -1, numbers), topics)


def _columns(found: Found, start: int, end: int | None) -> Found:
    return Found(*(part[:, start:end] for part in found))


def _reordered(catalogue: Catalogue, order: np.ndarray) -> Catalogue:
    return catalogue._replace(
        ids=[catalogue.ids[i] for i in order],
        vectors=np.asarray(catalogue.vectors, np.float32)[order],
        topics=catalogue.topics and [catalogue.topics[i] for i in order],
        trained=None if catalogue.trained is None else catalogue.trained[order],
    )


def _sample(queries: np.ndarray, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).permutation(len(queries))[:SAMPLE]
    return np.asarray(queries, np.float32)[chosen]


def _kept(value: np.ndarray | list[str] | str) -> tf.Variable:
    return tf.Variable(value, trainable=False)
