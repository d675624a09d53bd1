"""The topics of a run for people: name, size, covers of the videos nearest to it, and how often they are clicked."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import tensorflow as tf

from components.world import files, tables
from transform import clips, videos

SHOWN, COVERS = 60, 4  # topics in the gallery, covers of each


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes:
        id: Stays from run to run.
        name: Of its tags.
        size: How many videos have it.
        covers: Of the nearest videos, JPEG as base64.
        click_rate: Clicks over exposures of its videos; None where nothing was shown or counted.
    """

    id: str
    name: str
    size: int
    covers: tuple[str, ...] = ()
    click_rate: float | None = None


def read_topics(artifacts: Mapping[str, str]) -> tuple[Topic, ...]:
    """The largest topics of a run.

    Args:
        artifacts: Folders by name: `topics`, `videos` (examples with covers) and `queues`, any of which may be absent.
    """
    if "topics" not in artifacts:
        return ()
    with files.reading(f"{artifacts['topics']}/topics.json") as file:
        found = sorted(json.loads(file.read()), key=lambda topic: -topic["size"])[:SHOWN]
    nearest = _nearest(tables.read_table(artifacts["topics"], "video_topics"), {topic["id"] for topic in found})
    covers = _covers(artifacts.get("videos"), {video for videos_of in nearest.values() for video in videos_of})
    rates = _click_rates(artifacts.get("queues"))
    return tuple(
        Topic(
            topic["id"],
            topic["name"],
            topic["size"],
            tuple([covers[video] for video in nearest[topic["id"]] if video in covers][:COVERS]),
            rates.get(topic["id"]),
        )
        for topic in found
    )


def _nearest(assigned: pa.Table, wanted: set[str]) -> dict[str, list[str]]:
    """By topic, the nearest videos; more than are shown, for some have no cover."""
    by_topic: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in assigned.to_pylist():
        for topic, similarity in zip(row["topics"] or (), row["similarities"] or (), strict=True):
            if topic in wanted:
                by_topic[topic].append((-similarity, row["video_id"]))
    return defaultdict(list, {topic: [v for _, v in sorted(found)[: 3 * COVERS]] for topic, found in by_topic.items()})


def _covers(examples: str | None, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    paths = sorted(tf.io.gfile.glob(f"{examples}/Split-*/*")) if examples else []
    spec = {name: videos.parse_spec()[name] for name in (clips.VIDEO_ID, videos.COVER)}
    for batch in tf.data.TFRecordDataset(paths, "GZIP").batch(1024) if paths else ():
        parsed = tf.io.parse_example(batch, spec)
        for video, cover in zip(parsed[clips.VIDEO_ID].numpy(), parsed[videos.COVER].numpy(), strict=True):
            if cover and video.decode() in wanted:
                found[video.decode()] = base64.b64encode(cover).decode()
    return found


def _click_rates(snapshot: str | None) -> dict[str, float]:
    shown: dict[str, int] = defaultdict(int)
    clicked: dict[str, int] = defaultdict(int)
    rows: Iterable[dict[str, Any]] = tables.read_table(snapshot, "videos").to_pylist() if snapshot else ()
    for row in rows:
        for topic in row["topics"] or ():
            shown[topic] += row["shown"]
            clicked[topic] += row["clicked"]
    return {topic: clicked[topic] / number for topic, number in shown.items() if number}
