"""What a retrieval model is gated by, as TFMA metrics over its own signature `evaluate`: TFMA has none for retrieval.

Examples are impressions; a positive one asks: is this video, of all videos, among the answers to this user at this
moment? The rank is that in the full answer of the exported index, never one among sampled videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow_model_analysis.metrics import metric_types

from pipeline.answer_metrics import AnswerCombiner, computations
from pipeline.models import RECALLS, RETRIEVAL

TOP = 20


class RetrievalMetric(metric_types.Metric):
    """One of `pipeline.models.RETRIEVAL`.

    - recall_at_K: mean over users with a positive of the share of their positives that were among the first K answers;
    - ndcg: mean over positives of 1 / log2(1 + rank), 0 beyond 20: one video is sought each time;
    - hit_rate: share of users with a positive among the first 20 answers;
    - coverage: share of the catalogue that stands among the first 20 answers to anyone;
    - share_of_new: share of the first 20 answers that the towers were not trained with;
    - index_recall: share of what reading the whole index puts first, 100, that is among the answers.

    Args:
        name: Which.
        user: Feature that holds the user's id.
        video: Feature that holds the video's id.
    """

    def __init__(self, name: str, user: str, video: str) -> None:
        super().__init__(_computations, name=name, user=user, video=video)


metric_types.register_metric(RetrievalMetric)


def _no_hits() -> np.ndarray:
    return np.zeros(1 + len(RECALLS))


@dataclass
class Sums:
    """What has been seen so far.

    Attributes:
        users: By user: positives, and those found at each of `RECALLS`.
        gains: Sum of NDCG over positives.
        first: Videos among the first 20 answers to anyone.
        counts: First answers, new ones of them; exact ones, found ones of them.
        size: Of the catalogue.
    """

    users: dict[str, np.ndarray] = field(default_factory=lambda: defaultdict(_no_hits))
    gains: float = 0.0
    first: set[bytes] = field(default_factory=set)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(4))
    size: int = 0

    def add(self, user: str, video: bytes, label: float, answers: Mapping[str, np.ndarray]) -> None:
        """Counts one example.

        Args:
            user: Id.
            video: The impression's.
            label: Above 0 is a positive.
            answers: One row of each output of the signature `evaluate`.
        """
        found, exact = answers["video_ids"], answers["exact_ids"]
        if label > 0:
            rank = next(iter(np.flatnonzero(found == video)), np.inf)
            self.users[user] += [1, *(rank < k for k in RECALLS)]
            self.gains += 1 / np.log2(2 + rank) if rank < TOP else 0.0
        named, sought = found[:TOP] != b"", exact[exact != b""]
        new = ~answers["trained"][:TOP][named]
        self.first |= set(found[:TOP][named])
        self.counts += [named.sum(), new.sum(), len(sought), np.isin(sought, found).sum()]
        self.size = max(self.size, int(answers["catalogue_size"][0]))

    def merge(self, other: Sums) -> None:
        """Counts what the other has counted."""
        for user, hits in other.users.items():
            self.users[user] += hits
        self.gains, self.size = self.gains + other.gains, max(self.size, other.size)
        self.counts, self.first = self.counts + other.counts, self.first | other.first

    def values(self) -> dict[str, float]:
        """All of them; NaN where there is nothing to tell by."""
        hits = np.array(list(self.users.values())).reshape(-1, 1 + len(RECALLS))
        shown, new, exact, found = self.counts
        return {
            **{f"recall_at_{k}": _mean(hits[:, column] / hits[:, 0]) for column, k in enumerate(RECALLS, start=1)},
            "ndcg": _ratio(self.gains, hits[:, 0].sum()),
            "hit_rate": _mean(hits[:, 1 + RECALLS.index(TOP)] > 0),
            "coverage": _ratio(len(self.first), self.size),
            "share_of_new": _ratio(new, shown),
            "index_recall": _ratio(found, exact),
        }


def _mean(numbers: np.ndarray) -> float:
    return float(numbers.mean()) if len(numbers) else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _computations(name: str, user: str, video: str, model_names: list[str] | None = None, **unused: Any) -> list[Any]:
    return computations(name, model_names, lambda model: _Combiner(model, user, video))


class _Combiner(AnswerCombiner):
    def __init__(self, model: str, user: str, video: str) -> None:
        super().__init__(model, RETRIEVAL, (user, video), Sums)

    def add_input(self, accumulator: Sums, element: Any) -> Sums:
        user, video = (np.ravel(element.features[name])[0] for name in self.features)
        accumulator.add(user, video, *self.answered(element))
        return accumulator
