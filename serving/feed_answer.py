"""What a served feed answers, read from its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cover:
    """The frame that a video is shown by.

    Attributes:
        frame: Its index.
        path: Of the picture, within the world.
        score: Of the model that chose it.
        at_seconds: When it is shown; None where that is not known.
    """

    frame: int
    path: str
    score: float
    at_seconds: float | None


@dataclass(frozen=True)
class Shown:
    """One video of a feed.

    Attributes:
        video_id: Its id.
        score: Of the ranker.
        source: Where the candidate comes from.
        topics: Their ids, best first.
        modality_weights: How much each content vector counted, in the order of the contract.
        cover: None where no model chooses, or the video has no frame.
    """

    video_id: str
    score: float
    source: str
    topics: list[str]
    modality_weights: list[float]
    cover: Cover | None


def shown_videos(answer: Mapping[str, Array]) -> list[Shown]:
    """The feed of the first user of an answer to `recommend`, best first."""
    places = range(answer["video_ids"].shape[1])
    rows = [{name: value[0][place] for name, value in answer.items() if value.ndim > 1} for place in places]
    return [
        Shown(
            video_id=row["video_ids"].decode(),
            score=float(row["scores"]),
            source=row["sources"].decode(),
            topics=[topic.decode() for topic in row["topics"] if topic],
            modality_weights=[float(weight) for weight in row.get("modality_weights", ())],
            cover=chosen_cover(row),
        )
        for row in rows
        if row["video_ids"]  # behind the last of a shorter feed nothing is shown
    ]


def chosen_cover(row: Mapping[str, Any]) -> Cover | None:
    """The cover in the outputs of one video."""
    if row["frames"] < 0:
        return None
    at = float(row["at_seconds"])
    path, score = row["frame_paths"].decode(), float(row["frame_scores"])
    return Cover(int(row["frames"]), path, score, None if math.isnan(at) else at)
