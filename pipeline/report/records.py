"""The records of a run, gathered from its folder: `run.json` says where each of them lies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

from pipeline.models import FEED
from pipeline.report import measured
from pipeline.report.gates import Gate, gates_of
from pipeline.report.topics import Topic, read_topics
from pipeline.runs import load_run, newest_run

SPLIT_ORDER = ("train", "valid", "test")


@dataclass(frozen=True)
class Step:
    """One node of the pipeline.

    Attributes:
        name: What it is called.
        seconds: How long it took.
        cached: Whether its outputs are an earlier run's.
        rows: Rows it made, if it counts any.
    """

    name: str
    seconds: float
    cached: bool = False
    rows: int | None = None


@dataclass(frozen=True)
class Anomaly:
    """What TFDV found wrong with one feature of one split."""

    split: str
    feature: str
    short: str
    description: str


@dataclass(frozen=True)
class Drift:
    """How far one feature of the train split is from that of the span before."""

    feature: str
    measure: str
    distance: float
    allowed: float


@dataclass(frozen=True)
class Rejected:
    """Rows of the world that were set aside for one reason; `example` is the content of the first."""

    table: str
    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class FeatureStatistics:
    """One feature of one split in brief.

    Attributes:
        name: Feature name.
        kind: `text` or `number`.
        missing: Share of examples without a value, or with one that stands for none; empty lists count as values.
        values: Values an example on average.
        description: Its distribution in words.
        histogram: Heights of its distribution, most frequent values first for text; empty if unknown.
    """

    name: str
    kind: str
    missing: float
    values: float
    description: str
    histogram: tuple[float, ...] = ()


@dataclass(frozen=True)
class SplitStatistics:
    """What TFDV counted in one split."""

    split: str
    rows: int
    features: tuple[FeatureStatistics, ...]


@dataclass(frozen=True)
class ModelRecords:
    """What was measured of one model.

    Attributes:
        name: The model's name in the run's configuration.
        served_version: The version that was pushed; empty if it was refused.
        slices: Metrics of all examples, then by slice; empty if the run ended before.
        gates: What it had to reach, failed ones first.
        calibration: (mean score, share of positives) over ranges of the score.
        curves: One entry an epoch, as Trainer wrote it.
        classes: What the indices of `confusion` are called; empty for a model without classes.
        confusion: How many examples have (label, answer); label -1 is a class that it was not trained on.
    """

    name: str
    served_version: str = ""
    slices: tuple[measured.Measured, ...] = ()
    gates: tuple[Gate, ...] = ()
    calibration: tuple[tuple[float, float], ...] = ()
    curves: tuple[Mapping[str, float], ...] = ()
    classes: tuple[str, ...] = ()
    confusion: Mapping[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecords:
    """Everything the report shows.

    Attributes:
        id: The run.
        world: Folder of the tables it read.
        outcome: pushed, refused or failed.
        started: Unix seconds.
        finished: Unix seconds.
        error: Why it failed.
        steps: The nodes in the order they ran.
        models: The models it trained.
        statistics: By split.
        anomalies: Of all splits.
        validated: Whether the data was held against the schema at all.
        drift: Of the features that were compared; empty where there was no span before.
        counts: What the makers of examples and content vectors counted.
        rejected: Rows that never became examples.
        config: The run's configuration.
        topics: The topics of its videos, largest first; empty where it learns none.
    """

    id: str
    world: str
    outcome: str
    started: float
    finished: float
    error: str = ""
    steps: tuple[Step, ...] = ()
    models: tuple[ModelRecords, ...] = ()
    statistics: tuple[SplitStatistics, ...] = ()
    anomalies: tuple[Anomaly, ...] = ()
    validated: bool = False
    drift: tuple[Drift, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    topics: tuple[Topic, ...] = ()


_MEASURES = {1: "largest difference of a share", 2: "Jensen-Shannon divergence"}


def utc(seconds: float) -> str:
    """Unix seconds for people."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def load(run_dir: str | Path) -> RunRecords:
    """Read the records of a run.

    Args:
        run_dir: A run's folder; or a folder of runs, of which the newest is taken.

    Raises:
        ContractError: There is no run in the folder, or its record cannot be read.
    """
    folder = Path(run_dir)
    run = load_run(folder if (folder / "run.json").is_file() else newest_run(folder))
    artifacts = run.get("artifacts", {})
    data: dict[str, str] = next(iter(artifacts.values()), {})
    steps = tuple(Step(s["name"], s["seconds"], s.get("cached", False), s.get("rows")) for s in run.get("steps", []))
    return RunRecords(
        id=run["id"],
        world=run["world"],
        outcome=run["outcome"],
        started=run["started"],
        finished=run["finished"],
        error=run.get("error", ""),
        steps=steps,
        models=tuple(_model(name, uris, run) for name, uris in artifacts.items()),
        statistics=_statistics(data.get("statistics")),
        anomalies=_anomalies(data.get("anomalies")),
        validated="anomalies" in data,
        drift=_drift(data.get("drift")),
        counts=_counts(data),
        rejected=_rejected(run["world"], data),
        config=run.get("config", {}),
        topics=read_topics(data),
    )


def _model(name: str, uris: Mapping[str, str], run: Mapping[str, Any]) -> ModelRecords:
    curves = _read_json(f"{uris['model_run']}/history.json") if "model_run" in uris else None
    version = run.get("served_version", {}).get(name, "")
    if name == FEED or "evaluation" not in uris:
        curves = None if name == FEED else curves
        return ModelRecords(name, version, gates=tuple(gates_of(name, uris)), curves=tuple(curves or ()))
    uri = uris["evaluation"]
    return ModelRecords(
        name=name,
        served_version=version,
        slices=tuple(measured.measured(uri)),
        gates=tuple(gates_of(name, uris)),
        calibration=tuple(measured.calibration(uri)),
        curves=tuple(curves or ()),
        classes=tuple(_read_json(f"{uris['model_run']}/classes.json") or ()) if "model_run" in uris else (),
        confusion=measured.confusion(uri),
    )


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        content: bytes = file.read()
    return content


