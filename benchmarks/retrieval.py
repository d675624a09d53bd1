"""Topic retrieval against popularity, item-item CF, ALS, BPR and EASE: full ranking, the same histories and candidates.

    python benchmarks/retrieval.py --peer-python PEERS/bin/python [--sets ...] [--models ...] [--only-missing]

PEERS has `peers/retrieval_requirements.txt`. `protocols/retrieval.py` says what is asked, `peers/retrieval_peers.py`
how the peers' settings are chosen; ours are below, chosen on validation rows of MovieLens and of TikTok. The peers
read histories, as they are made to; our towers also read their order, what the contract has of users (age and the
like on MovieLens, nothing on TikTok) and of videos, the last 50 videos of a history, and nine tenths of TikTok's
clicks, of which a tenth tells when to stop. Our answers come from the index, at the number of probes it chose, its
cells for topics, which these sets do not have; `index_recall` is against reading all of it. Every run is added to
`results/retrieval.json` as soon as it is done, and `results/retrieval.md` is written anew.
"""

import argparse
import gc
import json
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from protocols import retrieval, table

from trainer.data import Split
from trainer.keras_version import keras
from trainer.layers.topic_index import Catalogue, IndexSettings, TopicIndex
from trainer.topic_retrieval import Config, TwoTowers, Videos, build_model, objective
from trainer.training import TrainingConfig, fit

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SHORTLIST_DATA", HERE.parent.parent / "shared" / "data"))
PEERS = ("popularity", "item_item", "ease", "als", "bpr")
DETERMINISTIC = ("popularity", "item_item", "ease")
OURS: dict[str, dict[str, Any]] = {
    "two_towers": {},
    "no_log_q": {},
    "in_batch_only": {"negatives": 0},
    "no_id_dropout": {"id_dropout": 0.0},
}
COLD = {"id_dropout": 0.5}  # where all candidates are new, the towers must be used to doing without ids
OF_SET: dict[str, dict[str, Any]] = {"movielens": {}, "tiktok": {"user_id": False, "temperature": 0.2}}
TRAINING = {"epochs": 30, "batch_size": 1024, "learning_rate": 1e-3}
PATIENCE = {"movielens": 3, "tiktok": 6}


