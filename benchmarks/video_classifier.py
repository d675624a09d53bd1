"""The video classifier: does motion matter, does sound, and what 3D convolution gives on real video.

    python benchmarks/video_classifier.py [--parts motion sound real] [--only-missing] [--quick]

`motion` and `sound` are synthetic (`protocols/clip_sets.py`): classes that differ in nothing else; three seeds. `real`
is the shared `clips/surv-fight` (82 files of two classes), five folds by source file: one is held out, the next one
decides which epoch is best (validation cross-entropy), three are trained on, with the product's augmentation. Every run
is added to `results/video_classifier.json` as soon as it is done, and `results/video_classifier.md` is written anew.
"""

import argparse
import csv
import gc
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it

import numpy as np
import tensorflow as tf
from protocols import clip_sets, table
from protocols.clip_sets import Arrays
from sklearn.metrics import log_loss, precision_score, recall_score
from sklearn.model_selection import StratifiedKFold

from components.clip_example_gen.clip import read_clip
from components.clip_example_gen.sound import LogMel
from trainer.clip_data import Augmentation, augment
from trainer.keras_version import keras
from trainer.video_classifier import Config, build_model
from transform.clip_settings import ClipSettings
from transform.clips import decode_frames, decode_sound

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SHORTLIST_DATA", HERE.parent.parent / "shared" / "data"))
THREADS, FOLDS = 2, 5
MUTE: dict[str, Any] = {"sound_filters": None, "title_width": None, "width": 64, "clusters": 4}
SYNTHETIC = {**MUTE, "filters": (8, 16, 32), "width": 32, "dropout": 0.0}
REAL = {**MUTE, "filters": (16, 32, 64)}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "motion": {"conv3d": SYNTHETIC, "c2d": {**SYNTHETIC, "visual": "c2d"}},
    "sound": {"conv3d": SYNTHETIC, "conv3d + sound": {**SYNTHETIC, "sound_filters": (8, 16, 32)}},
    "real": {
        "c2d": {**REAL, "visual": "c2d"},
        "conv3d": REAL,
        "conv3d + sound": {**REAL, "sound_filters": (8, 16, 32)},
        **{f"conv3d, dropout {rate}": {**REAL, "dropout": rate} for rate in (0.0, 0.25, 0.75)},
    },
}
PRESENCE = "presence of sound alone"
CLIPS = {
    "motion": ClipSettings(frames=16, size=32),
    "sound": ClipSettings(frames=16, size=32, sound_steps=4, mels=16),
    "real": ClipSettings(frames=16, size=64, sound_steps=8, mels=32),
}
AUGMENTATION = Augmentation()
INTRODUCTION = """\
Written by `benchmarks/video_classifier.py`, whose docstring says what is done. Precision and recall are macro over two
classes: mean ± standard deviation over seeds or folds. Times are of a shared machine."""


def main() -> None:
    options = _options()
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    results = table.Results(options.results / "video_classifier.json")
    for part in options.parts:
        split = _folds(options) if part == "real" else partial(_synthetic, part, options)
        for number in range(options.folds) if part == "real" else range(1, options.seeds + 1):
            for name in MODELS[part]:
                if not (options.only_missing and results.has(part, "ours", name, number)):
                    measure = _run(part, name, number, split(number), options)
                    results.add({"protocol": part, "side": "ours", "model": name, "seed": number, **measure})
            if part == "real":
                measure = _presence(split(number))
                results.add({"protocol": part, "side": "ours", "model": PRESENCE, "seed": number, **measure})
            (options.results / "video_classifier.md").write_text("\n".join(_page(results)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="of the synthetic sets")
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the five to run")
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    parser.add_argument("--epochs", type=int, default=40, help="of real video")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to try the script; results go to --work")
    parser.add_argument("--source", type=Path, default=DATA / "clips" / "surv-fight", help="folder with index.csv")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "video_classifier")
    options = parser.parse_args()
    options.results = options.work if options.quick else HERE / "results"
    if options.quick:
        options.epochs, options.seeds, options.folds = 2, 1, 1
    return options


Split = tuple[tuple[Arrays, np.ndarray], ...]


