"""Topics: clusters of videos that are alike in cover, title and tags, with ids that stay and names for people.

Source: "Multimodal Topic Learning for Video Recommendation", section III.A.3.

N videos, D width of a topic vector, K topics, T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

from components.topic_learner.settings import TopicSettings
from components.topic_learner.tag_graph import Floats, incidence

NAMED_BY = 3  # tags in a name
SHOWN = 8  # tags and titles kept of a topic
_BATCH = 4096


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """Rows of length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def topic_vectors(z: npt.NDArray[Any], tags: npt.NDArray[Any]) -> Floats:
    """Representation and tag vector side by side, either of length 1, then the whole: both weigh the same.

    The paper normalises the whole alone, which does not bring about what it wants from it.

    Args:
        z: [N, D1], zeros where a video has neither cover nor title.
        tags: [N, D2], zeros where it has no tags.

    Returns:
        [N, D1 + D2].
    """
    return unit(np.concatenate([unit(z), unit(tags)], axis=1))


def cluster(vectors: Floats, settings: TopicSettings, kept: Floats | None = None) -> Floats:
    """Centres by K-means, of length 1, at most as many as there are videos.

    Args:
        vectors: [N, D], rows of length 1, N at least 1.
        settings: K and seed.
        kept: [any, D]: where topics of the last run lie now. Clustering starts from there, so that topics change no
            more than the videos do; None: there are none.

    Returns:
        [K, D].
    """
    number = min(settings.topics, len(np.unique(vectors, axis=0)))
    start: Any = "k-means++"
    if kept is not None and len(kept):
        missing = max(number - len(kept), 0)
        more = kmeans_plusplus(vectors, missing, random_state=settings.seed)[0] if missing else vectors[:0]
        start = np.concatenate([kept[:number], more])
    tries = 3 if kept is None or not len(kept) else 1
    means = MiniBatchKMeans(number, init=start, n_init=tries, batch_size=_BATCH, random_state=settings.seed)
    return unit(means.fit(vectors).cluster_centers_)


def assign(
    vectors: Floats, centres: Floats, settings: TopicSettings
) -> tuple[sparse.csr_matrix, npt.NDArray[np.bool_]]:
    """The topics of each video: all that are similar enough, else the nearest.

    Args:
        vectors: [N, D], rows of length 1, or zeros: no topic.
        centres: [K, D], rows of length 1.
        settings: tau_3 and how many at most.

    Returns:
        [N, K] with the cosine where a video has the topic, in the row's storage best first; and bool [N], whether any
        topic passed the threshold.
    """
    columns, values, counts, passed = [], [], [], []
    for first in range(0, len(vectors), _BATCH):
        part = vectors[first : first + _BATCH]
        cosine = part @ centres.T
        best = np.argsort(-cosine, axis=1, kind="stable")[:, : settings.most]
        sorted_cosine = np.take_along_axis(cosine, best, axis=1)
        enough = sorted_cosine >= settings.threshold
        passed.append(enough[:, 0] & part.any(axis=1))
        enough[:, 0] = True
        enough &= part.any(axis=1, keepdims=True)
        columns.append(best[enough])
        values.append(sorted_cosine[enough])
        counts.append(enough.sum(axis=1))
    ends = np.cumsum(np.concatenate([[0], *counts]))
    shape = (len(vectors), len(centres))
    return sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape), np.concatenate(passed)


def places(vectors: Floats, topic_of: Sequence[str | None]) -> tuple[list[str], Floats]:
    """Where the topics of the last run lie among today's vectors: the mean over the videos that they were best for.

    A representation that was trained again has other axes, so that the last centres themselves say nothing.

    Args:
        vectors: [N, D].
        topic_of: [N], the best topic of each video in the last run; None: it had none.

    Returns:
        The ids of the topics that have videos still, sorted, and [as many, D], rows of length 1.
    """
    ids = sorted({topic for topic in topic_of if topic is not None})
    members = incidence([[topic] if topic else [] for topic in topic_of], ids)
    return ids, unit(members.T @ vectors)


def stable_ids(
    centres: Floats, ids: Sequence[str], kept: Floats, next_id: int, at_least: float
) -> tuple[list[str], int]:
    """The id of each centre: that of the topic it continues, or a new one. An id that ended is never given again.

    Args:
        centres: [K, D], rows of length 1.
        ids: Of the last run's topics.
        kept: Where they lie now, [len(ids), D], rows of length 1.
        next_id: The first number that was never given.
        at_least: A centre that is less similar to its match (cosine) is a new topic.

    Returns:
        [K] ids, "t000" and so on, and the next number.
    """
    given: list[str] = [""] * len(centres)
    if len(ids):
        cosine = centres @ kept.T
        for centre, topic in zip(*linear_sum_assignment(-cosine), strict=True):
            if cosine[centre, topic] >= at_least:
                given[centre] = ids[topic]
    for centre, known in enumerate(given):
        if not known:
            given[centre] = f"t{next_id:03d}"
            next_id += 1
    return given, next_id


def describe(
    ids: Sequence[str],
    members: sparse.csr_matrix,
    has: sparse.csr_matrix,
    tags: Sequence[str],
    titles: Sequence[str],
) -> list[dict[str, Any]]:
    """What people see of each topic.

    The lift of a tag is its share among the topic's videos over its share among all; one video more is expected than
    chance would have it, so that a tag of one or two videos does not come first.

    Args:
        ids: [K].
        members: [N, K], cosines, from `assign`.
        has: [N, T], from `incidence`.
        tags: [T].
        titles: [N], "" where missing.

    Returns:
        By topic: id, name, tags (by lift, best first), titles (nearest first) and size.
    """
    by_topic = members.tocsc()
    counted = sparse.csc_matrix((np.ones_like(by_topic.data), by_topic.indices, by_topic.indptr), by_topic.shape)
    within = (counted.T @ has).toarray()
    sizes, everywhere = np.diff(by_topic.indptr), np.asarray(has.sum(axis=0)).ravel()
    lift = within / (sizes[:, np.newaxis] * everywhere / max(members.shape[0], 1) + 1.0)
    found = []
    for k, topic in enumerate(ids):
        best = [tags[i] for i in np.argsort(-lift[k], kind="stable")[:SHOWN] if within[k, i]]
        here = slice(by_topic.indptr[k], by_topic.indptr[k + 1])
        nearest = by_topic.indices[here][np.argsort(-by_topic.data[here], kind="stable")]
        shown = list(dict.fromkeys(titles[i] for i in nearest if titles[i]))[:SHOWN]
        name = " · ".join(best[:NAMED_BY]) or (shown[0] if shown else topic)
        found.append({"id": topic, "name": name, "tags": best, "titles": shown, "size": int(sizes[k])})
    return found


def report(members: sparse.csr_matrix, passed: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Mean topics a video, and the shares of videos that have only the nearest, and none at all."""
    topics = np.diff(members.indptr)
    return {
        "videos": len(topics),
        "topics": int(np.count_nonzero(np.bincount(members.indices, minlength=members.shape[1]))),
        "mean_topics": float(topics.mean()),
        "unassigned": float(1 - passed.mean()),
        "without_topic": float((topics == 0).mean()),
    }
