"""Popularity, item-item neighbours, ALS, BPR (all `implicit`) and EASE on the arrays that `retrieval.py` wrote.

Runs in the peers' own environment. A query is a history; whoever has vectors of users folds it in (ALS solves for it;
BPR, which cannot, takes the user's own vector or the mean of the history's videos, as `GRIDS` finds better). Settings
are chosen from `GRIDS` by recall@20 on the validation queries, by models that have not learned what these seek. Videos
of equal score come in a random order. Writes the 600 best videos a query, and prints one JSON line a method.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from scipy import sparse

ITEM_ITEM = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
Scorer = Callable[[sparse.csr_matrix, np.ndarray], np.ndarray]  # histories, users (0 unknown) -> scores
GRIDS: dict[str, dict[str, list[Any]]] = {
    "popularity": {},
    "item_item": {"kind": ["cosine", "tfidf", "bm25"], "neighbours": [20, 100, 1000]},
    "ease": {"l2": [5.0, 20.0, 50.0, 200.0, 800.0, 3200.0]},
    "als": {"factors": [32, 64, 128], "alpha": [1.0, 10.0, 40.0], "regularization": [0.01, 1.0, 10.0]},
    "bpr": {"own": [True, False], "learning_rate": [0.002, 0.01, 0.05], "regularization": [0.0001, 0.001, 0.01]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(GRIDS), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, help="chosen before; without them the grid is searched")
    options = parser.parse_args()
    with np.load(options.data) as file:
        arrays = dict(file)
    videos = len(arrays["allowed"])
    clicks, learned = (_matrix(arrays["clicks"][rows], videos) for rows in (slice(None), ~arrays["sought_in_clicks"]))
    valid, test = (_histories(arrays, part, videos) for part in ("valid", "test"))
    settings = options.settings
    if settings is None:
        grid = [
            dict(zip(GRIDS[options.model], each, strict=True))
            for each in itertools.product(*GRIDS[options.model].values())
        ]
        fits = (FITS[options.model](learned, options.seed, **settings) for settings in grid)
        recalls = [_recall(_best(fit, valid, arrays["valid_users"], arrays["allowed"]), arrays) for fit in fits]
        settings = grid[int(np.argmax(recalls))]
    started = time.perf_counter()
    scorer = FITS[options.model](clicks, options.seed, **settings)
    seconds = time.perf_counter() - started
    np.save(options.data.with_suffix(".found.npy"), _best(scorer, test, arrays["test_users"], arrays["allowed"]))
    versions = {"implicit": importlib.metadata.version("implicit")}
    print(json.dumps({"settings": settings, "seconds": seconds, "versions": versions}))


def _matrix(clicks: np.ndarray, videos: int) -> sparse.csr_matrix:
    ones = np.ones(len(clicks), np.float32)
    matrix = sparse.csr_matrix((ones, (clicks[:, 0], clicks[:, 1] - 1)), (int(clicks[:, 0].max()) + 1, videos))
    matrix.data[:] = 1
    return matrix


def _histories(arrays: dict[str, np.ndarray], part: str, videos: int) -> sparse.csr_matrix:
    flat, ends = arrays[f"{part}_history"], arrays[f"{part}_ends"]
    matrix = sparse.csr_matrix((np.ones(len(flat), np.float32), flat - 1, np.append(0, ends)), (len(ends), videos))
    matrix.sum_duplicates()
    return matrix


def _best(score: Scorer, histories: sparse.csr_matrix, users: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Numbers of the 600 best allowed videos that are not in the history, [queries, 600]."""
    parts = []
    random = np.random.default_rng(0)
    for start in range(0, histories.shape[0], 512):
        part = histories[start : start + 512]
        scores = np.array(score(part, users[start : start + 512]), np.float32)
        scores[:, ~allowed] = -np.inf
        scores[part.nonzero()] = -np.inf
        ties = random.random(scores.shape)  # numbers are by popularity: ties must not be answered in that order
        best = np.lexsort((ties, -scores), axis=1)[:, :600]
        parts.append(np.where(np.take_along_axis(scores, best, axis=1) > -np.inf, best + 1, 0))
    return np.concatenate(parts)


def _recall(found: np.ndarray, arrays: dict[str, np.ndarray]) -> float:
    sought = np.split(arrays["valid_sought"], arrays["valid_sought_ends"][:-1])
    return float(np.mean([np.isin(row, f[:20]).mean() for row, f in zip(sought, found, strict=True)]))


def _popularity(clicks: sparse.csr_matrix, seed: int) -> Scorer:
    counts = np.asarray(clicks.sum(axis=0)).ravel()
    return lambda histories, users: np.tile(counts, (histories.shape[0], 1))


def _item_item(clicks: sparse.csr_matrix, seed: int, kind: str, neighbours: int) -> Scorer:
    model = ITEM_ITEM[kind](K=neighbours, num_threads=1)
    model.fit(clicks, show_progress=False)
    return lambda histories, users: (histories @ model.similarity).toarray()


def _ease(clicks: sparse.csr_matrix, seed: int, l2: float) -> Scorer:
    """Steck 2019: B = I - P diag(1 / diag(P)), P = (X^T X + l2 I)^-1."""
    gram = (clicks.T @ clicks).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return lambda histories, users: histories @ weights


def _als(clicks: sparse.csr_matrix, seed: int, **settings: Any) -> Scorer:
    model = AlternatingLeastSquares(**settings, iterations=20, random_state=seed, num_threads=1)
    model.fit(clicks, show_progress=False)

    def score(histories: sparse.csr_matrix, users: np.ndarray) -> np.ndarray:
        return model.recalculate_user(np.arange(histories.shape[0]), histories) @ model.item_factors.T

    return score


def _bpr(clicks: sparse.csr_matrix, seed: int, own: bool, **settings: Any) -> Scorer:
    """`implicit` keeps an item's bias as the last of its factors, and 1 in that place of a user's."""
    model = BayesianPersonalizedRanking(factors=64, **settings, iterations=200, random_state=seed, num_threads=1)
    model.fit(clicks, show_progress=False)
    known = np.flatnonzero(np.asarray(clicks.sum(axis=1)).ravel() > 0)

    def score(histories: sparse.csr_matrix, users: np.ndarray) -> np.ndarray:
        people = np.asarray(histories @ model.item_factors) / np.maximum(histories.getnnz(axis=1), 1)[:, np.newaxis]
        people[:, -1] = 1
        trained = np.isin(users, known) & own
        people[trained] = model.user_factors[users[trained]]
        return people @ model.item_factors.T

    return score


FITS: dict[str, Callable[..., Scorer]] = {
    "popularity": _popularity,
    "item_item": _item_item,
    "ease": _ease,
    "als": _als,
    "bpr": _bpr,
}

if __name__ == "__main__":
    main()
