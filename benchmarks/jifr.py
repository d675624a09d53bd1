"""JIFR and its baselines on the demo world, where it is known what users like frames for.

    python benchmarks/jifr.py [--seeds 1 2 3] [--models jifr bpr ...] [--only-missing]

Split by time, 80/10/10; learned from what was opened, never from a liked frame. Videos: HR@15 and NDCG@15 of each
opened video of the test rows among 1,000 others that the user had not opened (all of them where there are fewer), ten
times, and among all. Frames: hits and NDCG of the liked one among the video's own. All as `pipeline.cover_metrics`
counts them. Every model has the same training and the best epoch by validation AUC; `jifr_na` is the paper's JIFR_NA,
and with the other three variants its Table 2. Results go to `results/jifr.{json,md}`.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import av
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from protocols import table

from components.frame_embedder.encoders import colours
from components.importers.demo import import_demo
from components.importers.demo_media import FRAMES, SCENES
from pipeline.cover_metrics import Sums, places
from trainer.data import Split
from trainer.jifr import Config, Jifr, build_model, objective, opened_in, shape_of
from trainer.jifr_export import Standard
from trainer.keras_version import keras
from trainer.layers.pair_scorer import PairScorer, Shape, Shown, standardised
from trainer.training import TrainingConfig, fit
from transform.contract import parse
from transform.frames import Frames

HERE = Path(__file__).parent
SAMPLED, REPEATS, HISTORY = 1000, 10, 50
# By the validation AUC of seed 1: 0.2 or 0.02 for l2. JIFR's are those of `pipeline/configs/demo.yaml`.
SHARED = {"l2": 0.2, "attention_units": 8, "attention_l2": 0.01}
NA = {"content_attention": False, "rating_attention": False}
MODELS: dict[str, dict[str, Any]] = {
    "jifr": {},
    "jifr_content": {"rating_attention": False},
    "jifr_rating": {"content_attention": False},
    "jifr_na": NA,
    **{name: {"architecture": name, "l2": 0.02} for name in ("bpr", "vbpr", "acf", "cdl", "vpoi")},
}
CONTRACT = parse(f"""
name: opened
vocabularies: {{user: {{}}, video: {{}}}}
features:
  - {{name: user, kind: id, role: user, vocabulary: user, source: users.user_id}}
  - {{name: video, kind: id, role: video, vocabulary: video, source: videos.video_id}}
  - {{name: history, kind: history, role: user, vocabulary: video, max_length: {HISTORY}, source: derived.user_history}}
  - {{name: label, kind: number, role: label, source: interactions.clicked, positive_above: 0.5, negative_below: 0.5}}
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    options = parser.parse_args()
    results = table.Results(Path(os.environ.get("RESULTS", HERE / "results")) / "jifr.json")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as world:
            import_demo(None, world, seed=seed)
            data = Data(Path(world))
        for name in options.models:
            if options.only_missing and results.has("demo", "ours", name, seed):
                continue
            measure = run({**SHARED, **MODELS[name]}, data, seed)
            results.add({"protocol": "demo", "side": "ours", "model": name, "seed": seed, **measure})
            write(results, results.path.with_suffix(".md"))
            print(seed, name, {k: round(v, 4) for k, v in measure.items() if isinstance(v, float)}, flush=True)


