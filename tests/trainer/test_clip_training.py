"""Clips are decoded, augmented by a seed alone, learned from, resumed exactly, and exported for others to call."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_serving.apis import prediction_log_pb2

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(Path(__file__).parent))

import clip_world  # noqa: E402
from clip_world import SETTINGS, example  # noqa: E402

from trainer.clip_data import Augmentation, ClipSplit, augment, read  # noqa: E402
from trainer.clip_training import ClipTrainingConfig, measure  # noqa: E402
from trainer.video_classifier import run_fn  # noqa: E402
from transform import clips  # noqa: E402
from transform.contract import ContractError  # noqa: E402

INPUTS = ("frames", "sound", "has_audio", "title")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_world.make(tmp_path_factory.mktemp("clips"))


def split(folder: Path, name: str = "train", augmentation: Augmentation | None = None) -> ClipSplit:
    return read([str(folder / name / "*")], SETTINGS, tft.TFTransformOutput(str(folder)), INPUTS, augmentation)


def pixels(batches: tf.data.Dataset) -> np.ndarray:
    return np.concatenate([inputs["frames"].numpy() for inputs, _, _ in batches])


def test_titles_become_words_and_categories_numbers(folder: Path):
    output = tft.TFTransformOutput(str(folder))
    assert [w.decode() for w in output.vocabulary_by_name(clips.PRIMARY_CATEGORY)] == ["warm", "cold"]
    inputs, labels, weight = next(iter(split(folder).in_order(4)))
    words = [w.decode() for w in output.vocabulary_by_name(clips.TITLE)]
    assert [[words[i - 1] for i in row if i] for row in inputs["title"].numpy()] == [
        [],  # clip 0 has no title
        ["a", "clip", "of", "red", "things"],
        ["a", "clip", "of", "blue", "things"],
        ["a", "clip", "of", "blue", "things"],
    ]
    assert labels["primary_category"].numpy().tolist() == [0, 1, 0, 1]
    assert labels["secondary_category"].numpy().tolist() == [-1] * 4
    assert weight.numpy().tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Straße, CAFÉ!", ["strasse", "café"]),
        ("猫が好き 2cats", ["猫", "が", "好", "き", "2", "cats"]),
        ("", []),
        (b"ab\xffcd", ["ab", "cd"]),
    ],
)
def test_title_words_are_case_folded_runs_of_one_script(title: Any, words: list[str]):
    assert [w.decode() for w in clips.title_words(tf.constant([title])).to_list()[0]] == words


def test_the_graph_of_title_words_is_small_for_transform_builds_it_ten_times():
    graph = (
        tf.function(clips.title_words, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.string)).graph
    )
    assert len(graph.get_operations()) < 50  # 1,400 with the tokenizer's offsets


def test_clips_without_a_category_are_not_trained_on_but_an_empty_split_is_one_clear_error(
    folder: Path, tmp_path: Path
):
    assert split(folder).rows == 32  # of 33 records
    clip_world.write(tmp_path / "none" / "examples.gz", [example(1, category=""), example(2, category="unheard of")])
    with pytest.raises(ContractError, match=r"expected clips with a primary category in .*, got 2 clips without"):
        read([str(tmp_path / "none" / "*")], SETTINGS, tft.TFTransformOutput(str(folder)), INPUTS)


def test_class_weights_make_categories_count_alike(folder: Path):
    labels = np.array([0, 0, 0, 1])
    few = ClipSplit((), SETTINGS, tft.TFTransformOutput(str(folder)), labels, labels >= 0, INPUTS)
    weights = few.class_weights(3)
    # 3 and 1 clips: 4 / 3 / 2 and 4 / 1 / 2; a category that does not occur has no say
    assert weights[:2].tolist() == pytest.approx([2 / 3, 2.0])
    assert weights[labels].mean() == pytest.approx(1)


def test_an_epoch_is_a_permutation_whose_augmentation_depends_on_seed_epoch_and_place(folder: Path):
    plain, augmented = split(folder), split(folder, augmentation=Augmentation())
    everything = pixels(plain.in_order(8))
    first = pixels(plain.epochs(1, 2, 8, seed=3, shuffle_rows=99))
    assert sorted(clip.tobytes() for clip in first) == sorted(clip.tobytes() for clip in everything)
    changed = pixels(augmented.epochs(1, 3, 8, seed=3, shuffle_rows=99))
    assert (changed[:32] != first).any(axis=(1, 2, 3, 4)).mean() > 0.8  # some chances leave a clip as it is
    np.testing.assert_array_equal(changed[24:], pixels(augmented.epochs(1, 3, 8, seed=3, shuffle_rows=99, skip=3)))
    assert (changed[:32] != pixels(augmented.epochs(1, 2, 8, seed=4, shuffle_rows=99))).any()


def test_validation_clips_are_not_augmented(folder: Path):
    np.testing.assert_array_equal(
        pixels(split(folder, augmentation=Augmentation()).in_order(8)), pixels(split(folder).in_order(8))
    )


def numbered_clip() -> dict[str, tf.Tensor]:
    """Frame t is t everywhere but for its left half, which is 100 brighter; sound and flow tell t too."""
    frames = np.zeros((4, 16, 16, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    frames[:, :, :8] += 100
    sound = np.zeros((4, 2, 4), np.float32) + np.arange(4)[:, None, None]
    flow = np.broadcast_to([0.5, 0.25], (4, 16, 16, 2))
    return {"frames": tf.constant(frames), "sound": tf.constant(sound), "flow": tf.constant(flow, tf.float32)}


def augmented(seed: int, **settings: Any) -> dict[str, np.ndarray]:
    turned = augment(numbered_clip(), Augmentation(**{"crop": 0, "flip": False, "shift": 0, **settings}), [seed, 0])
    return {name: value.numpy() for name, value in turned.items()}


def test_a_shift_moves_sound_with_the_frames_and_repeats_the_edge():
    orders = {tuple(augmented(seed, shift=1)["frames"][:, 0, 15, 0].tolist()) for seed in range(20)}
    assert orders == {(0, 0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 3)}
    for seed in range(5):
        turned = augmented(seed, shift=1)
        np.testing.assert_array_equal(turned["sound"][:, 0, 0], turned["frames"][:, 0, 15, 0])


def test_a_flip_turns_left_to_right_and_the_flow_with_it():
    flipped = 0
    for seed in range(20):
        turned = augmented(seed, flip=True)
        bright_left = turned["frames"][0, 0, 0, 0] == 100
        assert turned["frames"][0, 0, 15, 0] == (0 if bright_left else 100)
        assert turned["flow"][0, 0, 0].tolist() == [0.5 if bright_left else -0.5, 0.25]
        flipped += not bright_left
    assert 3 < flipped < 17


def test_a_crop_keeps_the_size_and_enlarges_the_flow():
    sides = set()
    for seed in range(20):
        turned = augmented(seed, crop=0.5)
        assert turned["frames"].shape == (4, 16, 16, 3)
        scale = turned["flow"][0, 0, 0, 0] / 0.5
        sides.add(round(16 / scale))
    assert min(sides) > 8
    assert len(sides) > 3
    assert max(sides) == 16


def test_titles_are_hidden_as_often_as_asked_and_only_in_training():
    clip = {**numbered_clip(), clips.TITLE: tf.constant("a title")}
    settings = Augmentation(hide_title=0.5)
    titles = [augment(clip, settings, [seed, 0])[clips.TITLE].numpy() for seed in range(40)]
    assert 10 < titles.count(b"") < 30
    assert set(titles) == {b"", b"a title"}


def test_measures_by_hand():
    # answers 0 0 1 1 for labels 0 1 1 2; class 2 of the labels is never answered, class 3 of the model never occurs
    logits = np.log(np.array([[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]]))
    got = measure(logits, np.array([0, 1, 1, 2]), np.ones(4))
    assert got["accuracy"] == pytest.approx(2 / 4)
    assert got["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert got["recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert got["loss"] == pytest.approx(-(np.log(0.7) * 2 + np.log(0.1) * 2) / 4)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run_fn(clip_world.fn_args(folder, out, class_weights="balanced"))
    return out


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import clip_world
from trainer.training import Progress
from trainer.video_classifier import run_fn
save = Progress.on_train_batch_end
def hang(self, batch, logs=None):
    save(self, batch, logs)
    if self.epoch == 1 and self.steps_done == 2:
        print("killable", flush=True)
        time.sleep(600)
Progress.on_train_batch_end = hang
run_fn(clip_world.fn_args(Path(sys.argv[3]), Path(sys.argv[4]), class_weights="balanced"))
"""


