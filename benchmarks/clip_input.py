"""Does reading keep the classifier's training step busy: how long a step waits for its next batch of clips.

    python benchmarks/clip_input.py [--run runs/demo] [--batches 60]

RUN is the folder of a run with a classifier, such as that of `make demo`: its clips, model and training settings are
taken. Measured in one process, after ten batches that are not counted: batches read, decoded and augmented without a
step; the step on one batch again and again; and both as they train. A batch is prepared while the step before it runs,
on the same cores: where there is no accelerator both share them. Results: `results/clip_input.{json,md}`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # before this folder, where `serving` would be a benchmark
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from protocols import table
from protocols.artifacts import newest

from trainer.clip_data import ClipSplit, read
from trainer.clip_training import ClipTrainingConfig
from trainer.keras_version import keras
from trainer.video_classifier import Config, build_model, losses
from transform.clip_settings import ClipSettings
from transform.clips import sizes

HERE = Path(__file__).parent
WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs" / "demo")
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    run = json.loads((options.run / "run.json").read_text())
    given = run["config"]["models"]["video_classifier"]
    training, config = ClipTrainingConfig.of(given["training"], "training"), Config.of(given["model"], "model")
    settings = ClipSettings.model_validate(run["config"]["clips"])
    made = Path(run["artifacts"]["video_classifier"]["model_run"]).parents[2]
    transform = tft.TFTransformOutput(str(newest(made / "Transform.clips" / "transform_graph")))
    model = build_model(config, settings, sizes(transform))
    train = f"{newest(made / 'ClipExampleGen' / 'examples')}/Split-train/*"
    clips = read([train], settings, transform, model.input_names, training.augmentation)
    measured = _measure(clips, model, config, training, options.batches)
    results = table.Results(HERE / "results" / "clip_input.json")
    results.add({"protocol": run["config"]["name"], "side": "ours", "model": "video_classifier", "seed": 0, **measured})
    (HERE / "results" / "clip_input.md").write_text("\n".join(_page(results)))


def _measure(
    clips: ClipSplit, model: keras.Model, config: Config, training: ClipTrainingConfig, batches: int
) -> dict[str, Any]:
    step = _step(model, config, keras.optimizers.Adam(training.learning_rate))
    first = next(iter(_batches(clips, training)))
    of_step = _seconds(lambda batch: step(*batch), iter(lambda: first, None), batches)
    of_reading = _seconds(lambda batch: None, iter(_batches(clips, training)), batches)
    waits: list[float] = []
    both = _seconds(lambda batch: step(*batch), _timed(iter(_batches(clips, training)), waits), batches)
    return {
        "clips": training.batch_size,
        "step_ms": round(1000 * of_step, 1),
        "reading_ms": round(1000 * of_reading, 1),
        "both_ms": round(1000 * both, 1),
        "waiting": round(float(np.mean(waits[WARM_UP:])) / both, 4),
        "shape": f"{clips.settings.frames} x {clips.settings.size} x {clips.settings.size}",
        "tensorflow": tf.__version__,
    }


def _batches(clips: ClipSplit, training: ClipTrainingConfig) -> tf.data.Dataset:
    return clips.epochs(1, 12, training.batch_size, 0, training.shuffle_rows)


def _step(model: keras.Model, config: Config, optimizer: Any) -> Callable[..., tf.Tensor]:
    @tf.function(autograph=False)
    def step(inputs: Any, labels: Any, weights: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = losses(config, inputs, model(inputs, training=True), labels)["loss"]
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def _timed(batches: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    while True:
        started = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - started)
        yield batch


def _seconds(work: Callable[[Any], Any], batches: Iterator[Any], count: int) -> float:
    """Mean of a batch's, the first ones aside."""
    started = 0.0
    for number in range(WARM_UP + count):
        if number == WARM_UP:
            started = time.perf_counter()
        answer = work(next(batches))
        if answer is not None:
            answer.numpy()
    return (time.perf_counter() - started) / count


def _page(results: table.Results) -> list[str]:
    rows = list(results.rows.values())
    lines = ["# Reading clips beside the classifier's training step", ""]
    lines += [
        "Written by `benchmarks/clip_input.py`, whose docstring says how it is measured. Milliseconds a batch.",
        "",
    ]
    lines += [f"Machine: {rows[0]['machine']}. Versions: tensorflow {rows[0]['tensorflow']}.", ""]
    lines += ["| run | clips a batch | frames | reading alone | step alone | both | share of it spent waiting |"]
    lines += ["|---" * 7 + "|"]
    lines += [
        f"| {row['protocol']} | {row['clips']} | {row['shape']} | {row['reading_ms']} | {row['step_ms']} | "
        f"{row['both_ms']} | {row['waiting']:.1%} |"
        for row in rows
    ]
    return [*lines, ""]


if __name__ == "__main__":
    main()