def main() -> None:
    options = _options()
    results = table.Results((options.work if options.quick else HERE / "results") / "retrieval.json")
    for name in options.sets:
        for seed in options.seeds:
            task = retrieval.load(name, options.data, options.work, seed if name.endswith("cold") else 0)
            for model in options.models:
                if options.only_missing and results.has(name, _side(model), model, seed):
                    continue
                if model in DETERMINISTIC and seed != options.seeds[0] and not name.endswith("cold"):
                    continue
                if model in PEERS and options.peer_python is None:
                    continue
                run = _peer if model in PEERS else _ours
                row = run(task, model, seed, name, results, options)
                results.add({"protocol": name, "side": _side(model), "model": model, "seed": seed, **row})
                _write(results, results.path.with_suffix(".md"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=retrieval.SETS, default=list(retrieval.SETS))
    parser.add_argument("--models", nargs="+", choices=[*PEERS, *OURS], default=[*PEERS, *OURS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    parser.add_argument("--peer-python", type=Path, help="without it only ours run")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="one epoch; results go to --work")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "retrieval", help="folder for the arrays")
    options = parser.parse_args()
    options.chosen = {}  # settings of peers, by protocol and model: searched with the first seed that is run
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _side(model: str) -> str:
    return "peer" if model in PEERS else "ours"


def _ours(
    task: retrieval.Task, name: str, seed: int, protocol: str, results: table.Results, options: argparse.Namespace
) -> dict[str, Any]:
    of_set, _, cold = protocol.partition("_")
    config = Config.of({**OF_SET[of_set], **(COLD if cold else {}), **OURS[name]}, "model")
    given = {**TRAINING, "patience": PATIENCE[of_set], "seed": seed, **({"epochs": 1} if options.quick else {})}
    training = TrainingConfig.of(given, "training")
    key, label = task.contract.video_key.name, task.contract.label.name
    clicks = np.bincount(task.train[key], minlength=task.sizes["video_id"]).astype(float)
    known = {n: column[np.isin(task.videos[key], task.train[key])] for n, column in task.videos.items()}
    videos = Videos(known, clicks)
    aim = objective(
        config, task.contract, videos if name != "no_log_q" else videos._replace(clicks=np.ones_like(clicks))
    )
    parts = [task.train, task.valid.columns]
    if protocol != "movielens":  # no rows of a later time: a tenth of the clicks decides when to stop
        parts = np.split(
            np.random.default_rng(seed).permutation(len(task.train[label])), [len(task.train[label]) // 10]
        )
        parts = [{n: column[rows] for n, column in task.train.items()} for rows in reversed(parts)]
    splits = [Split(task.contract, (), {}, len(part[label]), part) for part in parts]
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = fit(
            partial(build_model, config, task.contract, task.sizes, videos),
            *splits,
            aim,
            training,
            tf.distribute.get_strategy(),
            f"{folder}/checkpoint",
            f"{folder}/run",
        )
        epochs = len(json.loads(Path(folder, "run", "history.json").read_text()))
    seconds = time.perf_counter() - started
    row = _through_the_index(model, task, splits[1])
    keras.backend.clear_session()
    gc.collect()
    return {
        **row,
        "seconds": seconds,
        "epochs": epochs,
        "load": round(load, 1),
        "versions": {"tensorflow": tf.__version__},
    }


def _through_the_index(model: TwoTowers, task: retrieval.Task, valid: Split) -> dict[str, Any]:
    def vectors(tower: keras.Model, columns: retrieval.Columns) -> np.ndarray:
        return tower.predict({name: columns[name] for name in tower.input_names}, batch_size=4096, verbose=0)

    numbers = np.flatnonzero(task.allowed) + 1
    candidates = vectors(model.candidate_tower, {n: column[task.allowed] for n, column in task.videos.items()})
    sample = vectors(model.query_tower, valid.columns or {})
    settings = IndexSettings(answers=600, queue_share=0)
    index = TopicIndex(Catalogue([str(number) for number in numbers], candidates), settings, sample)
    answer = tf.function(index.answer, autograph=False, reduce_retracing=True)
    queries = tf.constant(vectors(model.query_tower, task.test.columns))
    found: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for start in range(0, len(queries), 256):
        seen = tf.ragged.constant([[str(v) for v in row] for row in task.test.history[start : start + 256]], tf.string)
        seen = seen.to_tensor("", shape=[None, None])
        for exact, parts in found.items():
            names = answer(queries[start : start + 256], seen, seen, seen[:, :0], exact)["video_ids"].numpy()
            parts.append(np.where(names == b"", b"0", names).astype(int))
    through, exact = (np.concatenate(found[kind]) for kind in (False, True))
    shared = [np.isin(e[e > 0], t).mean() for e, t in zip(exact[:, :100], through, strict=True)]
    measured = retrieval.measure(through, task.test, task.allowed)
    return {**measured, "index_recall": float(np.mean(shared)), "probes": index.probes}


def _peer(
    task: retrieval.Task, name: str, seed: int, protocol: str, results: table.Results, options: argparse.Namespace
) -> dict[str, Any]:
    data = options.work / f"{protocol}_{name}_{seed}.npz"
    arrays = {"clicks": task.clicks, "allowed": task.allowed, "sought_in_clicks": task.sought_in_clicks}
    for part, queries in (("valid", task.valid), ("test", task.test)):
        arrays[f"{part}_users"] = queries.columns[task.contract.user_key.name]
        for column, rows in (("history", queries.history), ("sought", queries.sought)):
            arrays[f"{part}_{column}"] = np.concatenate(rows)
            arrays[f"{part}_{'ends' if column == 'history' else 'sought_ends'}"] = np.cumsum([len(row) for row in rows])
    np.savez(data, **arrays)
    command = [str(options.peer_python), "-m", "peers.retrieval_peers", "--data", str(data.resolve())]
    command += ["--model", name, "--seed", str(seed)]
    known = options.chosen.get((protocol, name))
    command += ["--settings", json.dumps(known)] if known is not None else []
    run = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
    found = data.with_suffix(".found.npy")
    row = {**retrieval.measure(np.load(found), task.test, task.allowed), **json.loads(run.stdout.splitlines()[-1])}
    options.chosen[protocol, name] = row["settings"]
    data.unlink(), found.unlink()
    return row


def _write(results: table.Results, path: Path) -> None:
    rows = list(results.rows.values())
    machines = sorted({row["machine"] for row in rows})
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    lines = ["# Retrieval benchmark", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    lines += [f"Machine: {'; '.join(machines)}. Versions: {', '.join(versions)}.", ""]
    shown = ("recall_20", "recall_100", "recall_600", "ndcg_20", "hit_rate_20", "coverage_20", "index_recall")
    for protocol in (name for name in retrieval.SETS if any(row["protocol"] == name for row in rows)):
        models = {(row["side"], row["model"]) for row in rows if row["protocol"] == protocol}
        ordered = sorted(models, key=lambda m: -(results.mean(protocol, *m, "recall_20") or 0))
        lines += [
            f"## {protocol}",
            "",
            f"| model | side | seeds | {' | '.join(shown)} | s |",
            "|---|---|---" + "|---:" * 8 + "|",
        ]
        for side, model in ordered:
            seeds = results.of(protocol, side, model)
            cells = [_cell([row[name] for row in seeds]) if name in seeds[0] else "" for name in shown]
            seconds = f"{np.mean([row['seconds'] for row in seeds]):.0f}"
            lines.append(f"| {model} | {side} | {len(seeds)} | {' | '.join(cells)} | {seconds} |")
        lines += ["", *_bar(results, protocol, [m for s, m in ordered if s == "peer"]), ""]
    path.write_text("\n".join(lines))


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values):.4f}" if len(values) > 1 else "")


def _bar(results: table.Results, protocol: str, peers: list[str]) -> list[str]:
    ours = results.mean(protocol, "ours", "two_towers", "recall_20")
    if ours is None or not peers:
        return []
    best = results.mean(protocol, "peer", peers[0], "recall_20") or 0.0
    chance = results.of(protocol, "ours", "two_towers")[0]["chance"]
    text = f"recall@20 {ours:.4f}, {ours - best:+.4f} against the best peer, {peers[0]}; chance has {chance:.4f}"
    wanted = 2 * best if protocol.endswith("cold") else best  # what nobody has clicked: far above
    return [f"- {'holds' if ours >= wanted else 'MISSED'}: {text}"]


if __name__ == "__main__":
    main()