def _read_json(path: str) -> Any:
    return json.loads(_read(path)) if tf.io.gfile.exists(path) else None


def _splits(uri: str | None, name: str) -> list[tuple[str, bytes]]:
    """(split, content) of a file that every split of an artifact has, in the order of time."""
    paths = tf.io.gfile.glob(f"{uri}/Split-*/{name}") if uri else []
    found = [(path.split("/")[-2].removeprefix("Split-"), _read(path)) for path in paths]
    return sorted(found, key=lambda entry: (SPLIT_ORDER.index(entry[0]) if entry[0] in SPLIT_ORDER else 9, entry[0]))


def _anomalies(uri: str | None) -> tuple[Anomaly, ...]:
    found = []
    for split, content in _splits(uri, "SchemaDiff.pb"):
        proto = anomalies_pb2.Anomalies.FromString(content)
        for feature, info in sorted(proto.anomaly_info.items()):
            found.append(Anomaly(split, feature, info.short_description, info.description))
        if proto.HasField("dataset_anomaly_info"):
            info = proto.dataset_anomaly_info
            found.append(Anomaly(split, "(all)", info.short_description, info.description))
    return tuple(found)


def _drift(uri: str | None) -> tuple[Drift, ...]:
    found = []
    for path in tf.io.gfile.glob(f"{uri}/SplitPair-*/SchemaDiff.pb") if uri else []:
        for info in anomalies_pb2.Anomalies.FromString(_read(path)).drift_skew_info:
            feature = ".".join(info.path.step)
            found += [Drift(feature, _MEASURES[m.type], m.value, m.threshold) for m in info.drift_measurements]
    return tuple(sorted(found, key=lambda drift: drift.feature))


def _statistics(uri: str | None) -> tuple[SplitStatistics, ...]:
    found = []
    for split, content in _splits(uri, "FeatureStats.pb"):
        dataset = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets[0]
        features = tuple(_feature(f, dataset.num_examples) for f in dataset.features)
        found.append(SplitStatistics(split, int(dataset.num_examples), features))
    return tuple(found)


def _feature(proto: Any, examples: int) -> FeatureStatistics:
    name = proto.name or ".".join(proto.path.step)
    stats = proto.num_stats if proto.HasField("num_stats") else proto.string_stats
    common = stats.common_stats
    missing = (examples - common.num_non_missing + _stand_ins(proto)) / examples if examples else 0.0
    describe = _number if proto.HasField("num_stats") else _text
    kind = "number" if proto.HasField("num_stats") else "text"
    return FeatureStatistics(name, kind, missing, common.avg_num_values, *describe(stats))


def _stand_ins(proto: Any) -> float:
    """How many values only say that there is none: NaN, and the empty string where TFDV lists it as frequent."""
    if proto.HasField("num_stats"):
        return float(sum(h.num_nan for h in proto.num_stats.histograms[:1]))
    return float(sum(v.frequency for v in proto.string_stats.top_values if not v.value))


def _number(stats: Any) -> tuple[str, tuple[float, ...]]:
    words = f"mean {stats.mean:.4g}, from {stats.min:.4g} to {stats.max:.4g}, median {stats.median:.4g}"
    standard = [h for h in stats.histograms if h.type == statistics_pb2.Histogram.STANDARD]
    return words, tuple(b.sample_count for b in standard[0].buckets) if standard else ()


def _text(stats: Any) -> tuple[str, tuple[float, ...]]:
    top = ", ".join(f"{value.value or '(empty)'} ({value.frequency:,.0f})" for value in stats.top_values[:3])
    return f"{stats.unique:,} different; {top}", tuple(v.frequency for v in stats.top_values[:10])


def _counts(data: Mapping[str, str]) -> dict[str, Any]:
    """What ImpressionExampleGen counted, and ClipExampleGen and ContentEmbedder where clips are decoded."""
    own = {
        name: _read_json(f"{data[name]}/summary.json") or {}
        for name in ("examples", "clips", "content", "videos", "topics")
        if name in data
    }
    of_clips = {name: value for name, value in own.pop("clips", {}).items() if name != "settings"}
    return {**own.pop("examples", {}), **({"clips": of_clips} if of_clips else {}), **own}


def _rejected(world: str, data: Mapping[str, str]) -> tuple[Rejected, ...]:
    """What the importer set aside, the media that give no clip, and the interactions that yield no impression."""
    examples = data.get("examples")
    path = f"{world}/rejected.parquet"
    rows = _rows(path) if tf.io.gfile.exists(path) else []
    for path in sorted(tf.io.gfile.glob(f"{examples}/rejected-*.parquet")) if examples else []:
        for row in _rows(path):
            reason = row.pop("reason")
            rows.append({"table": "interactions", "reason": reason, "content": json.dumps(row)})
    for row in _rows(f"{data['clips']}/rejected.parquet") if "clips" in data else []:
        rows.append({"table": "media", "reason": row.pop("reason"), "content": json.dumps(row)})
    counts = Counter((row["table"], row["reason"]) for row in rows)
    first = {(row["table"], row["reason"]): row["content"] for row in reversed(rows)}
    return tuple(Rejected(*key, count, first[key]) for key, count in counts.most_common())


def _rows(path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(_read(path))).to_pylist()
    return rows
