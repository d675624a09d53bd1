"""The demo world: seeded, synthetic, and with a known answer.

Users have latent tastes over topics and their subtopics, and tastes for looks, which have nothing to do with topics: a
favourite hue, a favourite direction of lines, and calm or moving scenes; how much each of the three counts differs.
What they are shown depends on how young and how popular a video is; whether they click depends mostly on their taste,
on how much they like the looks of the video's scenes (some users care four times as much as others), and a little on
the video's quality and on whether they follow its author:

    P(click) = sigmoid(TASTE * affinity(user, video) + LOOK * care(user) * appeal(user, video)
                       + QUALITY * quality(video) + FOLLOW * follows(user, author) + BIAS)

appeal is over the scenes that are lit; about half of them are not, and have looks that nobody heeds. Of half of the
videos clicked it is known which frame the user liked: lit, and with looks to the user's taste.

What a video is about shows in its media (`demo_media.py`). A quarter of the uploaders say nothing about it: no
category, no telling title or tags. Of these, media alone tell what a new video is about.

The probability of every event is known, and so is the AUC that no model can be expected to beat (`demo.json`), and how
often the likeliest frame is the one liked.
Letters: U users, V videos, A authors, S subtopics, N events, F scenes.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from components.importers import demo_media
from components.importers.demo_media import SCENES
from components.importers.demo_words import OPENINGS, TOPICS, TRENDS, VAGUE
from components.importers.summary import ImportSummary, check_and_write
from components.world import files
from transform import contract

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START = 1_704_067_200  # 2024-01-01, UTC
DAY = 86_400
DAYS = 30
TASTE, LOOK, QUALITY, FOLLOW, BIAS = 1.35, 1.5, 0.3, 0.7, -0.9
CARE = (0.4, 1.6)  # each of half of the users
HEED = (0.3, 1.0)  # from, to: of hue, of lines and of movement
LIKING = 5.0  # how sharply a liked frame is chosen
LIT, DIM = 0.55, 0.2  # share of scenes; light of the others
ALIKE = SCENES // 2  # scenes of a video that have nearly one hue
YOUTH_DAYS = 8.0  # after which a video is shown e times less
LATE_USERS = 0.1  # share of users whose first day is in the last fifth
SILENT, WITHOUT_MEDIA, UNLABELLED = 0.2, 0.1, 0.25  # shares of videos
_CHUNK = 2048

SUBTOPICS = [(topic, sub) for topic, subs in TOPICS.items() for sub in subs]
TOPIC_OF = np.repeat(np.arange(len(TOPICS)), [len(subs) for subs in TOPICS.values()])


@dataclass(frozen=True)
class _Videos:
    subtopic: Ints  # [V]
    author: Ints  # [V]
    quality: Floats  # [V], standard normal
    published: Ints  # [V], unix seconds
    duration: Floats  # [V], seconds
    labelled: npt.NDArray[np.bool_]  # [V], whether the uploader says what it is about
    media: npt.NDArray[np.bool_]  # [V]
    loud: npt.NDArray[np.bool_]  # [V], whether the media have sound
    hue: Floats  # [V, F], of each scene, in turns
    lines: Floats  # [V, F], their direction, in half turns
    moving: npt.NDArray[np.bool_]  # [V, F]
    lit: npt.NDArray[np.bool_]  # [V, F], at least one of a video's


@dataclass(frozen=True)
class _Users:
    affinity: Floats  # [U, S], standard normal over all pairs
    follows: npt.NDArray[np.bool_]  # [U, A]
    arrived: Ints  # [U], unix seconds
    activity: Floats  # [U], relative
    hue: Floats  # [U], the favourite
    lines: Floats  # [U], likewise
    moving: npt.NDArray[np.bool_]  # [U], whether moving scenes are liked, or calm ones
    heed: Floats  # [U, 3], how much hue, lines and movement count; of length 1
    care: Floats  # [U], for looks

    def liking(self, user: Ints, videos: _Videos, video: Ints) -> Floats:
        """How much users [N] like the scenes of videos [N], lit or not: [N, F], with a variance of 0.5."""
        hue = np.cos(2 * np.pi * (videos.hue[video] - self.hue[user][:, None]))
        lines = np.cos(2 * np.pi * (videos.lines[video] - self.lines[user][:, None]))
        movement = np.where(videos.moving[video] == self.moving[user][:, None], 0.5**0.5, -(0.5**0.5))
        return np.asarray(np.einsum("nk,knf->nf", self.heed[user], np.stack([hue, lines, movement])))


@dataclass(frozen=True)
class _Events:
    user: Ints  # [N]
    video: Ints  # [N]
    at: Ints  # [N], ascending
    probability: Floats  # [N], of a click
    clicked: npt.NDArray[np.bool_]  # [N]


def import_demo(
    source: str | None,
    out: str,
    users: int = 400,
    videos: int = 600,
    interactions: int = 40_000,
    seed: int = 0,
    now: int | None = None,
) -> ImportSummary:
    """Write the demo world; the same arguments give the same bytes.

    Args:
        source: Not used: everything is drawn.
        out: Folder of the world.
        users: Number of users.
        videos: Number of videos.
        interactions: Number of events asked for; no user sees a video twice, so a small catalogue yields fewer.
        seed: Of all draws.
        now: Unix seconds; the clock where absent.

    Returns:
        What was written; the notes name the Bayes-optimal AUC, over all events and over the last tenth by time, which
        `demo.json` in the world holds too.
    """
    rng = np.random.default_rng(seed)
    catalogue = _draw_videos(rng, videos)
    people = _draw_users(rng, users, catalogue)
    events = _draw_events(rng, people, catalogue, interactions)
    data = {
        "users": _user_table(rng, people),
        "videos": _video_table(rng, catalogue),
        "interactions": _interaction_table(rng, events, catalogue),
    }
    data["frame_feedback"], likeliest = _draw_feedback(rng, people, catalogue, events)
    facts = {**_facts(events, seed), "bayes_frame_hits": likeliest}
    note = (
        f"Bayes-optimal AUC {facts['bayes_auc']:.4f} (last tenth by time {facts['bayes_auc_last_tenth']:.4f}), "
        f"click rate {facts['click_rate']:.3f}; the likeliest frame is the liked one in {likeliest:.0%} of cases"
    )
    _write_media(out, catalogue, seed)
    summary = check_and_write(out, contract.load("microvideo"), now, [note], data)
    with files.writing(files.join(out, "demo.json")) as file:
        file.write(json.dumps(facts, indent=2).encode())
    return summary


def _draw_videos(rng: np.random.Generator, number: int) -> _Videos:
    author_subtopic = rng.integers(len(SUBTOPICS), size=max(number // 6, 1))
    author = rng.integers(len(author_subtopic), size=number)
    strays = rng.random(number) < 0.2  # an author leaves the usual subtopic now and then
    subtopic = np.where(strays, rng.integers(len(SUBTOPICS), size=number), author_subtopic[author])
    published = START + (DAY * rng.uniform(-20, DAYS - 0.5, size=number)).astype(np.int64)
    typical = rng.uniform(15, 90, size=len(SUBTOPICS))
    duration = np.clip(typical[subtopic] * np.exp(0.35 * rng.standard_normal(number)), 5, 300).round(1)
    quality = rng.standard_normal(number)
    labelled, media, loud = (rng.random(number) >= share for share in (UNLABELLED, WITHOUT_MEDIA, SILENT))
    hue, lit = rng.random((number, SCENES)), rng.random((number, SCENES)) < LIT
    hue[:, :ALIKE] = hue[:, :1] + 0.06 * rng.standard_normal((number, ALIKE))
    lit[~lit.any(axis=1), 0] = True
    order = rng.random((number, SCENES)).argsort(axis=1)
    (looks,) = rng.spawn(1)
    lines, moving = looks.random((number, SCENES)), looks.random((number, SCENES)) < 0.5
    hue, lit = np.take_along_axis(hue % 1, order, axis=1), np.take_along_axis(lit, order, axis=1)
    return _Videos(subtopic, author, quality, published, duration, labelled, media, loud, hue, lines, moving, lit)


def _draw_users(rng: np.random.Generator, number: int, videos: _Videos) -> _Users:
    loved = rng.random((number, len(TOPICS))).argsort(axis=1) < 3  # three topics each
    by_topic = loved * rng.uniform(1.5, 3.0, loved.shape) + 0.3 * rng.standard_normal(loved.shape)
    affinity = by_topic[:, TOPIC_OF] + 0.6 * rng.standard_normal((number, len(SUBTOPICS)))
    affinity = (affinity - affinity.mean()) / affinity.std()
    # An author's home is what most of the videos are about.
    counts = np.zeros((int(videos.author.max()) + 1, len(SUBTOPICS)))
    np.add.at(counts, (videos.author, videos.subtopic), 1)
    liking = affinity[:, counts.argmax(axis=1)] + rng.gumbel(size=(number, len(counts)))
    most = rng.integers(0, 9, size=(number, 1))  # authors followed, some users none
    follows = (-liking).argsort(axis=1).argsort(axis=1) < most
    late = rng.random(number) < LATE_USERS
    first_day = np.where(late, rng.uniform(0.8, 0.97, number), rng.uniform(-0.5, 0.5, number).clip(0)) * DAYS
    arrived = START + (DAY * first_day).astype(np.int64)
    activity = rng.lognormal(0, 0.6, number)
    hue, care = rng.random(number), rng.choice(CARE, number)
    (looks,) = rng.spawn(1)
    lines, moving, heed = looks.random(number), looks.random(number) < 0.5, looks.uniform(*HEED, (number, 3))
    heed /= np.linalg.norm(heed, axis=1, keepdims=True)
    return _Users(affinity, follows, arrived, activity, hue, lines, moving, heed, care)


def _draw_events(rng: np.random.Generator, users: _Users, videos: _Videos, number: int) -> _Events:
    drawn = int(number * 1.6)
    hour = rng.normal(19, 4, drawn) % 24  # evenings are busy
    at = np.sort(START + rng.integers(0, DAYS, drawn) * DAY + (hour * 3600).astype(np.int64))
    user = _draw_active(rng, users, at)
    video = np.concatenate(
        [_draw_shown(rng, users, videos, user[i : i + _CHUNK], at[i : i + _CHUNK]) for i in range(0, drawn, _CHUNK)]
    )
    first = np.unique(user * len(videos.author) + video, return_index=True)[1]
    seen = np.sort(rng.permutation(first)[:number])
    user, video, at = user[seen], video[seen], at[seen]
    follows = users.follows[user, videos.author[video]]
    liking, lit = users.liking(user, videos, video), videos.lit[video] & videos.media[video, None]
    appeal = 2 * (liking * lit).sum(axis=1) / np.maximum(lit.sum(axis=1), 1)
    logit = TASTE * users.affinity[user, videos.subtopic[video]] + LOOK * users.care[user] * appeal
    logit += QUALITY * videos.quality[video] + FOLLOW * follows + BIAS
    probability = 1 / (1 + np.exp(-logit))
    return _Events(user, video, at, probability, rng.random(len(seen)) < probability)


def _draw_feedback(rng: np.random.Generator, users: _Users, videos: _Videos, events: _Events) -> tuple[pa.Table, float]:
    """The frame that the user liked of half of the videos clicked, and how often that is the likeliest one."""
    told = np.flatnonzero(events.clicked & videos.media[events.video] & (rng.random(len(events.at)) < 0.5))
    user, video = events.user[told], events.video[told]
    score = LIKING * np.where(videos.lit[video], users.liking(user, videos, video), -np.inf)
    frame = (score + rng.gumbel(size=score.shape)).argmax(axis=1)  # drawn by the softmax of the score
    columns = {
        "user_id": _ids("u", user),
        "video_id": _ids("v", video),
        "frame_index": frame,
        "liked": np.ones(len(told)),
    }
    return pa.table(columns), float((frame == score.argmax(axis=1)).mean())


def _draw_active(rng: np.random.Generator, users: _Users, at: Ints) -> Ints:
    """For each time a user who has arrived, the active ones more often."""
    order = np.argsort(users.arrived, kind="stable")
    total = np.cumsum(users.activity[order])
    present = np.maximum(np.searchsorted(users.arrived[order], at, side="right"), 1)
    return order[np.searchsorted(total, rng.random(len(at)) * total[present - 1], side="right")]


def _draw_shown(rng: np.random.Generator, users: _Users, videos: _Videos, user: Ints, at: Ints) -> Ints:
    """For each user and time a published video: the young and the popular are shown more, taste steers a little."""
    age_days = (at[:, None] - videos.published) / DAY
    shown = 0.5 * videos.quality + 0.3 * users.affinity[user][:, videos.subtopic]
    weight = np.where(age_days >= 0, np.exp(shown) * (0.15 + np.exp(-np.maximum(age_days, 0) / YOUTH_DAYS)), 0)
    total = np.cumsum(weight, axis=1)
    threshold = rng.random((len(at), 1)) * total[:, -1:]
    return np.minimum((total <= threshold).sum(axis=1), len(videos.author) - 1)


def _user_table(rng: np.random.Generator, users: _Users) -> pa.Table:
    followed = [[f"a{author:04d}" for author in np.flatnonzero(row)] for row in users.follows]
    return pa.table(
        {"user_id": _ids("u", np.arange(len(followed))), "followed_ids": pa.array(followed, pa.list_(pa.string()))}
    )


def _video_table(rng: np.random.Generator, videos: _Videos) -> pa.Table:
    topics = [SUBTOPICS[s] for s in videos.subtopic]
    words = [rng.choice(TOPICS[topic][sub].split(), 3, replace=False).tolist() for topic, sub in topics]
    openings, trends = rng.integers(len(OPENINGS), size=len(topics)), rng.integers(len(TRENDS), size=len(topics))
    titles = [OPENINGS[o].format(*w) for o, w in zip(openings, words, strict=True)]
    tags = [[sub, *w[:2], TRENDS[t]] for (_, sub), w, t in zip(topics, words, trends, strict=True)]
    vague = [VAGUE[o % len(VAGUE)] for o in openings]
    told = videos.labelled.tolist()
    ids = _ids("v", np.arange(len(topics)))
    return pa.table(
        {
            "video_id": ids,
            "title": [clear if tells else nothing for clear, nothing, tells in zip(titles, vague, told, strict=True)],
            "tags": pa.array([row if tells else row[-1:] for row, tells in zip(tags, told, strict=True)]),
            "primary_category": [topic if tells else None for (topic, _), tells in zip(topics, told, strict=True)],
            "secondary_category": [sub if tells else None for (_, sub), tells in zip(topics, told, strict=True)],
            "author_id": _ids("a", videos.author),
            "duration_seconds": videos.duration,
            "published_at": videos.published,
            "media_path": [_media(name) if there else None for name, there in zip(ids, videos.media, strict=True)],
        }
    )


def _write_media(out: str, videos: _Videos, seed: int) -> None:
    files.make_folder(files.join(out, "media"))

    def write(video: int) -> None:
        path = files.join(out, _media(f"v{video:04d}"))
        subtopic, rng = int(videos.subtopic[video]), np.random.default_rng([seed, video])
        light = demo_media.hue(videos.hue[video]) * np.where(videos.lit[video], 1.0, DIM)[:, np.newaxis]
        scenes = demo_media.Scenes(light, videos.lines[video], videos.moving[video])
        demo_media.write_clip(path, int(TOPIC_OF[subtopic]), subtopic % 3, bool(videos.loud[video]), scenes, rng)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, np.flatnonzero(videos.media).tolist()))


def _media(video_id: str) -> str:
    return f"media/{video_id}.mp4"


def _interaction_table(rng: np.random.Generator, events: _Events, videos: _Videos) -> pa.Table:
    number = len(events.at)
    liked = events.clicked & (rng.random(number) < 0.6 * events.probability)
    share = np.where(events.clicked, rng.beta(4, 1.5, number), rng.beta(1, 9, number))
    return pa.table(
        {
            "user_id": _ids("u", events.user),
            "video_id": _ids("v", events.video),
            "at": events.at,
            "clicked": events.clicked.astype(np.int64),
            "liked": liked.astype(np.int64),
            "watch_seconds": (share * videos.duration[events.video]).round(2),
        }
    )


def _ids(letter: str, index: Ints) -> list[str]:
    return [f"{letter}{i:04d}" for i in index]


def _facts(events: _Events, seed: int) -> dict[str, Any]:
    last = slice(len(events.at) - len(events.at) // 10, None)
    return {
        "seed": seed,
        "interactions": len(events.at),
        "click_rate": float(events.clicked.mean()),
        "bayes_auc": roc_auc_score(events.clicked, events.probability),
        "bayes_auc_last_tenth": roc_auc_score(events.clicked[last], events.probability[last]),
    }
