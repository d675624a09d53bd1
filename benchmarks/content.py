"""What content vectors give the ranker: switched off, concatenated, attended, over all test impressions and new videos.

    python benchmarks/content.py [--seeds 3] [--only-missing] [--work runs/content]

For each seed a demo world is drawn, and clips, classifier, content vectors and impressions made of it by the pipeline
of `make demo`, without topics and without what frames look like: all content is the classifier's. The demo's ranker is
then trained three times on the same examples, with nothing different but `model.modality` (off leaves out
`content_match` too); the epoch with the best validation AUC scores the test split, the last tenth by time. A video is
new (cold start) if no event of it is earlier than the train split's end; `told` says whether its uploader gave it a
category. Results: `results/content.json` and `.md`.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # before this folder, where `serving` would be a benchmark
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it

import numpy as np
import tensorflow as tf
from protocols import table
from protocols.artifacts import newest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from components.importers.demo import import_demo
from pipeline import config as configs
from pipeline import local_runner
from trainer.ranker import run_fn

HERE = Path(__file__).parent
VARIANTS = {"off": "none", "concatenated": "concat", "attended": "attention"}
SLICES = ("all", "new videos", "new videos, told", "new videos, not told")
Row = dict[str, Any]


def main() -> None:
    options = _options()
    results = table.Results(HERE / "results" / "content.json")
    for seed in range(options.seeds):
        folder = options.work / f"seed{seed}"
        run = _pipeline(folder, seed)
        for name in VARIANTS:
            if not (options.only_missing and results.has("demo", "ours", name, seed)):
                key = {"protocol": "demo", "side": "ours", "model": name, "seed": seed}
                results.add({**key, **_measure(run, folder, name, seed)})
                (HERE / "results" / "content.md").write_text("\n".join(_page(results)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "content")
    return parser.parse_args()


def _pipeline(folder: Path, seed: int) -> Row:
    """The record of a run of the demo's pipeline over the world of a seed.

    Its own ranker is there for the sake of the examples. Gates stand in the way of no classifier here: that one is poor
    would be a result too, and show in the vectors.
    """
    settings = configs.load("demo")
    open_to = {metric: (configs.Gate(metric=metric, at_least=0.0),) for metric in ("auc", "accuracy")}
    ranker = settings.models["ranker"].model_copy(update={"model": {"architecture": "lr"}, "gates": open_to["auc"]})
    classifier = settings.models["video_classifier"].model_copy(update={"gates": open_to["accuracy"]})
    models = {"video_classifier": classifier, "ranker": ranker}
    settings = settings.model_copy(update={"topics": None, "frames": None, "feed": None, "models": models})
    import_demo(None, str(folder / "world"), seed=seed)
    local_runner.run(settings, str(folder / "world"), folder / "run", Console(), folder / "run.log")
    return dict(json.loads((folder / "run" / "run.json").read_text()))


def _measure(run: Row, folder: Path, variant: str, seed: int) -> Row:
    """Train the ranker's variant on what the run left behind, and measure the exported model on the test split."""
    artifacts = Path(run["artifacts"]["ranker"]["model_run"]).parents[2]
    transform = artifacts / "Transform.impressions"
    settings, out = configs.load("demo").models["ranker"], folder / variant
    arguments = SimpleNamespace(
        train_files=[f"{newest(transform / 'transformed_examples')}/Split-train/*"],
        eval_files=[f"{newest(transform / 'transformed_examples')}/Split-valid/*"],
        raw_files=[f"{run['artifacts']['ranker']['examples']}/Split-valid/*"],
        transform_graph_path=str(newest(transform / "transform_graph")),
        serving_model_dir=str(out / "model"),
        model_run_dir=str(out / "run"),
        custom_config={
            "contract": run["contract"],
            "model": {**settings.model, "modality": VARIANTS[variant]},
            "training": {**settings.training, "seed": seed},
            "checkpoint_dir": str(out / "checkpoint"),
        },
    )
    run_fn(arguments)
    return _scores(str(out / "model"), run["artifacts"]["ranker"]["examples"])


def _scores(model: str, examples: str) -> Row:
    """AUC of the slices of the test split, and how many rows each has."""
    answer = tf.saved_model.load(model).signatures["serving_default"]
    texts = {name: tf.io.FixedLenFeature([], tf.string, "") for name in ("video_novelty", "primary_category")}
    spec = {**texts, "clicked": tf.io.FixedLenFeature([], tf.float32)}
    parts = []
    for batch in tf.data.TFRecordDataset(tf.io.gfile.glob(f"{examples}/Split-test/*"), "GZIP").batch(1024):
        raw = tf.io.parse_example(batch, spec)
        parts.append([answer(examples=batch)["score"], *raw.values()])
    score, clicked, category, novelty = (np.concatenate(column) for column in zip(*parts, strict=True))
    new, told = novelty == b"new", category != b""
    masks = dict(zip(SLICES, (new | True, new, new & told, new & ~told), strict=True))
    return {
        "auc": {name: round(float(roc_auc_score(clicked[mask], score[mask])), 5) for name, mask in masks.items()},
        "rows": {name: int(mask.sum()) for name, mask in masks.items()},
        "tensorflow": tf.__version__,
    }


def _page(results: table.Results) -> list[str]:
    every = list(results.rows.values())
    machines, versions = ({row[part] for row in every} for part in ("machine", "tensorflow"))
    lines = ["# What content gives the ranker", ""]
    lines += ["Written by `benchmarks/content.py`, whose docstring says what is done. AUC on the demo world: mean ±"]
    lines += ["standard deviation over seeds (each its own world and classifier).", ""]
    lines += [f"Machine: {'; '.join(sorted(machines))}. Versions: tensorflow {', '.join(sorted(versions))}.", ""]
    lines += [f"| content | {' | '.join(SLICES)} | seeds |", "|---" * (len(SLICES) + 2) + "|"]
    for name in VARIANTS:
        rows = results.of("demo", "ours", name)
        cells = [_spread([row["auc"][part] for row in rows]) for part in SLICES] if rows else [""] * len(SLICES)
        lines.append(f"| {name} | {' | '.join(cells)} | {len(rows)} |")
    off = {row["seed"]: row for row in results.of("demo", "ours", "off")}
    lines += ["", "Difference to no content, by seed:", ""]
    for name in ("concatenated", "attended"):
        rows = [row for row in results.of("demo", "ours", name) if row["seed"] in off]
        for part in SLICES[:2]:
            gains = [row["auc"][part] - off[row["seed"]]["auc"][part] for row in rows]
            lines.append(f"- {name}, {part}: {', '.join(f'{gain:+.4f}' for gain in gains)}")
    lines += ["", "Test rows by seed:", ""]
    lines += [f"- {part}: {', '.join(str(row['rows'][part]) for row in off.values())}" for part in SLICES]
    return [*lines, "", _verdict(results), ""]


def _verdict(results: table.Results) -> str:
    """The bar, on the mean over the seeds that both have; not before there are three."""
    off, attended = (
        {row["seed"]: row["auc"]["new videos"] for row in results.of("demo", "ours", name)}
        for name in ("off", "attended")
    )
    gains = [attended[seed] - off[seed] for seed in off.keys() & attended.keys()]
    better = f"better in {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
    if len(gains) < 3:
        return f"The bar (attended above off on new videos, mean of three seeds) is open: {better}."
    verdict = "holds" if np.mean(gains) > 0 else "**does not hold**"
    return f"The bar (attended above off on new videos) {verdict}: {np.mean(gains):+.4f} AUC, {better}."


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}"


if __name__ == "__main__":
    main()