class Data:
    """One demo world, encoded: rows of users and videos from 1, in the order of their ids."""

    def __init__(self, world: Path) -> None:
        events = pq.read_table(world / "interactions.parquet").sort_by("at").to_pydict()
        feedback = pq.read_table(world / "frame_feedback.parquet").to_pydict()
        videos = pq.read_table(world / "videos.parquet").to_pydict()
        users = np.unique(pq.read_table(world / "users.parquet")["user_id"].to_pylist())
        order = np.unique(videos["video_id"])
        self.user = np.searchsorted(users, events["user_id"]) + 1
        self.video = np.searchsorted(order, events["video_id"]) + 1
        self.label = np.array(events["clicked"], np.float32)
        self.sizes = {"user": len(users) + 2, "video": len(order) + 2}
        self.cut = [int(len(self.user) * share) for share in (0.8, 0.9)]
        self.history = self._histories()
        self._before: dict[int, set[int]] = {}
        for row in np.flatnonzero(self.label[: self.cut[1]]):
            self._before.setdefault(int(self.user[row]), set()).add(int(self.video[row]))
        media = dict(zip(videos["video_id"], videos["media_path"], strict=True))
        looks = [_looks(world / media[name]) if media[name] else np.zeros((0, 88)) for name in order]
        vectors = np.zeros((len(order), SCENES, 88), np.float32)
        for row, found in enumerate(looks):
            vectors[row, : len(found)] = found
        mask = vectors.any(axis=2).astype(np.float32)
        paths = np.full(mask.shape, "")
        self.frames = Frames(list(order), vectors, mask, paths, np.full(mask.shape, np.nan, np.float32))
        self.liked: dict[tuple[int, int], list[int]] = {}
        of_user = np.searchsorted(users, feedback["user_id"]) + 1
        of_video = np.searchsorted(order, feedback["video_id"]) + 1
        for pair in zip(of_user, of_video, feedback["frame_index"], strict=True):
            self.liked.setdefault(pair[:2], []).append(pair[2])

    def _histories(self) -> np.ndarray:
        """What the user of each event had opened before it: [events, HISTORY]."""
        history = np.zeros((len(self.user), HISTORY), np.int64)
        past: dict[int, list[int]] = {}
        for row, (user, video, label) in enumerate(zip(self.user, self.video, self.label, strict=True)):
            recent = past.get(user, [])[-HISTORY:]
            history[row, : len(recent)] = recent
            if label > 0:
                past.setdefault(user, []).append(video)
        return history

    def opened_before(self, user: int) -> set[int]:
        """What a user had opened before the test rows."""
        return self._before.get(user, set())

    def split(self, first: int | None, last: int | None) -> Split:
        """The clicks among some of the events."""
        rows = np.arange(len(self.user))[first:last]
        rows = rows[self.label[rows] > 0]
        columns = {"user": self.user, "video": self.video, "history": self.history, "label": self.label}
        return Split(CONTRACT, (f"{first}-{last}",), {}, len(rows), {name: v[rows] for name, v in columns.items()})


def _looks(path: Path) -> np.ndarray:
    """The middle picture of each scene, described: [SCENES, 88]."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return colours([pictures[scene * FRAMES // SCENES + FRAMES // SCENES // 2] for scene in range(SCENES)])


def run(settings: dict[str, Any], data: Data, seed: int) -> dict[str, Any]:
    """Trains and judges one model."""
    config = Config.of(settings, "model")
    training = TrainingConfig(epochs=60, batch_size=256, learning_rate=3e-3, patience=5, seed=seed)
    train, valid = data.split(None, data.cut[0]), data.split(*data.cut)
    opened = opened_in(train, data.sizes)
    shape, standard = shape_of(CONTRACT, data.sizes, data.frames, np.arange(1, len(data.frames.ids) + 1), opened)
    with tempfile.TemporaryDirectory() as folder:
        model = fit(
            lambda: build_model(config, CONTRACT, shape, opened),
            train, valid, objective(), training, tf.distribute.get_strategy(), f"{folder}/checkpoint", f"{folder}/run",
        )  # fmt: skip
    found = judge(model.get_layer("triples").scorer, data, shape, standard, seed)
    keras.backend.clear_session()
    return {**found, "versions": {"tensorflow": tf.__version__}}


def judge(scorer: PairScorer, data: Data, shape: Shape, standard: Standard, seed: int) -> dict[str, float]:
    """What `pipeline.cover_metrics` measures, on the test rows; `printed_` is by eq. 4 as printed."""
    rows = np.arange(1, len(data.frames.ids) + 1)
    trained = shape.met_videos[rows].astype(np.float32)
    mask = data.frames.mask
    vectors = standardised(data.frames.vectors, mask, *standard)
    videos = scorer.videos(Shown(tf.constant(rows), tf.constant(trained), vectors, tf.constant(mask)))
    looks = videos.pop("looks", None)
    videos.pop("alpha", None)
    users = tf.range(1, data.sizes["user"] - 1)
    everyone = scorer.people({"user": users, "history": tf.zeros([len(users), 1], tf.int64)})
    average = {name: tf.reduce_mean(value, axis=0, keepdims=True) for name, value in everyone.items()}
    random, sums, printed = np.random.default_rng(seed), Sums(), Sums()

    def liking(who: dict[str, tf.Tensor], video: int, telling: bool = True) -> np.ndarray:
        if not scorer.looks:
            return np.where(mask[video] > 0, 0.0, np.nan)
        own = looks[video : video + 1]
        if not telling:
            own = tf.concat([own[:, :, :-1], tf.zeros_like(own[:, :, -1:])], axis=2)
        return np.where(mask[video] > 0, scorer.look(who, own)[0], np.nan)

    for inputs, _, _ in data.split(data.cut[1], None).in_order(512):
        people = scorer.people({**inputs, "user": shape.met(inputs["user"])})
        scores = scorer.score(people, {name: value[tf.newaxis] for name, value in videos.items()}).numpy()
        for row, (user, video) in enumerate(zip(inputs["user"].numpy(), inputs["video"].numpy() - 1, strict=True)):
            others = np.setdiff1d(rows, [*data.opened_before(user), video + 1]) - 1
            beats = 1 - (scores[row] < scores[row, video]) - 0.5 * (scores[row] == scores[row, video])
            drawn = [random.choice(others, min(SAMPLED, len(others)), replace=False) for _ in range(REPEATS)]
            ranks = {
                "above": np.array([beats[others].sum()]),
                "above_sampled": np.array([beats[d].sum() for d in drawn]),
            }
            person = {name: value[row : row + 1] for name, value in people.items()}
            frames = {"frame_scores": liking(person, video), "popular_frame_scores": liking(average, video)}
            liked = data.liked.get((user, video + 1), [])
            sums.add(str(user), 1.0, liked, {**ranks, **frames})
            if isinstance(scorer, Jifr):
                printed.add(str(user), 0.0, liked, {**ranks, **frames, "frame_scores": liking(person, video, False)})
    more = {f"printed_{name}": value for name, value in printed.values().items() if name in SHOWN}
    return {**sums.values(), **(more if isinstance(scorer, Jifr) else {})}


SHOWN = ("frame_hits_at_1", "frame_ndcg_at_3")
COLUMNS = ("hits_sampled", "ndcg_sampled", "hits", "ndcg", *SHOWN)
INTRODUCTION = """\
# Videos and their frames: JIFR and its baselines