def test_a_killed_training_ends_as_an_uninterrupted_one(trained: Path, folder: Path, tmp_path: Path):
    """Killed at step 2 of 4 of the second epoch, with dropout, augmentation and batch normalisation."""
    command = [sys.executable, "-c", KILLED, str(ROOT), str(Path(__file__).parent), str(folder), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "killable\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run_fn(clip_world.fn_args(folder, tmp_path, class_weights="balanced"))
    whole, resumed = (json.loads((out / "run" / "history.json").read_text()) for out in (trained, tmp_path))
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall"):
        np.testing.assert_allclose([e[name] for e in resumed], [e[name] for e in whole], atol=1e-5)


def test_training_in_16_bits_stays_near_training_in_32(trained: Path, folder: Path, tmp_path: Path):
    run_fn(clip_world.fn_args(folder, tmp_path, class_weights="balanced", mixed_precision="bfloat16"))
    plain, short = (json.loads((out / "run" / "history.json").read_text()) for out in (trained, tmp_path))
    np.testing.assert_allclose([e["loss"] for e in short], [e["loss"] for e in plain], rtol=0.1)
    assert [e["loss"] for e in short] != [e["loss"] for e in plain]


TWO_REPLICAS = """
import sys
from pathlib import Path
import tensorflow as tf
sys.path[:0] = sys.argv[1:3]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import clip_world
from trainer import video_classifier
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
video_classifier.make_strategy = lambda _: strategy
video_classifier.run_fn(clip_world.fn_args(Path(sys.argv[3]), Path(sys.argv[4]), class_weights="balanced"))
"""


@pytest.mark.slow
def test_two_replicas_learn_from_the_clips_of_one(trained: Path, folder: Path, tmp_path: Path):
    """Dropout and batch statistics are each replica's own, so the losses are near, not equal."""
    command = [sys.executable, "-c", TWO_REPLICAS, str(ROOT), str(Path(__file__).parent), str(folder), str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    one, two = (json.loads((out / "run" / "history.json").read_text()) for out in (trained, tmp_path))
    assert len(two) == len(one)
    np.testing.assert_allclose([e["loss"] for e in two], [e["loss"] for e in one], rtol=0.25)
    assert (tmp_path / "model" / "saved_model.pb").is_file()


CALL = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text
assert not {"tensorflow_transform", "trainer", "transform"} & set(sys.modules)
model = tf.saved_model.load(sys.argv[1])
examples = [record.numpy() for record in tf.data.TFRecordDataset(sys.argv[2], "GZIP")]
answers = {}
for name in ("serving_default", "embed"):
    for key, value in model.signatures[name](examples=tf.constant(examples)).items():
        answers[f"{name}.{key}"] = value.numpy()
np.savez(sys.argv[3], **answers)
"""


@pytest.fixture(scope="module")
def answers(trained: Path, folder: Path) -> dict[str, np.ndarray]:
    """What the exported model says of the validation clips, in a process with TensorFlow and tensorflow-text only."""
    out, records = trained / "answers.npz", folder / "valid" / "examples.gz"
    subprocess.run([sys.executable, "-c", CALL, str(trained / "model"), str(records), str(out)], check=True)
    return dict(np.load(out, allow_pickle=True))


def test_serving_default_names_the_class_with_the_highest_probability(answers: dict[str, np.ndarray]):
    probabilities = answers["serving_default.probabilities"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert answers["serving_default.all_classes"].tolist() == [[b"warm", b"cold"]] * 12
    expected = [[b"warm", b"cold"][i] for i in probabilities.argmax(axis=1)]
    assert answers["serving_default.predicted_class"].tolist() == expected


SERVE = """
import sys
from serving.model_server.configuration import Latest, ModelSource
from serving.model_server.models import Models
from tensorflow_serving.apis import model_pb2
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
models = Models([ModelSource("classifier", sys.argv[1], Latest(1))])
models.refresh()
print(models.status(model_pb2.ModelSpec(name="classifier")))
assert not {"tensorflow_transform", "trainer"} & set(sys.modules)
"""


def test_a_model_server_loads_the_classifier_and_answers_its_warm_up_requests_of_real_clips(
    trained: Path, folder: Path, tmp_path: Path
):
    """One request of one clip, and one of eight: the first of the examples that TFX's Trainer was given."""
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "1").symlink_to(trained / "model")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "classifier")]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "classifier version 1: answered 2 warm-up requests" in said
    assert "error=''" in said
    logs = tf.data.TFRecordDataset(str(trained / "model" / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [
        prediction_log_pb2.PredictionLog.FromString(log).predict_log.request for log in logs.as_numpy_iterator()
    ]
    real = [record.numpy() for record in tf.data.TFRecordDataset(str(folder / "valid" / "examples.gz"), "GZIP").take(8)]
    assert [list(request.inputs["examples"].string_val) for request in requests] == [real[:1], real]


def test_embed_gives_vectors_by_video_with_zeros_for_what_is_missing(answers: dict[str, np.ndarray]):
    vectors = {name.removeprefix("embed."): value for name, value in answers.items() if name.startswith("embed.")}
    assert {name: value.shape for name, value in vectors.items()} == {
        "video_id": (12,),
        "visual": (12, 8),
        "audio": (12, 8),
        "text": (12, 8),
        "fused": (12, 8),
        "frame_vectors": (12, 4, 8),
        "frame_attention": (12, 4),
        "frame_times": (12, 4),
    }
    assert vectors["video_id"].tolist() == [f"v{i}".encode() for i in range(40, 52)]
    silent = np.array([i % 3 == 0 for i in range(40, 52)])
    untitled = np.array([i % 5 == 0 for i in range(40, 52)])
    np.testing.assert_array_equal((vectors["audio"] == 0).all(axis=1), silent)
    np.testing.assert_array_equal((vectors["text"] == 0).all(axis=1), untitled)
    assert (vectors["visual"] != 0).any(axis=1).all()
    np.testing.assert_allclose(vectors["frame_attention"].sum(axis=1), 1, atol=1e-5)


def test_unknown_training_keys_are_refused():
    with pytest.raises(ContractError, match=r"training.augmentation.crops: unknown key \(did you mean 'crop'\?\)"):
        ClipTrainingConfig.of({"augmentation": {"crops": 1}}, "training")


@pytest.mark.parametrize("given", [{"crop": 1.0}, {"crop": -0.1}, {"shift": -1}, {"hide_title": 2}])
def test_augmentation_that_makes_no_sense_is_refused(given):
    with pytest.raises(ContractError, match=f"augmentation.{next(iter(given))}"):
        ClipTrainingConfig.of({"augmentation": given}, "training")