def _synthetic(part: str, options: argparse.Namespace, seed: int) -> Split:
    """Train, validation and held-out clips."""
    clips = CLIPS[part]
    make = partial(clip_sets.moving, frames=clips.frames, size=clips.size)
    if part == "sound":
        make = partial(clip_sets.sounding, **make.keywords, steps=clips.sound_steps, mels=clips.mels)
    counts = (64, 32, 32) if options.quick else (256, 64, 200)
    return tuple(make(10 * seed + i, n) for i, n in enumerate(counts))


def _folds(options: argparse.Namespace) -> Callable[[int], Split]:
    """By number of the fold: train, validation and held-out clips, all decoded once by the product's decoder."""
    with open(options.source / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    labels = np.array([names.index(row["label"]) for row in rows])
    log_mel = LogMel(CLIPS["real"])
    clips = [_decode(str(options.source / row["file"]), log_mel) for row in rows]
    inputs = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    parts = [held for _, held in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels)]

    def split(number: int) -> Split:
        held, valid = parts[number], parts[(number + 1) % FOLDS]
        train = np.setdiff1d(np.arange(len(labels)), np.concatenate([held, valid]))
        return tuple(
            ({name: value[part] for name, value in inputs.items()}, labels[part]) for part in (train, valid, held)
        )

    return split


def _decode(path: str, log_mel: LogMel) -> Arrays:
    settings = CLIPS["real"]
    clip = read_clip(path, settings, with_key_frames=False)
    stored = b"" if clip.windows is None else log_mel(clip.windows)
    sound, present = decode_sound(tf.constant(stored), settings)
    frames = decode_frames(tf.constant(clip.frames), settings)
    return {"frames": frames.numpy(), "sound": sound.numpy(), "has_audio": present.numpy()}


def _augment(batch: Arrays, rng: np.random.Generator) -> Arrays:
    turned = _turned(
        {name: batch[name] for name in ("frames", "sound")}, rng.integers(0, 2**31, (len(batch["frames"]), 2))
    )
    return {**batch, **{name: value.numpy() for name, value in turned.items()}}


@partial(tf.function, autograph=False, reduce_retracing=True)
def _turned(clips: dict[str, tf.Tensor], seeds: tf.Tensor) -> dict[str, tf.Tensor]:
    types = {name: tf.TensorSpec(value.shape[1:], value.dtype) for name, value in clips.items()}
    return tf.map_fn(lambda each: augment(each[0], AUGMENTATION, each[1]), (clips, seeds), fn_output_signature=types)


