"""Feeds as a page: what some users are shown, and which frame of one video each would see. Opens without a network."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.world import files
from pipeline.pages import environment
from pipeline.recommend import Feed, covers
from serving.client import Client
from serving.feed_answer import Cover


def write_page(run: Mapping[str, Any], feeds: Sequence[Feed], client: Client, path: Path) -> None:
    """Write the page.

    Args:
        run: A record of `pipeline.runs.load_run`.
        feeds: Of at least one user.
        client: Where the covers of each other's videos are asked for.
        path: The HTML file; its folder is made if need be.
    """
    titles = {entry.video_id: entry.title or entry.video_id for feed in feeds for entry in feed.entries}
    of_user = {feed.user_id: covers(run, feed.user_id, list(titles), client) for feed in feeds}
    world = str(run["world"])
    compared = [
        {
            "title": title,
            "covers": [_shown(world, found.get(video)) for found in of_user.values()],
            "differs": len({found[video].frame for found in of_user.values() if video in found}) > 1,
        }
        for video, title in titles.items()
    ]
    page = (
        environment()
        .get_template("feed.html.j2")
        .render(
            feeds=[(feed, [(entry, _shown(world, entry.cover)) for entry in feed.entries]) for feed in feeds],
            compared=sorted(compared, key=lambda video: not video["differs"]) if len(feeds) > 1 else [],
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _shown(world: str, cover: Cover | None) -> dict[str, Any] | None:
    """A cover with its picture in it; None where there is none, or its file is gone."""
    if cover is None or not files.is_file(files.locate(world, cover.path)):
        return None
    with files.reading(files.locate(world, cover.path)) as file:
        content = base64.b64encode(file.read()).decode()
    kind = mimetypes.guess_type(cover.path)[0] or "image/jpeg"
    return {"frame": cover.frame, "at_seconds": cover.at_seconds, "source": f"data:{kind};base64,{content}"}
