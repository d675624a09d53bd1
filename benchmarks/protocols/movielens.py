"""The MovieLens-1M protocols as encoded arrays, written once and read by both sides of a comparison.

- A: AutoInt's script. Shuffle with random.seed(2019), 80/10/10, ids missing, vocabularies and scaling over all rows.
- B: RecBole's fields and the zip code. Random 8:1:1, vocabularies over all rows.
- T: the default time split and the built-in `movielens` contract. Vocabularies and scaling from the train rows alone.

A rating above 3 is positive, below 3 negative; a 3 makes no row, but counts as an event.
"""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transform.contract import MULTI_VALUED, Contract, Feature, Kind, Role, Scale, load

CONTRACTS = Path(__file__).parent.parent / "contracts"
SPLITS = ("train", "valid", "test")
PLAIN_B = ("user_id", "gender", "age", "occupation", "zip_code", "video_id", "genres", "release_year")
PLAIN = {
    "A": ("gender", "age", "occupation", "zip_code", "genres", "release_bucket", "rated_at"),
    "B": PLAIN_B,
    "T": PLAIN_B,
}


def contract(protocol: str) -> Contract:
    """The contract of a protocol."""
    if protocol == "T":
        return load("movielens")
    return load(str(CONTRACTS / f"protocol_{protocol.lower()}.yaml"))


def without_history(declared: Contract) -> Contract:
    """The contract less its histories."""
    kept = tuple(f for f in declared.features if f.kind is not Kind.HISTORY)
    return declared.model_copy(update={"features": kept})


def prepare(protocol: str, source: Path, out: Path, rows: int | None = None) -> Path:
    """Write a protocol's arrays to `out` (unless they are there) and return the file.

    Keys are `<split>/<feature>`, `<split>/label`, and `about`: JSON with the vocabulary sizes and the row counts.

    Args:
        source: Folder of the MovieLens-1M files.
        out: Folder of the encoded arrays.
        rows: Use only the first so many ratings; for trying things.
    """
    path = out / f"protocol_{protocol.lower()}{'' if rows is None else f'_{rows}'}.npz"
    if path.is_file():
        return path
    declared = contract(protocol)
    events = _read(source, rows)
    split = _split(protocol, events)
    _derive(events, known=split == 0 if protocol == "B" else np.ones(len(split), bool))
    if protocol == "A":
        events |= {source: [""] * len(split) for source in ("users.user_id", "videos.video_id")}
    fit = split == 0 if protocol == "T" else split >= 0
    arrays, sizes = _encode(declared, events, fit)
    arrays["label"] = (events["interactions.rating"] > 3).astype(np.float32)
    content = {
        f"{name}/{key}": value[split == number] for number, name in enumerate(SPLITS) for key, value in arrays.items()
    }
    about = {
        "vocabulary_sizes": sizes,
        "rows": {name: int((split == number).sum()) for number, name in enumerate(SPLITS)},
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, about=json.dumps(about), **content)
    return path


def _lines(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="latin-1") as file:
        for line in file:
            yield line.rstrip("\n").split("::")


def _read(source: Path, rows: int | None) -> dict[str, Any]:
    """Columns of all ratings by the contract's source names, in the file's order."""
    users = {user: rest for user, *rest in _lines(source / "users.dat.gz")}
    movies = {movie: (title[-5:-1], genres.split("|")) for movie, title, genres in _lines(source / "movies.dat.gz")}
    ratings = list(_lines(source / "ratings_first_487650.dat.gz"))[:rows]
    events: dict[str, Any] = {
        "users.user_id": [user for user, *_ in ratings],
        "videos.video_id": [movie for _, movie, *_ in ratings],
        "interactions.rating": np.array([int(rating) for *_, rating, _ in ratings]),
        "interactions.at": np.array([int(at) for *_, at in ratings]),
        "videos.release_year": [movies[movie][0] for _, movie, *_ in ratings],
        "videos.release_bucket": [_bucket(movies[movie][0]) for _, movie, *_ in ratings],
        "videos.tags": [movies[movie][1] for _, movie, *_ in ratings],
    }
    for position, column in enumerate(("gender", "age", "occupation", "zip_code")):
        events[f"users.{column}"] = [users[user][position] for user, *_ in ratings]
    return events


def _bucket(year: str) -> str:
    """AutoInt's: before 1930, decades up to 1970, then single years."""
    number = int(year)
    return year if number >= 1970 else "before 1930" if number < 1930 else f"{number // 10}0s"