def _run(part: str, name: str, number: int, split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model, keep the weights of its best epoch, and measure it on the clips it was not trained on."""
    load, config = os.getloadavg()[0], Config.of(MODELS[part][name], "model")
    keras.utils.set_random_seed(number)
    model = build_model(config, CLIPS[part], {"primary_category": 2})
    (inputs, labels), (valid_inputs, valid_labels), (held_inputs, held_labels) = split
    epochs = options.epochs if part == "real" else 2 if options.quick else 8
    rate, batch, augmented = (1e-3, 8, _augment) if part == "real" else (3e-3, 16, None)
    best, measure, weights = math.inf, {}, model.get_weights()
    passes = clip_sets.train(model, config, inputs, labels, epochs, number, batch, rate, augmented)
    for epoch, seconds in enumerate(passes, start=1):
        loss = log_loss(valid_labels, clip_sets.probabilities(model, valid_inputs), labels=[0, 1])
        if loss < best:
            best, weights = loss, model.get_weights()
            measure = {"epoch": epoch, "seconds_to_best": round(seconds, 1), "valid_loss": round(float(loss), 4)}
    model.set_weights(weights)
    measure |= _scores("train", labels, clip_sets.classify(model, inputs))
    measure |= _scores("held_out", held_labels, clip_sets.classify(model, held_inputs))
    measure |= {"ms_per_clip": _inference(model, held_inputs), "parameters": model.count_params()}
    measure |= {"load": round(load, 1), "versions": {"tensorflow": tf.__version__}}
    keras.backend.clear_session()
    gc.collect()
    return measure


def _presence(split: Split) -> dict[str, Any]:
    """What is known by whether a clip has sound at all: of each kind, the class most of the training clips have."""
    (inputs, labels), _, (held_inputs, held_labels) = split
    sounding, held_sounding = (np.asarray(part["has_audio"], int).ravel() for part in (inputs, held_inputs))
    rule = np.array([np.bincount(labels[sounding == kind], minlength=2).argmax() for kind in (0, 1)])
    return {
        **_scores("train", labels, rule[sounding]),
        **_scores("held_out", held_labels, rule[held_sounding]),
        "versions": {"tensorflow": tf.__version__},
    }


def _scores(of: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Macro precision and recall; a class that is never predicted has precision 0."""
    return {
        f"{of}_precision": float(precision_score(labels, predicted, average="macro", zero_division=0)),
        f"{of}_recall": float(recall_score(labels, predicted, average="macro")),
    }


def _inference(model: keras.Model, inputs: Arrays) -> float:
    """Median milliseconds for one clip that is decoded already."""
    clip = {name: tf.constant(inputs[name][:1]) for name in model.input_names}
    answer, times = tf.function(partial(model, training=False), autograph=False), []
    for _ in range(40):
        started = time.perf_counter()
        answer(clip)["probabilities"].numpy()
        times.append(time.perf_counter() - started)
    return round(float(np.median(times[10:]) * 1000), 2)


def _page(results: table.Results) -> list[str]:
    rows = list(results.rows.values())
    machines, versions = {row["machine"] for row in rows}, {row["versions"]["tensorflow"] for row in rows}
    lines = ["# Video classifier benchmark", "", INTRODUCTION, ""]
    lines += [f"Machine: {'; '.join(sorted(machines))}. Versions: tensorflow {', '.join(sorted(versions))}.", ""]
    for part in ("motion", "sound"):
        lines += [f"## Classes that differ in {part} only", "", *_synthetic_table(results, part), ""]
    lines += ["## Real video: surv-fight, 5 folds by source file (the paper's Table 1)", "", *_real_table(results), ""]
    return [*lines, "## Dropout (the paper's Table 2)", "", *_dropout_table(results), ""]


def _synthetic_table(results: table.Results, part: str) -> list[str]:
    lines = ["| model | held-out precision | held-out recall | seeds |", "|---|---|---|---|"]
    for name in MODELS[part]:
        rows = results.of(part, "ours", name)
        if rows:
            lines.append(
                f"| {name} | {_spread(rows, 'held_out_precision')} | {_spread(rows, 'held_out_recall')} | {len(rows)} |"
            )
    return lines


def _real_table(results: table.Results) -> list[str]:
    """Models side by side: the paper's four rows, and recall."""
    columns = {name: results.of("real", "ours", name) for name in ("c2d", "conv3d", "conv3d + sound")}
    lines = [f"| | {' | '.join(columns)} | paper: 2D | paper: 3D |", "|---|---|---|---|---|---|"]
    for title, value, paper in (
        ("training precision", "train_precision", "0.936 | 0.952"),
        ("held-out precision", "held_out_precision", "0.737 | 0.762"),
        ("held-out recall", "held_out_recall", "|"),
        ("seconds of training to the best validation", "seconds_to_best", "1.42 h | 1.03 h"),
        ("inference, ms a clip", "ms_per_clip", "57 | 52"),
    ):
        lines.append(f"| {title} | {' | '.join(_spread(rows, value) for rows in columns.values())} | {paper} |")
    folds = {name: len(rows) for name, rows in columns.items()}
    known = results.of("real", "ours", PRESENCE)
    return [
        *lines,
        "",
        f"Folds run: {folds}. The paper's are of UCF101: the differences compare, not the values. Whether a clip has",
        f"sound at all, and nothing else, gives a held-out precision of {_spread(known, 'held_out_precision')}.",
    ]


def _dropout_table(results: table.Results) -> list[str]:
    paper = {0.0: ".953 / .831", 0.25: ".952 / .846", 0.5: ".971 / .882", 0.75: ".944 / .825"}
    lines = ["| dropout | training precision | held-out precision | paper |", "|---|---|---|---|"]
    for rate, printed in paper.items():
        rows = results.of("real", "ours", "conv3d" if rate == 0.5 else f"conv3d, dropout {rate}")
        lines.append(
            f"| {rate} | {_spread(rows, 'train_precision')} | {_spread(rows, 'held_out_precision')} | {printed} |"
        )
    return lines


def _spread(rows: list[dict[str, Any]], value: str) -> str:
    values = [row[value] for row in rows]
    if len(values) < 2:
        return "".join(f"{value:.3f} (one)" for value in values)
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


if __name__ == "__main__":
    main()
