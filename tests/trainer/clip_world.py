"""Clips small enough for tests: two classes that differ in colour, and what Transform would write about them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import schema_utils

from transform import clips
from transform.clip_settings import ClipSettings

SETTINGS = ClipSettings(frames=4, size=16, sound_steps=2, mels=4)
MODEL = {
    "filters": [4],
    "sound_filters": [2],
    "title_width": 4,
    "width": 8,
    "clusters": 2,
    "dropout": 0.3,
}


def example(index: int, category: str | None = None) -> bytes:
    """Clip `index`: red or blue with noise, every third without sound, every fifth without a title."""
    random = np.random.default_rng(index)
    kind = index % 2
    pixels = random.integers(0, 120, (SETTINGS.frames, SETTINGS.size, SETTINGS.size, 3), np.uint8)
    pixels[..., 2 * kind] += 100
    sound = random.normal(-40, 5, (SETTINGS.frames, SETTINGS.sound_steps, SETTINGS.mels)).astype("<f2").tobytes()
    texts = {
        clips.VIDEO_ID: f"v{index}",
        clips.TITLE: "" if index % 5 == 0 else f"a clip of {('red', 'blue')[index // 2 % 2]} things",
        clips.PRIMARY_CATEGORY: ("warm", "cold")[kind] if category is None else category,
        clips.SECONDARY_CATEGORY: "",
        clips.HAS_AUDIO: "no" if index % 3 == 0 else "yes",
        clips.DURATION_BUCKET: clips.DURATION_BUCKETS[0],
    }
    features = {name: _bytes([value.encode()]) for name, value in texts.items()}
    features[clips.FRAMES] = _bytes([tf.io.encode_jpeg(frame, quality=95).numpy() for frame in pixels])
    features[clips.SOUND] = _bytes([b"" if index % 3 == 0 else sound])
    features[clips.FRAME_TIMES] = tf.train.Feature(float_list=tf.train.FloatList(value=range(SETTINGS.frames)))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _bytes(values: list[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write(path: Path, examples: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for one in examples:
            writer.write(one)


def transformed(folder: Path, examples: list[bytes]) -> tft.TFTransformOutput:
    """Transform's output over some examples."""
    spec = schema_utils.schema_as_feature_spec(clips.raw_schema()).feature_spec
    raw = [{n: v.numpy() for n, v in tf.io.parse_single_example(e, spec).items()} for e in examples]
    metadata = tft.DatasetMetadata(clips.raw_schema())
    with tft_beam.Context(temp_dir=str(folder / "temporary")):
        (_, transformed_metadata), transform_fn = (raw, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: clips.preprocessing_fn(inputs, {})
        )
        transform_fn | tft_beam.WriteTransformFn(str(folder))
        transformed_metadata | tft_beam.WriteMetadata(str(folder / "transformed_metadata"), None)
    return tft.TFTransformOutput(str(folder))


def fn_args(folder: Path, out: Path, **training: Any) -> Any:
    """What TFX's Trainer hands to `run_fn`."""
    return SimpleNamespace(
        train_files=[str(folder / "train" / "*")],
        eval_files=[str(folder / "valid" / "*")],
        raw_files=[str(folder / "valid" / "*")],
        transform_graph_path=str(folder),
        serving_model_dir=str(out / "model"),
        model_run_dir=str(out / "run"),
        custom_config={
            "clips": SETTINGS.to_json(),
            "model": MODEL,
            "training": {"batch_size": 8, "epochs": 2, "patience": 9, "checkpoint_steps": 2, **training},
            "checkpoint_dir": str(out / "checkpoints"),
        },
    )


def make(folder: Path) -> Path:
    """A folder with train and valid examples and the transform graph: what a pipeline leaves behind."""
    train = [example(index) for index in range(32)]
    write(folder / "train" / "examples.gz", [*train, example(32, category="")])
    write(folder / "valid" / "examples.gz", [example(index) for index in range(40, 52)])
    transformed(folder, train)
    return folder