def _split(protocol: str, events: dict[str, Any]) -> np.ndarray:
    """0 train, 1 valid, 2 test, by row; -1 for neutral ratings."""
    split = np.full(len(events["interactions.rating"]), -1)
    used = np.flatnonzero(events["interactions.rating"] != 3)
    if protocol == "T":
        at = events["interactions.at"]
        split[used] = np.searchsorted(np.quantile(at, [0.8, 0.9]), at[used], side="right")
        return split
    order = list(range(len(used)))
    random.Random(2019).shuffle(order)
    first, second = int(len(used) * 0.8), int(len(used) * 0.9)
    for number, part in enumerate((order[:first], order[first:second], order[second:])):
        split[used[part]] = number
    return split


def _derive(events: dict[str, Any], known: np.ndarray) -> None:
    """Add the `derived.*` columns: what the `known` among the events strictly before each one say."""
    rating, at = events["interactions.rating"], events["interactions.at"]
    first_genres = [genres[0] for genres in events["videos.tags"]]
    by_genre = list(map("\0".join, zip(events["users.user_id"], first_genres, strict=True)))
    groups = {"user": events["users.user_id"], "video": events["videos.video_id"], "user_category": by_genre}
    for key, column in groups.items():
        counts, positives = np.zeros(len(at)), np.zeros(len(at))
        histories: list[list[str]] = [[] for _ in at] if key == "user" else []
        for members in _groups(column, at):
            seen = members[known[members]]
            liked = seen[rating[seen] > 3]
            before, liked_before = (np.searchsorted(at[part], at[members], side="left") for part in (seen, liked))
            counts[members], positives[members] = before, liked_before
            if key == "user":
                names = [events["videos.video_id"][row] for row in liked]
                for row, end in zip(members, liked_before, strict=True):
                    histories[row] = names[max(0, end - 50) : end]
        events[f"derived.{key}_events"] = counts
        events[f"derived.{key}_positive_rate"] = (positives + 1) / (counts + 2)
        if key == "user":
            events["derived.user_history"] = histories


def _groups(values: list[str], at: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each distinct value, by time."""
    _, codes = np.unique(values, return_inverse=True)
    order = np.lexsort((at, codes))
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _encode(
    declared: Contract, events: dict[str, Any], fit: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Transformed features as `transform.impressions` would give them: 0 missing, 1..V known, V+1 out of vocabulary."""
    inputs = declared.select(roles=(Role.USER, Role.VIDEO, Role.CONTEXT))
    vocabularies = {
        name: _vocabulary(declared, name, events, fit) for name in {f.vocabulary for f in inputs if f.vocabulary}
    }
    arrays = {}
    for feature in inputs:
        column = events[feature.source]
        if feature.kind is Kind.NUMBER:
            arrays[feature.name] = _scale(feature, np.asarray(column, np.float64), fit)
        else:
            arrays[feature.name] = _indices(feature, column, vocabularies[feature.vocabulary or ""])
    return arrays, {name: len(content) + 2 for name, content in vocabularies.items()}


def _vocabulary(declared: Contract, name: str, events: dict[str, Any], fit: np.ndarray) -> dict[str, int]:
    counts: Counter[str] = Counter()
    rows = np.flatnonzero(fit)
    for feature in declared.features:
        if feature.vocabulary == name:
            column = events[feature.source]
            counts.update(
                value for row in rows for value in (column[row] if feature.kind in MULTI_VALUED else (column[row],))
            )
    least = declared.vocabularies[name].min_count
    kept = [value for value, count in counts.most_common() if value and count >= least]
    return {value: index for index, value in enumerate(kept, start=1)}


def _indices(feature: Feature, column: list[Any], vocabulary: dict[str, int]) -> np.ndarray:
    unknown = len(vocabulary) + 1
    if feature.kind is Kind.ID:
        return np.array([vocabulary.get(value, unknown) if value else 0 for value in column], np.int32)
    length = feature.max_length or 0
    result = np.zeros((len(column), length), np.int32)
    for row, values in enumerate(column):
        kept = values[-length:] if feature.kind is Kind.HISTORY else values[:length]
        result[row, : len(kept)] = [vocabulary.get(value, unknown) for value in kept]
    return result


def _scale(feature: Feature, values: np.ndarray, fit: np.ndarray) -> np.ndarray:
    logged = np.log1p(values) if feature.scale is Scale.LOG else values
    known = logged[fit]
    if feature.scale is Scale.MINMAX:
        return ((logged - known.min()) / (known.max() - known.min())).astype(np.float32)
    return ((logged - known.mean()) / known.std()).astype(np.float32)
