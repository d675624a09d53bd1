"""The page of feeds: one video, and the frame that each of two users is shown of it."""

import base64
from pathlib import Path

from pipeline import feed_page
from pipeline.recommend import Feed, FeedEntry
from serving.feed_answer import Cover

PICTURES = {"sunny.jpg": b"a sunny picture", "rainy.jpg": b"a rainy picture"}
CHOSEN = {("ann", "v1"): 0, ("ben", "v1"): 0, ("ann", "v2"): 0, ("ben", "v2"): 1}


def _cover(frame: int) -> Cover:
    return Cover(frame, [*PICTURES][frame], 0.5, None)


def _feed(user: str) -> Feed:
    entries = [
        FeedEntry(video, f"title of {video}", "travel", 0.5, source="topic", cover=_cover(CHOSEN[user, video]))
        for video in ("v1", "v2")
    ]
    return Feed(user, True, 0, 2, entries)


def test_two_users_see_different_covers_of_one_video_and_those_come_first(tmp_path: Path, monkeypatch):
    for name, content in PICTURES.items():
        (tmp_path / name).write_bytes(content)
    answers = {user: {video: _cover(CHOSEN[user, video]) for video in ("v1", "v2")} for user in ("ann", "ben")}
    monkeypatch.setattr(feed_page, "covers", lambda run, user, videos, client: {v: answers[user][v] for v in videos})
    feed_page.write_page({"world": str(tmp_path)}, [_feed("ann"), _feed("ben")], None, tmp_path / "page" / "feed.html")
    page = (tmp_path / "page" / "feed.html").read_text()
    compared = page[page.index("The same video, to each of them") :]
    differing, same = compared[compared.index("title of v2") :].split("title of v1")
    sunny, rainy = (base64.b64encode(content).decode() for content in PICTURES.values())
    assert differing.index(sunny) < differing.index(rainy)  # ann's is left of ben's
    assert same.count(sunny) == 2
    assert rainy not in same