Written by `benchmarks/jifr.py`, whose docstring says what is measured and how. Mean and standard deviation over the
seeds; each seed is a demo world of its own. `chance` and `average user` are of the same frames."""


def write(results: table.Results, path: Path) -> None:
    """The page of the results."""
    names = [name for name in MODELS if results.of("demo", "ours", name)]
    seeds = len(results.of("demo", "ours", names[0]))
    lines = [INTRODUCTION, "", f"Seeds: {seeds}. Machine: {results.of('demo', 'ours', names[0])[0]['machine']}.", ""]
    heads = (
        "model",
        "HR@15 of 1,000",
        "NDCG@15 of 1,000",
        "HR@15 of all",
        "NDCG@15 of all",
        "frame HR@1",
        "frame NDCG@3",
    )
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in names:
        found = results.of("demo", "ours", name)
        cells = [_spread([row[column] for row in found]) for column in COLUMNS]
        if MODELS[name].get("architecture", "") not in ("bpr", "acf"):
            lines.append(f"| {name} | {' | '.join(cells)} |")
        else:
            lines.append(f"| {name} | {' | '.join(cells[:4])} | does not rank frames | |")
        if name.startswith("jifr"):
            printed = [_spread([row[f"printed_{column}"] for row in found]) for column in SHOWN]
            lines.append(f"| {name}, frames by eq. 4 as printed | | | | | {' | '.join(printed)} |")
    hits, ndcg = places(0, SCENES, 1)[0], places(0, SCENES, 3)[1]
    lines.append(f"| chance | | | | | {hits:.4f} | {ndcg:.4f} |")
    for name in (name for name in names if name.startswith("jifr")):
        popular = _spread([row["frame_hits_at_1_popular"] for row in results.of("demo", "ours", name)])
        lines.append(f"| average user, by {name} | | | | | {popular} | |")
    lines += ["", *_table_2(results)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table_2(results: table.Results) -> list[str]:
    """The paper's: gains over both averages."""
    rows = [
        ("AVG", "AVG", "jifr_na"),
        ("AVG", "ATT", "jifr_rating"),
        ("ATT", "AVG", "jifr_content"),
        ("ATT", "ATT", "jifr"),
    ]
    lines = [
        "## The paper's Table 2: what the attentions add",
        "",
        "| visual | rating | HR@15 | NDCG@15 | frame HR@3 | frame NDCG@3 |",
    ]
    lines.append("|---|---|---|---|---|---|")
    columns = ("hits_sampled", "ndcg_sampled", "frame_hits_at_3", "frame_ndcg_at_3")
    start = [results.mean("demo", "ours", "jifr_na", column) for column in columns]
    for visual, rating, name in rows:
        found = [results.mean("demo", "ours", name, column) for column in columns]
        if None in found or None in start:
            return []
        gains = [
            f"{now / before - 1:+.1%}" if name != "jifr_na" else "/" for now, before in zip(found, start, strict=True)
        ]
        lines.append(f"| {visual} | {rating} | {' | '.join(gains)} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}".replace("0.", ".")


if __name__ == "__main__":
    main()
