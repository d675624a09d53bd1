"""The whole stack on MovieLens with posters, replayed: the feed against popularity and against each of its stages.

    python benchmarks/replay.py [--data DATA] [--moments 500] [--seeds 1 2 3] [--work runs/replay] [--trained]

`shortlist run --config movielens_posters` trains everything that the demo has but clips: topics from posters, titles
and genres, retrieval, JIFR on the posters, the ranker, the feed. Its time split ends training at 80 % of the
impressions, and choices at 90 %. What comes after is replayed: users who have rated before go on, and before every 20
films that one of them rates, a feed of 20 is asked for, at that moment and with all the user has done until then; of
videos it knows what was known at 90 %.
Sought are those of the next 20 that the user rates above 3, and beside it all that the user will; among all that the
user has not rated. The same for all:

- `popularity`: rated above 3 most often until the 90 %;
- `retrieval`, `jifr`, `ranker`: one stage alone, over the whole catalogue;
- `feed`: one call, with the caps and shares of `feed:`; `feed_by_score` without them, `feed_by_ranker` without them
  and with `retrieval_weight: 0`. The feed's is the inverse of the temperature of retrieval, so that the order is that
  of log P(rates) + log P(likes, having rated). Topic queues are empty: those of the run know what comes.

Every seed trains anew, and draws its own moments. Results go to `results/replay.{json,md}`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # before this folder, where `serving` would be a benchmark
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it

import numpy as np
import pyarrow.compute as pc
import tensorflow as tf
import tensorflow_text  # noqa: F401 (the models' ops)
import yaml

from components.feed_assembler.executor import assemble, served_stages
from components.importers.movielens import import_movielens
from components.impression_example_gen import asking
from components.impression_example_gen.impressions import IMPRESSION, Splits, prepare
from components.world import tables
from pipeline.config import BUILT_IN
from pipeline.models import EXPORTERS, FEED
from pipeline.runs import learned_of_videos, load_run
from serving.requests import to_example, to_feed_example
from trainer.jifr_export import asked_features
from trainer.retrieval_export import query_features
from transform.contract import Contract
from transform.feed import FeedSettings

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SHORTLIST_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"
SHOWN, VALID_ENDS = 20, 0.9
PACKAGES = ("tensorflow", "tfx", "numpy")
Ranking = Callable[[asking.UserContext], Sequence[str]]
MEASURES = {
    "recall": "recall@20",
    "ndcg": "NDCG@20",
    "recall_of_all": "recall@20 of all",
    "ndcg_of_all": "NDCG@20 of all",
}


class Moment(NamedTuple):
    """When a feed is asked for.

    Attributes:
        user: Whose.
        at: Unix seconds; what came before is known.
        next: The films among the next 20 that the user will rate above 3.
        later: All that the user will.
    """

    user: str
    at: int
    next: set[str]
    later: set[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with movielens-1m, posters in it")
    parser.add_argument("--moments", type=int, default=500, help="asked at, of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "replay", help="folder of the world and the runs")
    parser.add_argument("--trained", action="store_true", help="replay the runs that --work holds as they are")
    options = parser.parse_args()
    world = str(options.work / "world")
    if not tables.is_there(world, "interactions"):
        import_movielens(str(options.data / "movielens-1m"), world, posters=True)
    rows = []
    for seed in options.seeds:
        run = load_run(options.work / f"replay-{seed}") if options.trained else trained(options.work, world, seed)
        rows += [{"seed": seed, **row} for row in replayed(run, world, options.work / "past", options.moments, seed)]
        write(rows)


def trained(work: Path, world: str, seed: int) -> dict[str, Any]:
    """The record of a run of `movielens_posters` with a seed; what is there already comes from the cache."""
    config = yaml.safe_load((BUILT_IN / "movielens_posters.yaml").read_text())
    config["name"] = f"replay-{seed}"
    for model in config["models"].values():
        model["training"]["seed"] = seed
    path = work / f"replay-{seed}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipeline.cli", "run", "--config", str(path), "--world", world]
    subprocess.run([*command, "--runs", str(work)], check=True, cwd=ROOT)
    return load_run(work / f"replay-{seed}")


def replayed(run: Mapping[str, Any], world: str, past: Path, moments: int, seed: int) -> Iterator[dict[str, Any]]:
    """What every ranking finds, averaged over the moments."""
    contract = Contract.from_json(run["contract"])
    possible = _moments(world, contract, str(past))
    asked = [possible[i] for i in np.random.default_rng(seed).permutation(len(possible))[:moments]]
    rankings = _rankings(run, contract, str(past))
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in rankings}
    learned = learned_of_videos(run)
    for number, moment in enumerate(asked):
        context = asking.user_context(world, contract, moment.user, moment.at, learned)
        for name, ranking in rankings.items():
            shown = ranking(context)
            found[name].append((*_recall_and_ndcg(shown, moment.next), *_recall_and_ndcg(shown, moment.later)))
        print(f"\r{number + 1} of {len(asked)} moments", end="", flush=True)
    print()
    for name, measured in found.items():
        means = map(float, np.mean(measured, axis=0))
        yield {"ranking": name, "moments": len(asked), **dict(zip(MEASURES, means, strict=True))}


def _moments(world: str, contract: Contract, past: str) -> list[Moment]:
    """All moments after the 90 %, of which a world without anything later is written."""
    events = tables.read_table(world, "interactions")
    prepared = prepare(events, contract, Splits("time", 1, 0, 0))
    times = np.sort(prepared.filter(pc.equal(prepared["outcome"], IMPRESSION))["at"].to_numpy())
    ends = int(times[int(VALID_ENDS * len(times))])
    for name in ("users", "videos"):
        tables.write_table(past, name, tables.read_table(world, name))
    tables.write_table(past, "interactions", events.filter(pc.less(events["at"], ends)))
    by_user: dict[str, list[dict[str, Any]]] = {}
    columns = ["user_id", "video_id", "at", "label"]
    for row in prepared.select(columns).sort_by([("at", "ascending"), ("video_id", "ascending")]).to_pylist():
        by_user.setdefault(row["user_id"], []).append(row)
    return [moment for user, rows in by_user.items() for moment in _moments_of(user, rows, ends)]


def _moments_of(user: str, rows: Sequence[Mapping[str, Any]], ends: int) -> Iterator[Moment]:
    first = next((i for i, row in enumerate(rows) if row["at"] >= ends), len(rows))
    times = [row["at"] for row in rows]
    # What happened in the same second is not known yet, and is sought.
    for start in sorted({times.index(times[i]) for i in range(first, len(rows), SHOWN)}) if first else ():
        at = times[start]
        seen = {row["video_id"] for row in rows if row["at"] < at}
        liked = [row["video_id"] if row["label"] == 1 and row["video_id"] not in seen else "" for row in rows[start:]]
        if soon := {*liked[:SHOWN]} - {""}:
            yield Moment(user, at, soon, {*liked} - {""})


def _rankings(run: Mapping[str, Any], contract: Contract, past: str) -> dict[str, Ranking]:
    """By name, what gives the 20 best videos that a user has not rated."""
    stages, learned = served_stages(run["models"]), learned_of_videos(run)
    settings = FeedSettings.model_validate(run["config"]["feed"])
    free = {"per_author": None, "per_topic": None, "fresh_share": 0.0}

    def assembled(**changes: Any) -> Any:
        return assemble(EXPORTERS[FEED], stages, past, contract, settings.model_copy(update=changes), learned)

    feed = assembled()
    videos = np.array(sorted(video.decode() for video in feed.ids.numpy()), object)
    events = prepare(tables.read_table(past, "interactions"), contract, Splits("time", 1, 0, 0))
    liked = events.filter(pc.equal(events["label"], 1))["video_id"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in liked}
    popularity = np.array([counts.get(video, 0) for video in videos], float)

    def request(context: asking.UserContext) -> tf.Tensor:
        return tf.constant([to_feed_example(context.features, contract, length=SHOWN, **context.told)])

    def best(scores: np.ndarray, context: asking.UserContext) -> list[str]:
        unseen = ~np.isin(videos, context.seen)
        return list(videos[unseen][np.argsort(-scores[unseen], kind="stable")[:SHOWN]])

    def recommended(of: Any) -> Ranking:
        return lambda context: [v.decode() for v in of.answers["recommend"](request(context))["video_ids"].numpy()[0]]

    def retrieved(context: asking.UserContext) -> list[str]:
        names = {f.name for f in query_features(contract)}
        row = {name: value for name, value in context.features.items() if name in names}
        exclude = tf.constant([context.seen], tf.string)
        answer = feed.retriever.signatures["retrieve"](
            examples=tf.constant([to_example(row, contract)]), exclude=exclude, queue=tf.zeros([1, 0], tf.string)
        )
        return [video.decode() for video in answer["video_ids"].numpy()[0][:SHOWN]]

    def ranked(context: asking.UserContext) -> list[str]:
        answer = feed.answers["rank"](examples=request(context), video_ids=tf.constant([list(videos)]))
        return best(answer["scores"].numpy()[0], context)

    def opened(context: asking.UserContext) -> list[str]:
        columns: dict[str, Any] = {contract.video_key.name: tf.constant(list(videos))}
        for feature in asked_features(contract):
            if feature.name != contract.video_key.name:
                given = context.features.get(feature.name, [])
                columns[feature.name] = tf.repeat(tf.constant([given], tf.string), len(videos), axis=0)
        return best(feed.chooser.signatures["raw"](**columns)["score"].numpy(), context)

    return {
        "popularity": lambda context: best(popularity, context),
        "retrieval": retrieved,
        "jifr": opened,
        "ranker": ranked,
        "feed_by_ranker": recommended(assembled(**free, retrieval_weight=0.0)),
        "feed_by_score": recommended(assembled(**free)),
        "feed": recommended(feed),
    }


def _recall_and_ndcg(shown: Sequence[str], sought: set[str]) -> tuple[float, float]:
    hits = np.array([video in sought for video in shown], float)
    ideal = np.sum(1 / np.log2(np.arange(2, 2 + min(len(sought), SHOWN))))
    return hits.sum() / len(sought), float(np.sum(hits / np.log2(np.arange(2, 2 + len(hits)))) / ideal)


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the results, mean and standard deviation over the seeds."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    results = {"machine": machine, "versions": versions, "rows": rows}
    (RESULTS / "replay.json").write_text(json.dumps(results, indent=1) + "\n")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["# Offline replay on the MovieLens-1M prefix with posters", ""]
    lines += ["Written by `benchmarks/replay.py`, whose docstring says what is replayed.", ""]
    lines += [
        f"Machine: {machine}. Versions: {told}.",
        "",
        f"| ranking | {' | '.join(MEASURES.values())} | seeds |",
        "|" + "---|" * (2 + len(MEASURES)),
    ]
    for name in dict.fromkeys(row["ranking"] for row in rows):
        own = [row for row in rows if row["ranking"] == name]
        cells = (f"{np.mean([r[m] for r in own]):.4f} ± {np.std([r[m] for r in own]):.4f}" for m in MEASURES)
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own)} |")
    (RESULTS / "replay.md").write_text("\n".join([*lines, "", *_against(rows), ""]))


def _against(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Where the feed stands, seed by seed, against popularity and each stage alone."""
    by_name = {(row["ranking"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    others = ("popularity", "retrieval", "jifr", "ranker", "feed_by_ranker", "feed_by_score")
    for other in others if len(seeds) > 1 else ():
        for metric, title in MEASURES.items():
            gaps = [by_name["feed", seed][metric] - by_name[other, seed][metric] for seed in seeds]
            verdict = "above" if min(gaps) > 0 else "below" if max(gaps) < 0 else "not told apart from"
            yield f"- {title} of the feed is {verdict} {other}: {', '.join(f'{gap:+.4f}' for gap in gaps)}"


if __name__ == "__main__":
    main()
