"""deepctr-torch's rankers on the encoded arrays that `ctr.py` wrote; runs in the peers' own environment.

Reads `--data`, trains the models asked for with deepctr-torch's own `fit`, and prints one JSON line a model: the result
as `ctr.py` stores it. Adam 1e-3 and the library's defaults (l2 1e-5 on embeddings, DNN 256-128, initial std 1e-4).
"""

# ruff: noqa: E402 - a stub must stand in sys.modules before the library is imported
import argparse
import contextlib
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

# On import deepctr-torch asks PyPI for its newest version, through a package it does not declare: no network here.
sys.modules.setdefault("requests", types.ModuleType("requests"))

import deepctr_torch
import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import AFM, DCN, AutoInt, DeepFM
from sklearn.metrics import log_loss, roc_auc_score

MODELS: dict[str, Callable[..., Any]] = {
    "lr": lambda columns, dense, **given: DeepFM(columns + dense, columns, use_fm=False, dnn_hidden_units=(), **given),
    "fm": lambda columns, dense, **given: DeepFM(columns + dense, columns, dnn_hidden_units=(), **given),
    "afm": lambda columns, dense, **given: AFM(columns + dense, columns, **given),
    "deep_fm": lambda columns, dense, **given: DeepFM(columns + dense, columns + dense, **given),
    "dcn_v2": lambda columns, dense, **given: DCN(
        columns + dense, columns + dense, cross_parameterization="matrix", dnn_hidden_units=(256, 128), **given
    ),
    "autoint": lambda columns, dense, **given: AutoInt(columns + dense, columns + dense, **given),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", nargs="+", required=True)
    parser.add_argument(
        "--vocabularies", type=json.loads, required=True, help="feature name -> rows of its table, as JSON"
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="batch_size, dimension, epochs, patience, threads"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.settings["threads"])
    with np.load(options.data) as file:
        arrays = {key: file[key] for key in file.files if key.partition("/")[2] in (*options.features, "label")}
    for name in options.models:
        with contextlib.redirect_stdout(sys.stderr):  # deepctr-torch prints
            result = _run(name, arrays, options)
        print(json.dumps({"model": name, **result}), flush=True)


def _columns(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    sparse, dense = [], []
    for name in options.features:
        sample = arrays[f"train/{name}"]
        if sample.dtype.kind == "f":
            dense.append(DenseFeat(name, 1))
            continue
        column = SparseFeat(name, options.vocabularies[name], embedding_dim=options.settings["dimension"])
        sparse.append(column if sample.ndim == 1 else VarLenSparseFeat(column, maxlen=sample.shape[1], combiner="mean"))
    return sparse, dense


def _run(name: str, arrays: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    settings = options.settings
    model = MODELS[name](*_columns(arrays, options), seed=options.seed)
    model.compile(torch.optim.Adam(model.parameters(), lr=1e-3), "binary_crossentropy")
    inputs = {split: {f: arrays[f"{split}/{f}"] for f in options.features} for split in ("train", "valid", "test")}
    labels = {split: arrays[f"{split}/label"] for split in inputs}
    best: dict[str, Any] = {"valid_auc": 0.0}
    seconds: list[float] = []
    for epoch in range(1, settings["epochs"] + 1):
        started = time.perf_counter()
        model.fit(dict(inputs["train"]), labels["train"], batch_size=settings["batch_size"], epochs=1, verbose=0)
        seconds.append(time.perf_counter() - started)
        valid_auc = roc_auc_score(labels["valid"], _predict(model, inputs["valid"]))
        if valid_auc > best["valid_auc"]:
            scores = _predict(model, inputs["test"])
            best = {
                "valid_auc": valid_auc,
                "auc": roc_auc_score(labels["test"], scores),
                "logloss": log_loss(labels["test"], scores),
                "epoch": epoch,
            }
        elif epoch - best["epoch"] >= settings["patience"]:
            break
    rows = len(labels["train"]) / float(np.median(seconds[1:] or seconds))
    versions = {"torch": torch.__version__, "deepctr-torch": deepctr_torch.__version__}
    return {**best, "rows_per_second": rows, "ms_per_1000": _inference(model, inputs["test"]), "versions": versions}


def _predict(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return model.predict(dict(inputs), 8192).reshape(-1)


def _inference(model: Any, inputs: dict[str, np.ndarray]) -> float:
    """Median milliseconds to score 1,000 rows that are a tensor already, as for one user's candidates."""
    first = [inputs[name][:1000] for name in model.feature_index]
    tensor = torch.from_numpy(np.concatenate([part.reshape(len(part), -1) for part in first], axis=1)).float()
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(60):
            started = time.perf_counter()
            model(tensor)
            times.append(time.perf_counter() - started)
    return float(np.median(times[10:]) * 1000)


if __name__ == "__main__":
    main()
