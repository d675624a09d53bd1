"""One small but real TFMA evaluation, and a run folder around it.

The AUC floor and change and the ceiling of log loss fail for new users, all else passes.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

HOSTILE = "<script>alert('x')</script>&\"https://evil.example/x.js\""


def bound(lower: float | None = None, upper: float | None = None, change: float | None = None) -> tfma.MetricThreshold:
    threshold = tfma.MetricThreshold()
    if lower is not None:
        threshold.value_threshold.lower_bound.value = lower
    if upper is not None:
        threshold.value_threshold.upper_bound.value = upper
    if change is not None:
        threshold.change_threshold.direction = tfma.MetricDirection.HIGHER_IS_BETTER
        threshold.change_threshold.absolute.value = change
    return threshold


def per_slice(feature: str | None, threshold: tfma.MetricThreshold) -> tfma.PerSliceMetricThreshold:
    spec = tfma.SlicingSpec(feature_keys=[feature]) if feature else tfma.SlicingSpec()
    return tfma.PerSliceMetricThreshold(slicing_specs=[spec], threshold=threshold)


def examples() -> pd.DataFrame:
    """Labels that the candidate orders well for known users, backwards for new ones; the served model the other way."""
    random = np.random.default_rng(7)
    label = random.integers(0, 2, 400).astype(np.float32)
    new = np.arange(400) % 4 == 0
    good = 0.1 + 0.35 * label + 0.4 * random.uniform(0, 1, 400)
    middling = 0.1 * label + 0.5 * random.uniform(0, 1, 400)
    return pd.DataFrame(
        {
            "label": label,
            "candidate_score": np.where(new, 0.9 - good, good).astype(np.float32),
            "served_score": np.where(new, good, middling).astype(np.float32),
            "user_novelty": np.where(new, "new", "known"),
            "category": np.where(np.arange(400) % 3 == 0, HOSTILE, "Gaming"),
            "user_id": [f"u{i % 20}" for i in range(400)],
        }
    )


class _Recite(tf.Module):
    """A model that answers with a number it finds in the example."""

    def __init__(self, column: str) -> None:
        super().__init__()
        self._column = column

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {self._column: tf.io.FixedLenFeature([], tf.float32)}
        return {"score": tf.io.parse_example(examples, spec)[self._column]}


def save_model(column: str, folder: str) -> str:
    model = _Recite(column)
    tf.saved_model.save(model, folder, signatures={"serving_default": model.score})
    return folder


def write_examples(data: pd.DataFrame, path: str) -> str:
    with tf.io.TFRecordWriter(path) as writer:
        for row in data.to_dict("records"):
            features = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
                if isinstance(value, str)
                else tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                for name, value in row.items()
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return path


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an evaluation that refuses, see above."""
    folder = str(tmp_path_factory.mktemp("evaluation"))
    auc_gates = [
        per_slice(None, bound(lower=0.6)),
        per_slice("user_novelty", bound(lower=0.55, change=-0.02)),
    ]
    config = tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(name="candidate", label_key="label", signature_name="serving_default"),
            tfma.ModelSpec(name="baseline", label_key="label", signature_name="serving_default", is_baseline=True),
        ],
        slicing_specs=[
            tfma.SlicingSpec(),
            tfma.SlicingSpec(feature_keys=["user_novelty"]),
            tfma.SlicingSpec(feature_keys=["category"]),
        ],
        metrics_specs=[
            tfma.MetricsSpec(
                metrics=[
                    tfma.MetricConfig(class_name="ExampleCount"),
                    tfma.MetricConfig(class_name="AUC", config='{"name": "auc"}', per_slice_thresholds=auc_gates),
                    tfma.MetricConfig(
                        class_name="BinaryCrossEntropy",
                        config='{"name": "logloss"}',
                        threshold=bound(upper=1.0),  # without a slicing spec: TFMA holds every slice to it
                    ),
                    tfma.MetricConfig(class_name="CalibrationPlot"),
                ]
            ),
            tfma.MetricsSpec(
                metrics=[
                    tfma.MetricConfig(
                        class_name="NDCG",
                        config='{"gain_key": "label", "name": "ndcg"}',
                        per_slice_thresholds=[per_slice(None, bound(lower=0.1, upper=1.0))],
                    )
                ],
                query_key="user_id",
                binarize=tfma.BinarizationOptions(top_k_list={"values": [10]}),
            ),
        ],
    )
    models = [
        tfma.default_eval_shared_model(
            eval_saved_model_path=save_model(f"{column}_score", f"{folder}/{column}"),
            model_name=name,
            eval_config=config,
        )
        for name, column in (("candidate", "candidate"), ("baseline", "served"))
    ]
    data = write_examples(examples(), f"{folder}/examples")
    tfma.run_model_analysis(models, config, data_location=data, output_path=f"{folder}/out")
    return f"{folder}/out"


