"""What a model of videos and their frames is gated by, as TFMA metrics over its own signature `evaluate`.

Examples are impressions. A positive one asks how high its video stands among those the user has not opened; one with
liked frames asks how high those stand among the video's own. Of equal frames each place is as likely, so that a model
that tells them not apart does as well as chance; of equal videos half are above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow_model_analysis.metrics import metric_types

from pipeline.answer_metrics import AnswerCombiner, computations
from pipeline.models import COVERS

TOP = 15
FRAMES_AT = range(1, 6)


class CoverMetric(metric_types.Metric):
    """One of `pipeline.models.COVERS`.

    - hits, ndcg: HR@15 and NDCG@15 of a positive's video among the whole catalogue but for what the user opened before,
      mean over the positives of a user and then over users; hits_sampled, ndcg_sampled: among 1,000 others drawn, mean
      of ten times; a video that the user opened before, and that may have been learned from, is not sought;
    - frame_hits_at_K, frame_ndcg_at_K: of the liked frames among the video's own, mean over impressions with a liked
      frame; frame_hits_at_1_random and frame_hits_at_1_popular: what chance, and the average user's taste, would have;
    - frame_lift: frame_hits_at_1 over frame_hits_at_1_random; frame_lift_popular: over frame_hits_at_1_popular.

    Args:
        name: Which.
        user: Feature that holds the user's id.
        liked: Feature that holds the indices of liked frames; "" where nothing is known of them.
    """

    def __init__(self, name: str, user: str, liked: str) -> None:
        super().__init__(_computations, name=name, user=user, liked=liked)


metric_types.register_metric(CoverMetric)


def places(greater: float, equal: int, top: int) -> tuple[float, float]:
    """Chance of a place among the first, and expected discount, of one of `equal` entries behind `greater` others.

    Args:
        greater: Entries scored higher; may be a half.
        equal: Entries scored the same, itself included, at least 1.
        top: K.

    Returns:
        The share of its places, each as likely, below K; and the mean over them of 1 / log2(2 + place), 0 from K on.
    """
    ranks = greater + np.arange(equal)
    found = ranks < top
    return float(found.mean()), float(np.where(found, 1 / np.log2(2 + ranks), 0).mean())


def _ideal(positives: int, top: int) -> float:
    return float((1 / np.log2(2 + np.arange(min(positives, top)))).sum())


@dataclass
class Sums:
    """What has been seen so far.

    Attributes:
        users: By user: positives, and sums over them of hits, ndcg, hits_sampled and ndcg_sampled.
        frames: Sums over impressions with a liked frame of `_of_frames`.
        judged: How many such impressions there were.
    """

    users: dict[str, np.ndarray] = field(default_factory=lambda: defaultdict(_nothing))
    frames: np.ndarray = field(default_factory=lambda: np.zeros(2 * len(FRAMES_AT) + 2))
    judged: int = 0

    def add(self, user: str, label: float, liked: Iterable[int], answer: Mapping[str, np.ndarray]) -> None:
        """Counts one example.

        Args:
            user: Id.
            label: Above 0 is a positive.
            liked: Indices of frames.
            answer: One row of each output of the signature `evaluate`.
        """
        if label > 0 and not answer["opened"][0]:
            self.users[user] += [1.0, *_of_video(float(answer["above"][0]), answer["above_sampled"])]
        there = [index for index in liked if index < len(answer["frame_scores"])]
        there = [index for index in there if not np.isnan(answer["frame_scores"][index])]
        if there:
            self.frames += _of_frames(there, answer["frame_scores"], answer["popular_frame_scores"])
            self.judged += 1

    def merge(self, other: Sums) -> None:
        """Counts what the other has counted."""
        for user, rows in other.users.items():
            self.users[user] += rows
        self.frames, self.judged = self.frames + other.frames, self.judged + other.judged

    def values(self) -> dict[str, float]:
        """All of them; NaN where there is nothing to tell by."""
        of_users = np.array([sums[1:] / sums[0] for sums in self.users.values()]).reshape(-1, 4)
        videos = of_users.mean(axis=0) if len(of_users) else np.full(4, np.nan)
        frames = self.frames / self.judged if self.judged else np.full(len(self.frames), np.nan)
        hits, ndcg = frames[: len(FRAMES_AT)], frames[len(FRAMES_AT) : 2 * len(FRAMES_AT)]
        random, popular = frames[-2:]
        return {
            **dict(zip(("hits", "ndcg", "hits_sampled", "ndcg_sampled"), map(float, videos), strict=True)),
            **{f"frame_hits_at_{k}": float(hits[k - 1]) for k in FRAMES_AT},
            **{f"frame_ndcg_at_{k}": float(ndcg[k - 1]) for k in FRAMES_AT},
            "frame_hits_at_1_random": float(random),
            "frame_hits_at_1_popular": float(popular),
            "frame_lift": float(hits[0] / random),
            "frame_lift_popular": float(hits[0] / popular),
        }


def _of_video(above: float, drawn: np.ndarray) -> tuple[float, float, float, float]:
    """hits, ndcg, hits_sampled and ndcg_sampled of a positive, given its rank among all, and among those drawn [times].

    One video is sought each time.
    """
    ranks = np.concatenate([[above], drawn])
    found = ranks < TOP
    gains = np.where(found, 1 / np.log2(2 + ranks), 0.0)
    return float(found[0]), float(gains[0]), float(found[1:].mean()), float(gains[1:].mean())


def _nothing() -> np.ndarray:
    return np.zeros(5)


def _of_frames(liked: list[int], scores: np.ndarray, popular: np.ndarray) -> np.ndarray:
    """Hits and NDCG at each K, and hits at 1 by chance and of the average user."""
    known = scores[~np.isnan(scores)]

    def measured(own: np.ndarray, top: int) -> tuple[float, float]:
        all_scores = own[~np.isnan(own)]
        each = [places(float((all_scores > own[i]).sum()), int((all_scores == own[i]).sum()), top) for i in liked]
        hits, gains = np.array(each).T
        return float(hits.mean()), float(gains.sum() / _ideal(len(liked), top))

    at = np.array([measured(scores, k) for k in FRAMES_AT]).T
    return np.concatenate([at[0], at[1], [1 / len(known), measured(popular, 1)[0]]])


def _computations(name: str, user: str, liked: str, model_names: list[str] | None = None, **unused: Any) -> list[Any]:
    return computations(name, model_names, lambda model: _Combiner(model, user, liked))


class _Combiner(AnswerCombiner):
    def __init__(self, model: str, user: str, liked: str) -> None:
        super().__init__(model, COVERS, [user, *filter(None, [liked])], Sums)

    def add_input(self, accumulator: Sums, element: Any) -> Sums:
        user, *liked = (np.ravel(element.features.get(name, ())) for name in self.features)
        label, answer = self.answered(element)
        accumulator.add(user[0], label, [int(index) for found in liked for index in found if index], answer)
        return accumulator
