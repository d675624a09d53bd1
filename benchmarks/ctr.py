"""Click-through rankers on MovieLens-1M: ours, our baselines and deepctr-torch's, on the very same encoded rows.

    python benchmarks/ctr.py --peer-python PEERS/bin/python [--protocols B A T] [--models ...] [--seeds 1 2 3]

Every run is added to `results/ctr.json` as soon as it is done (an interrupted benchmark goes on with `--only-missing`),
and `results/ctr.md` is written anew. Both sides: Adam 1e-3, batch 1,024, embedding 16, perceptron 256-128, as many
threads, l2 1e-5 on a batch's summed loss, the epoch with the best validation AUC. Ours are trained by
`trainer.training.fit`; only `mhsa_crossing` and its ablations have settings of their own, chosen on the validation rows
of protocol B. For the protocols see `protocols/movielens.py`.
"""

import argparse
import gc
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from protocols import movielens, table
from sklearn.metrics import log_loss, roc_auc_score

from trainer.data import Split
from trainer.keras_version import keras
from trainer.ranker import Config, build_model
from trainer.training import CLICKS, TrainingConfig, fit
from transform.contract import Contract

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SHORTLIST_DATA", HERE.parent.parent / "shared" / "data"))
BATCH, DIMENSION = 1024, 16

# deepctr-torch adds l2 1e-5 to the summed loss of a batch; our loss is the mean.
L2 = 1e-5 / BATCH
SHARED: dict[str, Any] = {
    "embedding_width": DIMENSION,
    "embedding_l2": L2,
    "linear_l2": L2,
    "deep": {"units": (256, 128)},
    "attention": {"heads": 2, "width": 8, "layers": 3},
    "cross_layers": 2,
}
FULL: dict[str, Any] = {
    **SHARED,
    "architecture": "mhsa_crossing",
    "embedding_l2": 1e-3,
    "attention": {"heads": 2, "width": 8, "layers": 1, "residual": "identity"},
}
OURS: dict[str, dict[str, Any]] = {
    "lr": {**SHARED, "architecture": "lr"},
    "fm": {**SHARED, "architecture": "fm"},
    "afm": {**SHARED, "architecture": "afm", "crossing": {"width": 8}},
    "embedding_mlp": {**SHARED, "architecture": "embedding_mlp"},
    "wide_and_deep": {**SHARED, "architecture": "wide_and_deep"},
    "deep_fm": {**SHARED, "architecture": "deep_fm"},
    "dcn_v1": {**SHARED, "architecture": "dcn_v1"},
    "dcn_v2": {**SHARED, "architecture": "dcn_v2"},
    "autoint": {**SHARED, "architecture": "autoint"},
    "acf": {**SHARED, "architecture": "acf"},
    "mhsa_crossing": FULL,
    "no_crossing": {**FULL, "crossing": None},
    "no_attention": {**FULL, "attention": None},
    "low_order": {**FULL, "deep": None, "linear": False},
    # What the stronger regularisation of mhsa_crossing does for the best baselines.
    "deep_fm_regularised": {**SHARED, "architecture": "deep_fm", "embedding_l2": 1e-3},
    "dcn_v2_regularised": {**SHARED, "architecture": "dcn_v2", "embedding_l2": 1e-3},
    "autoint_regularised": {**SHARED, "architecture": "autoint", "embedding_l2": 1e-3},
    # Protocol B with the history of the train split as one more field, which only `acf` has otherwise.
    "mhsa_crossing_history": FULL,
    "autoint_history": {**SHARED, "architecture": "autoint", "embedding_l2": 1e-3},
    "deep_fm_history": {**SHARED, "architecture": "deep_fm", "embedding_l2": 1e-3},
}
WITH_HISTORY = ("acf", "mhsa_crossing_history", "autoint_history", "deep_fm_history")
PEERS = ("lr", "fm", "afm", "deep_fm", "dcn_v2", "autoint")
# Epochs without a better validation AUC after which training stops. deepctr-torch starts from tiny embeddings, so that
# its models, and shallow ones of either side, stand still for some epochs and then improve again; deep ones of ours
# overfit.
PATIENCE = {"peer": 8, "ours": 2, "lr": 8, "fm": 8, "afm": 8, "acf": 8}


def main() -> None:
    options = _options()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    results = table.Results(options.results / "ctr.json")
    for protocol in options.protocols:
        path = movielens.prepare(protocol, options.source, options.work, 40_000 if options.quick else None)
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        for seed in options.seeds:
            for side, name, measure in _runs(protocol, seed, path, arrays, options, results):
                about = {"protocol": protocol, "side": side, "model": name, "seed": seed, "threads": options.threads}
                results.add({**about, **measure})
                table.write(results, options.results / "ctr.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocols", nargs="+", choices=sorted(movielens.PLAIN), default=["B", "A", "T"])
    parser.add_argument("--models", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter with peers/requirements.txt; without it only ours run"
    )
    parser.add_argument("--peers-only", action="store_true", help="leave ours out")
    parser.add_argument("--epochs", type=int, default=25, help="at most so many")
    parser.add_argument("--threads", type=int, default=2, help="of either side; with 1, run as many seeds as cores")
    parser.add_argument(
        "--quick", action="store_true", help="40,000 ratings and 2 epochs, to try the script; results go to --work"
    )
    parser.add_argument("--source", type=Path, default=DATA / "movielens-1m", help="folder of the MovieLens-1M files")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "ctr", help="folder for the encoded rows")
    options = parser.parse_args()
    options.results = options.work if options.quick else HERE / "results"
    if options.quick:
        options.epochs = 2
    return options