def write_statistics(folder: Path) -> None:
    for split, rows in (("train", 800), ("valid", 100), ("test", 100)):
        statistics = statistics_pb2.DatasetFeatureStatisticsList()
        dataset = statistics.datasets.add(num_examples=rows)
        age = dataset.features.add(name="video_age_hours", type=statistics_pb2.FeatureNameStatistics.FLOAT)
        age.num_stats.common_stats.num_non_missing = rows * 3 // 4
        age.num_stats.common_stats.avg_num_values = 1
        age.num_stats.mean, age.num_stats.min, age.num_stats.max, age.num_stats.median = 12.5, 0, 90, 8
        standard = age.num_stats.histograms.add(type=statistics_pb2.Histogram.STANDARD, num_nan=rows // 20)
        buckets = standard.buckets
        for count in (50, 30, 12, 4, 4):
            buckets.add(sample_count=count)
        title = dataset.features.add(name="title", type=statistics_pb2.FeatureNameStatistics.STRING)
        title.string_stats.common_stats.num_non_missing = rows
        title.string_stats.common_stats.avg_num_values = 1
        title.string_stats.unique = 321
        title.string_stats.top_values.add(value=HOSTILE, frequency=9)
        title.string_stats.top_values.add(value="", frequency=rows // 10)
        (folder / f"Split-{split}").mkdir(parents=True)
        (folder / f"Split-{split}" / "FeatureStats.pb").write_bytes(statistics.SerializeToString())


def write_anomalies(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        anomalies = anomalies_pb2.Anomalies()
        if split == "valid":
            info = anomalies.anomaly_info["gender"]
            info.short_description, info.description = "Column dropped", f"No example has {HOSTILE}"
        (folder / f"Split-{split}").mkdir(parents=True)
        (folder / f"Split-{split}" / "SchemaDiff.pb").write_bytes(anomalies.SerializeToString())


HISTORY = [
    {
        "epoch": epoch,
        "loss": 0.7 - 0.05 * epoch,
        "auc": 0.6 + 0.04 * epoch,
        "val_loss": 0.69 - 0.03 * epoch,
        "val_auc": 0.6 + 0.03 * epoch,
        "seconds": 2.0,
        "rows_per_second": 40000.0 + 500 * epoch,
    }
    for epoch in range(1, 7)
]


@pytest.fixture(scope="session")
def run_folder(evaluation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the evaluation above refused, over a world with rejected rows and hostile text."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    world = folder / "world"
    world.mkdir(parents=True)
    rejected = [
        ("interactions", 3, "unknown video", '{"video_id": "v9"}'),
        ("interactions", 7, "unknown video", '{"video_id": "v8"}'),
        ("videos", 1, "no title", json.dumps({"video_id": HOSTILE})),
    ]
    columns = dict(zip(("table", "row", "reason", "content"), map(list, zip(*rejected, strict=True)), strict=True))
    pq.write_table(pa.table(columns), world / "rejected.parquet")
    uris = {name: str(folder / "artifacts" / name) for name in ("statistics", "anomalies", "model_run", "examples")} | {
        "evaluation": evaluation
    }
    write_statistics(Path(uris["statistics"]))
    write_anomalies(Path(uris["anomalies"]))
    for name, file, content in (
        ("model_run", "history.json", HISTORY),
        ("examples", "summary.json", {"interactions": 1234, "splits": {"by": "time", "test_from": 1700000000}}),
    ):
        Path(uris[name]).mkdir()
        (Path(uris[name]) / file).write_text(json.dumps(content), encoding="utf-8")
    refused = {"user_id": ["u1"], "video_id": ["v1"], "at": [5], "reason": ["missing label"]}
    pq.write_table(pa.table(refused), Path(uris["examples"]) / "rejected-0.parquet")
    run = {
        "id": "demo",
        "world": str(world),
        "outcome": "refused",
        "started": 1700000000.0,
        "finished": 1700000095.0,
        "error": "",
        "config": {"name": "demo", "contract": HOSTILE},
        "contract": "{}",
        "models": str(folder / "models"),
        "steps": [
            {"name": "ImpressionExampleGen", "seconds": 12.25, "cached": False, "rows": 1000},
            {"name": "Trainer.ranker", "seconds": 61.0, "cached": True, "rows": None},
        ],
        "artifacts": {"ranker": uris},
        "served_version": {"ranker": ""},
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder
