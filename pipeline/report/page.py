"""The report: one HTML page about one run, which opens without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.pages import environment
from pipeline.report import charts
from pipeline.report.gates import number
from pipeline.report.measured import OVERALL, Measured
from pipeline.report.records import ModelRecords, RunRecords, utc

# How a metric is called, where its bars begin and end (None: the largest value), and what it means.
METRICS: dict[str, tuple[str, float, float | None, str]] = {
    "auc": ("AUC", 0.5, 1, "chance that a positive is scored above a negative; bars begin at 0.5, a coin's throw"),
    "logloss": ("Log loss", 0, None, "lower is better"),
    "calibration": ("Calibration", 0, None, "mean score over share of positives; 1 is exact"),
    "ndcg": ("NDCG", 0, 1, "order of each user's list, mean over users"),
    "recall_at_20": ("Recall@20", 0, 1, "share of a user's clicks among the first 20 candidates, mean over users"),
    "recall_at_100": ("Recall@100", 0, 1, "among the first 100"),
    "recall_at_600": ("Recall@600", 0, 1, "among the first 600"),
    "hit_rate": ("Hit rate", 0, 1, "share of users with a click among the first 20"),
    "coverage": ("Coverage", 0, 1, "share of the catalogue that stands among anybody's first 20"),
    "share_of_new": ("New videos", 0, 1, "share of the first 20 that the model was not trained with"),
    "index_recall": ("Index recall", 0, 1, "share of what reading the whole index puts first, 100, that is found"),
    "hits": ("HR@15", 0, 1, "share of what a user opened that is among the model's first 15 of all unopened videos"),
    "ndcg_sampled": ("NDCG@15 of 1,000", 0, 1, "its place among 1,000 others (or all there are), mean of ten draws"),
    "hits_sampled": ("HR@15 of 1,000", 0, 1, "the same among 1,000 others (or all there are), mean of ten draws"),
    "frame_hits_at_1": ("Frame hits@1", 0, 1, "share of liked frames that the model puts first of the video's own"),
    "frame_hits_at_1_popular": ("Frame hits@1, average user", 0, 1, "the same by the average user's taste"),
    "frame_hits_at_1_random": ("Frame hits@1, chance", 0, 1, "the same by chance"),
    "frame_lift": ("Frame lift", 0, None, "frame hits@1 over chance"),
    "frame_lift_popular": ("Frame lift, personal", 0, None, "frame hits@1 over that of the average user's taste"),
    **{f"frame_hits_at_{k}": (f"Frame hits@{k}", 0, 1, f"among the first {k}") for k in range(2, 6)},
    **{f"frame_ndcg_at_{k}": (f"Frame NDCG@{k}", 0, 1, f"their place among the first {k}") for k in range(1, 6)},
    "primary_hits": ("Primary category", 0, 1, "share of videos whose likeliest category is theirs"),
    "secondary_hits": ("Secondary category", 0, 1, "share of videos whose likeliest category is theirs"),
    "tags_hits": ("Tags", 0, 1, "share of videos whose likeliest tag is one of theirs"),
    "accuracy": ("Top-1 accuracy", 0, 1, "share of clips with a category whose most probable one is theirs"),
    "macro_precision": ("Precision (macro)", 0, 1, "mean over categories"),
    "macro_recall": ("Recall (macro)", 0, 1, "mean over categories"),
    "recall": ("Recall", 0, 1, "share of a user's positives among the first, mean over users"),
}
CURVES = (("loss", "Loss"), ("auc", "AUC"), ("accuracy", "Accuracy"), ("score", "Hits"), ("recall", "Recall"))


@dataclass(frozen=True)
class Column:
    """One metric of a table: its name, title, what it means and the axis of its bars."""

    metric: str
    title: str
    meaning: str
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A metric of a slice: text and exact value, its bar, the served model's value, and whether a gate failed."""

    exact: float | None
    text: str
    served: str
    bar: Markup
    failed: bool


@dataclass(frozen=True)
class Row:
    """A slice of a table."""

    name: str
    examples: int | None
    bar: Markup
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """The slices that were cut by the same features."""

    title: str
    rows: tuple[Row, ...]