def _runs(
    protocol: str,
    seed: int,
    path: Path,
    arrays: dict[str, np.ndarray],
    options: argparse.Namespace,
    results: table.Results,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(side, model, measurement) one by one; a model and its peer one after the other."""
    for name in options.models:
        if name in WITH_HISTORY and (protocol == "A" or (protocol == "T" and name != "acf")):
            continue  # A has no ids and no history, and all of T have it
        wanted = {
            side: not (options.only_missing and results.has(protocol, side, name, seed)) for side in ("ours", "peer")
        }
        if wanted["ours"] and not options.peers_only:
            yield "ours", name, measured(protocol, name, seed, arrays, options.epochs)
        if wanted["peer"] and name in PEERS and options.peer_python:
            yield "peer", name, _peer(protocol, name, seed, path, arrays, options)


def measured(protocol: str, name: str, seed: int, arrays: dict[str, np.ndarray], epochs: int) -> dict[str, Any]:
    """One of `OURS` trained on the train rows of a protocol, and how good and how fast it is on the test rows."""
    contract = movielens.contract(protocol)
    if protocol == "B" and name not in WITH_HISTORY:
        contract = movielens.without_history(contract)
    sizes = json.loads(str(arrays["about"]))["vocabulary_sizes"]
    config = Config.of(OURS[name], "model")
    training = TrainingConfig(epochs=epochs, patience=PATIENCE.get(name, PATIENCE["ours"]), batch_size=BATCH, seed=seed)
    splits = {part: _split(contract, arrays, part) for part in movielens.SPLITS}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = fit(
            lambda: build_model(config, contract, sizes),
            splits["train"],
            splits["valid"],
            CLICKS,
            training,
            tf.distribute.get_strategy(),
            f"{folder}/checkpoint",
            f"{folder}/run",
        )
        history = json.loads(Path(folder, "run", "history.json").read_text())
    score = tf.function(lambda inputs: model(inputs, training=False)["score"], autograph=False)
    scores = np.concatenate([score(inputs).numpy() for inputs, _, _ in splits["test"].in_order(8192)])
    labels = arrays["test/label"]
    best = max(history, key=lambda entry: entry["val_auc"])
    measure = {
        "valid_auc": best["val_auc"],
        "auc": roc_auc_score(labels, scores),
        "logloss": log_loss(labels, scores),
        "epoch": best["epoch"],
        "rows_per_second": float(np.median([entry["rows_per_second"] for entry in history[1:] or history])),
        "ms_per_1000": _inference(score, splits["test"]),
        "load": round(load, 1),
        "versions": {"tensorflow": tf.__version__},
    }
    keras.backend.clear_session()
    gc.collect()
    return measure


def _split(contract: Contract, arrays: dict[str, np.ndarray], part: str) -> Split:
    columns = {feature.name: arrays[f"{part}/{feature.name}"] for feature in contract.inputs}
    columns[contract.label.name] = arrays[f"{part}/label"]
    return Split(contract, (), {}, len(arrays[f"{part}/label"]), columns)


def _inference(score: Any, split: Split) -> float:
    """Median milliseconds to score 1,000 rows that are tensors already, as for one user's candidates."""
    inputs, _, _ = next(iter(split.in_order(1000)))
    times = []
    for _ in range(60):
        started = time.perf_counter()
        score(inputs).numpy()
        times.append(time.perf_counter() - started)
    return float(np.median(times[10:]) * 1000)


def _peer(
    protocol: str, name: str, seed: int, path: Path, arrays: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    sizes = json.loads(str(arrays["about"]))["vocabulary_sizes"]
    features = movielens.PLAIN[protocol]
    tables = {f: sizes[str(movielens.contract(protocol).feature(f).vocabulary)] for f in features if f != "rated_at"}
    settings = {"batch_size": BATCH, "dimension": DIMENSION, "threads": options.threads}
    settings |= {"epochs": options.epochs, "patience": PATIENCE["peer"]}
    command = [str(options.peer_python), "-m", "peers.ctr_peers", "--data", str(path.resolve()), "--models", name]
    command += ["--seed", str(seed), "--features", *features]
    command += ["--vocabularies", json.dumps(tables), "--settings", json.dumps(settings)]
    load = os.getloadavg()[0]
    output = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("{"))
    measure = json.loads(line)
    return {key: value for key, value in measure.items() if key != "model"} | {"load": round(load, 1)}


if __name__ == "__main__":
    main()