def write_report(run: RunRecords, path: str | Path) -> None:
    """Write the page.

    Args:
        run: What to show; parts that the run never reached are said to be missing.
        path: The HTML file; its folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run), encoding="utf-8")


def render(run: RunRecords) -> str:
    """The page as text."""
    templates = environment()
    templates.filters.update(utc=utc, number=number, percent=_percent, duration=_duration)
    models = [_model(model) for model in run.models]
    seconds = max((step.seconds for step in run.steps), default=0.0)
    return templates.get_template("report.html.j2").render(
        run=run,
        models=models,
        slowest=seconds,
        charts=charts,
        counts=list(_flat(run.counts)),
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def _model(model: ModelRecords) -> dict[str, Any]:
    columns = _columns(model.slices)
    failed = {(gate.metric, gate.slice) for gate in model.gates if not gate.passed}
    return {
        "record": model,
        "columns": columns,
        "failed": [gate for gate in model.gates if not gate.passed],
        "overall": next((_overall(s, columns, failed) for s in model.slices if s.slice == OVERALL), None),
        "compared": any(s.baseline for s in model.slices),
        "groups": _groups([s for s in model.slices if s.slice != OVERALL], columns, failed),
        "classes": _classes(model),
        "charts": [chart for chart in _curves(model.curves) if chart],
        "calibration": charts.lines("Calibration", {"candidate": model.calibration}, diagonal=True),
    }


def _classes(model: ModelRecords) -> list[dict[str, Any]]:
    """A row for each category: its precision and recall, and how its examples were answered."""
    labels = sorted({label for label, _ in model.confusion})
    names = {**dict(enumerate(model.classes)), -1: "(not trained on)"}
    rows = []
    for label in labels:
        answers = {answer: number for (of, answer), number in model.confusion.items() if of == label}
        hits, total = answers.get(label, 0.0), sum(answers.values())
        answered = sum(number for (_, answer), number in model.confusion.items() if answer == label)
        wrong = sorted(((n, names.get(a, str(a))) for a, n in answers.items() if a != label), reverse=True)
        rows.append(
            {
                "name": names.get(label, str(label)),
                "examples": total,
                "precision": hits / answered if answered else 0.0,
                "recall": hits / total,
                "wrong": ", ".join(f"{name} {number:g}" for number, name in wrong),
            }
        )
    return rows


def _columns(slices: Iterable[Measured]) -> list[Column]:
    slices = list(slices)
    names = list(dict.fromkeys(name for s in slices for name in s.metrics))
    known = list(METRICS)
    names.sort(key=lambda name: known.index(_stem(name)) if _stem(name) in known else len(known))
    columns = []
    for name in names:
        title, low, high, meaning = METRICS.get(_stem(name), (_stem(name), 0.0, None, ""))
        values = [v for s in slices for v in (s.candidate.get(name), s.baseline.get(name)) if v is not None]
        top = max((v for v in values if v == v), default=1.0)
        columns.append(
            Column(name, title + name.removeprefix(_stem(name)), meaning, low, top if high is None else high)
        )
    return columns


def _stem(name: str) -> str:
    return name.partition("@")[0]


def _groups(slices: Iterable[Measured], columns: list[Column], failed: set[tuple[str, str]]) -> list[Group]:
    by_features: dict[tuple[str, ...], list[Measured]] = {}
    for each in slices:
        by_features.setdefault(each.features, []).append(each)
    groups = []
    for features, members in by_features.items():
        most = max((m.examples or 0 for m in members), default=0)
        rows = tuple(_row(m, columns, failed, most) for m in sorted(members, key=_order))
        groups.append(Group(", ".join(features), rows))
    return groups


def _order(each: Measured) -> tuple[float, int, str]:
    """Ranges like 1-5 and 21+ by their first number, everything else by size."""
    leading = re.match(r"\d+", each.value)
    return (float(leading[0]) if leading else 0.0, -(each.examples or 0), each.value)


def _overall(each: Measured, columns: list[Column], failed: set[tuple[str, str]]) -> dict[str, Any]:
    """All examples: how many, and each metric with its column."""
    return {"examples": each.examples, "cells": list(zip(columns, _cells(each, columns, failed), strict=True))}


def _row(each: Measured, columns: list[Column], failed: set[tuple[str, str]], most: int) -> Row:
    return Row(each.value, each.examples, charts.bar(each.examples or 0, 0, most), _cells(each, columns, failed))


def _cells(each: Measured, columns: list[Column], failed: set[tuple[str, str]]) -> tuple[Cell, ...]:
    return tuple(_cell(each, column, (column.metric, each.name) in failed) for column in columns)


def _cell(each: Measured, column: Column, failed: bool) -> Cell:
    value, served = each.candidate.get(column.metric), each.baseline.get(column.metric)
    bar = Markup("") if value is None else charts.bar(value, column.low, column.high, served)
    return Cell(value, number(value), number(served), bar, failed)


def _curves(epochs: Iterable[Mapping[str, float]]) -> Iterator[Markup]:
    epochs = list(epochs)
    for key, title in CURVES:
        series = {"train": key, "valid": f"val_{key}"}
        points = {
            name: [(float(e["epoch"]), float(e[column])) for e in epochs if e.get(column) is not None]
            for name, column in series.items()
        }
        yield charts.lines(f"{title} by epoch", {name: found for name, found in points.items() if found})
    rates = [(float(e["epoch"]), float(e["rows_per_second"])) for e in epochs if e.get("rows_per_second") is not None]
    yield charts.lines("Rows per second by epoch", {"train": rates})


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in counts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif key.endswith("_from"):  # where a split by time begins
            yield name, utc(value)
        else:
            yield name, f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60} s"
