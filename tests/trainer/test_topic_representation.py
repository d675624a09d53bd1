"""The topic representation: its mixture, what is absent, its losses, and the way from examples to a SavedModel."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from scipy.special import expit, log_softmax, softmax
from tensorflow_transform.tf_metadata import schema_utils

from trainer.keras_version import keras
from trainer.layers.mmoe import MixtureOfExperts
from trainer.topic_data import read
from trainer.topic_representation import Config, build_model, export, hits, losses, measure, run_fn
from transform import videos
from transform.clips import title_words
from transform.contract import ContractError

SIZES = {"title": 12, "primary_category": 3, "secondary_category": 4, "tags": 5}
CLASSES = [3, 4, 5]
SMALL: dict[str, Any] = {"cover_size": 8, "cover_filters": [4], "title_width": 8, "title_heads": 2, "expert_units": 6}


def config(**changes: Any) -> Config:
    return Config.of({**SMALL, **changes}, "model")


def build(settings: Config) -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_model(settings, SIZES)


def some(n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "cover": rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "has_cover": np.ones(n, bool),
        "title": rng.integers(1, 12, (n, 5)),
    }


def answer(model: keras.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = model({name: tf.constant(inputs[name]) for name in model.input_names}, training=False)
    return {name: value.numpy() for name, value in out.items()}


@pytest.mark.parametrize(("experts", "tasks"), [(1, 1), (12, 3)])
def test_mixture_of_experts_is_equation_1(experts: int, tasks: int):
    layer = MixtureOfExperts(experts, 4, tasks)
    z = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    got = layer(z).numpy()
    layer.bias.assign(np.random.default_rng(1).normal(size=layer.bias.shape))
    got = layer(z).numpy()
    kernel, bias, gates = layer.kernel.numpy(), layer.bias.numpy(), layer.gates.numpy()
    for k in range(tasks):
        gate = softmax(z @ gates[:, k * experts : (k + 1) * experts], axis=1)
        assert (gate > 0).all()
        want = np.zeros((5, 4))
        for i in range(experts):
            units = slice(4 * i, 4 * (i + 1))
            want += gate[:, i : i + 1] * np.maximum(z @ kernel[:, units] + bias[units], 0)
        np.testing.assert_allclose(got[:, k], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("我爱iPhone手机 #Best价", ["我", "爱", "iphone", "手", "机", "best", "价"]),
        ("Rock&Roll 摇滚", ["rock", "roll", "摇", "滚"]),
        ("🔥🔥", []),
    ],
)
def test_mixed_chinese_and_english_become_characters_and_words(title: str, words: list[str]):
    assert [w.decode() for w in title_words(tf.constant([title])).to_list()[0]] == words


@pytest.mark.parametrize("absent", ["cover", "title"])
def test_outputs_have_the_promised_shapes_for_any_subset(absent: str):
    for settings, width in ((config(), 4 + 8), (config(**{absent: None}), 12 - {"cover": 4, "title": 8}[absent])):
        model = build(settings)
        got = answer(model, some())
        shapes = {name: value.shape for name, value in got.items()}
        assert shapes == {"z": (3, width), "primary": (3, 3), "secondary": (3, 4), "tags": (3, 5)}
        np.testing.assert_allclose(got["primary"].sum(axis=1), 1, rtol=1e-5)
        assert absent in build(config()).input_names
    assert not any(absent in name for name in model.input_names)


def test_what_lies_behind_a_missing_cover_or_title_does_not_matter():
    model = build(config())
    plain = some()
    for missing in ("cover", "title"):
        one, other = dict(plain), dict(plain)
        if missing == "cover":
            one["has_cover"] = other["has_cover"] = np.zeros(3, bool)
            other["cover"] = 255 - plain["cover"]
        else:
            one["title"], other["title"] = np.zeros((3, 5), np.int64), np.zeros((3, 1), np.int64)
        left, right = answer(model, one), answer(model, other)
        for name, value in left.items():
            np.testing.assert_allclose(value, right[name], rtol=1e-5, atol=1e-6, err_msg=f"{missing} {name}")
        part = left["z"][:, :4] if missing == "cover" else left["z"][:, 4:]
        assert (part == 0).all()
        assert (left["z"] != 0).any()


def test_a_padded_title_and_a_short_one_are_the_same_and_order_matters():
    model, plain = build(config(cover=None)), some()
    padded = {**plain, "title": np.pad(plain["title"], ((0, 0), (0, 7)))}
    np.testing.assert_allclose(answer(model, padded)["z"], answer(model, plain)["z"], rtol=1e-4, atol=1e-5)
    turned = {**plain, "title": plain["title"][:, ::-1]}
    assert np.abs(answer(model, turned)["z"] - answer(model, plain)["z"]).max() > 1e-3


LOGITS = np.random.default_rng(5).normal(size=(3, 12)).astype(np.float32)
# video 0 has all labels and the tags 2 and 5; video 1 no secondary category and no tags; video 2 tag 1 alone
LABELS = np.array([[1, 3, 2, 5, 0], [0, -1, 0, 0, 0], [-1, -1, 1, 0, 0]])


def test_losses_are_of_the_known_labels_alone():
    got = {task: float(loss) for task, loss in losses(tf.constant(LOGITS), tf.constant(LABELS), CLASSES).items()}
    primary, secondary, tags = np.split(LOGITS.astype(np.float64), [3, 7], axis=1)
    want_tags = np.zeros(3)
    for row, mine in ((0, {1, 4}), (2, {0})):
        for tag in range(5):
            p = expit(tags[row, tag])
            want_tags[row] -= np.log(p if tag in mine else 1 - p)
    assert got == {
        "primary": pytest.approx(-(log_softmax(primary[0])[1] + log_softmax(primary[1])[0]) / 2, rel=1e-5),
        "secondary": pytest.approx(-log_softmax(secondary[0])[3], rel=1e-5),
        "tags": pytest.approx((want_tags[0] + want_tags[2]) / 2, rel=1e-5),
    }


def test_hits_are_the_likeliest_class_and_any_tag_of_the_video():
    logits = np.zeros((3, 12), np.float32)
    logits[0, [1, 3 + 2, 7 + 4]] = 1  # primary right, secondary wrong, the fifth tag is one of the video's
    logits[1, [2, 3, 7]] = 1  # primary wrong; the rest is unknown, even where 0 is what padding says
    logits[2, [0, 3, 7 + 1]] = 1  # the second tag is not the video's
    right, known = hits(tf.constant(logits), tf.constant(LABELS), CLASSES)
    assert known.numpy().tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert right.numpy().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    got = measure(config(weights=(1.0, 0.5, 0.1)), CLASSES, logits.astype(np.float64), LABELS, np.ones(3))
    assert (got["primary_hits"], got["secondary_hits"], got["tags_hits"]) == (0.5, 0.0, 0.5)
    assert got["score"] == pytest.approx(1 / 3)
    want = got["primary_loss"] + 0.5 * got["secondary_loss"] + 0.1 * got["tags_loss"]
    assert got["loss"] == pytest.approx(want, rel=1e-6)


def test_tags_are_rare_before_training():
    tags = answer(build(config()), some())["tags"]
    np.testing.assert_allclose(tags.mean(), 1 / SIZES["tags"], atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cover": None, "title": None}, "a cover encoder, a title encoder, or both"),
        ({"title": "bert"}, "needs `bert` with folder and vocabulary"),
        ({"cover": "inception_resnet_v2"}, "cover_size of at least 75"),
        ({"cover_weights": "x.h5"}, "are of `cover: inception_resnet_v2`"),
        ({"title_width": 9}, "multiple of title_heads"),
        ({"cover_sise": 9}, "did you mean .?cover_size"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ContractError, match=message):
        config(**changes)


def stand_in() -> keras.Model:
    """Shaped as a published BERT, whose pooled output is the mean over the pieces' numbers, and how many there are."""
    named = ("input_word_ids", "input_mask", "input_type_ids")
    inputs = {name: keras.Input([None], dtype="int32", name=name) for name in named}
    table = keras.initializers.Constant(np.arange(24.0)[:, np.newaxis] * np.ones([1, 3]))
    rows = keras.layers.Embedding(24, 3, table, name="word_embeddings")(inputs[named[0]] + inputs[named[2]])
    there = tf.cast(inputs["input_mask"], tf.float32)
    count = tf.reduce_sum(there, axis=1, keepdims=True)
    mean = tf.reduce_sum(rows * there[:, :, tf.newaxis], axis=1) / count
    return keras.Model(
        inputs, {"sequence_output": rows, "pooled_output": tf.concat([mean, count], axis=1)}, name="bert"
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bert")
    stand_in().save(str(folder / "encoder"), save_format="tf")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "我", "爱", "cats"]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    return {"folder": str(folder / "encoder"), "vocabulary": str(folder / "vocab.txt")}


def test_a_published_bert_is_read_from_its_saved_model_and_tokenises_in_the_graph(bert: dict[str, str]):
    model = build(config(cover=None, title="bert", bert={**bert, "tuned": False}))
    got = answer(model, {"title_text": np.array([b"Playing \xe6\x88\x91\xe7\x88\xb1cats!", b""])})["z"]
    # [CLS] play ##ing 我 爱 + unknown "cats!" pieces: cats, "!" = [UNK], [SEP]: (2+4+5+6+7+8+1+3) / 8 = 4.5, 8 pieces;
    # brought to mean 0 and variance 1: (4.5, 4.5, 4.5, 8) - 5.375 over its deviation 1.5155.
    np.testing.assert_allclose(got[0], [-0.5772] * 3 + [1.7315], atol=2e-3)
    assert (got[1] == 0).all()


def test_an_encoder_that_is_not_there_is_one_clear_error(bert: dict[str, str], tmp_path: Path):
    with pytest.raises(ContractError, match=r"model\.bert: expected an encoder and its vocabulary, got "):
        build(config(cover=None, title="bert", bert={**bert, "folder": str(tmp_path / "none")}))
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]")
    for wrong in ({"folder": str(tmp_path / "other")}, {"vocabulary": str(tmp_path / "vocab.txt")}):
        with pytest.raises(ContractError, match=r"model\.bert: expected an encoder and its vocabulary, got "):
            build(config(cover=None, title="bert", bert={**bert, **wrong}))


def test_a_tuned_bert_is_trained_and_one_that_is_not_stays(bert: dict[str, str]):
    for tuned in (True, False):
        model = build(config(cover=None, title="bert", bert={**bert, "tuned": tuned}))
        assert ("word_embeddings" in " ".join(v.name for v in model.trainable_variables)) == tuned


def test_inception_resnet_v2_encodes_covers():
    network = build(config(cover="inception_resnet_v2", cover_size=75, title=None))
    assert network.output["z"].shape == (None, 1536)
    with pytest.raises(ContractError, match="expected weights of Inception-ResNet-v2 without top"):
        build(config(cover="inception_resnet_v2", cover_size=75, cover_weights="/none.h5", title=None))


def example(index: int, labelled: bool = True) -> bytes:
    """Video `index`: red covers are of one category, words tell the other; every fifth has neither cover nor tags."""
    kind, word = index % 2, index // 2 % 2
    pixels = np.full((8, 8, 3), 60, np.uint8)
    pixels[..., 2 * kind] = 200
    values = {
        "video_id": [f"v{index}"],
        "title": ["" if index % 7 == 6 else f"{('狗跑', 'cats play')[word]} here"],
        "primary_category": [("warm", "cold")[kind] if labelled else ""],
        "secondary_category": [("dogs", "cats")[word] if labelled else ""],
        "tags": ["shown", ("dog", "cat")[word]] if index % 5 and labelled else [],
    }
    features = {n: _bytes([text.encode() for text in texts]) for n, texts in values.items()}
    features["cover"] = _bytes([tf.io.encode_jpeg(pixels).numpy() if index % 5 else b""])
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _bytes(values: list[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write(path: Path, examples: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for one in examples:
            writer.write(one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and valid examples and the transform graph: what a pipeline leaves behind."""
    root = tmp_path_factory.mktemp("videos")
    train = [*(example(i) for i in range(40)), example(40, labelled=False)]
    write(root / "train" / "examples.gz", train)
    write(root / "valid" / "examples.gz", [example(i) for i in range(50, 70)])
    metadata = tft.DatasetMetadata(videos.raw_schema())
    spec = schema_utils.schema_as_feature_spec(videos.raw_schema()).feature_spec
    raw = [tf.io.parse_single_example(one, spec) for one in train]
    rows = [{n: v.values.numpy() if isinstance(v, tf.SparseTensor) else v.numpy() for n, v in r.items()} for r in raw]
    with tft_beam.Context(temp_dir=str(root / "temporary")):
        (_, transformed), transform_fn = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: videos.preprocessing_fn(inputs, {})
        )
        transform_fn | tft_beam.WriteTransformFn(str(root))
        transformed | tft_beam.WriteMetadata(str(root / "transformed_metadata"), None)
    return root


def fn_args(folder: Path, out: Path) -> Any:
    return SimpleNamespace(
        train_files=[str(folder / "train" / "*")],
        eval_files=[str(folder / "valid" / "*")],
        transform_graph_path=str(folder),
        serving_model_dir=str(out / "model"),
        model_run_dir=str(out / "run"),
        custom_config={
            "model": {**SMALL, "dropout": 0.0},
            "training": {"batch_size": 10, "epochs": 8, "patience": 8, "learning_rate": 0.02},
            "checkpoint_dir": str(out / "checkpoints"),
        },
    )


def test_labels_are_numbers_tags_in_order_and_unlabelled_videos_are_left_out(folder: Path):
    output = tft.TFTransformOutput(str(folder))
    assert videos.sizes(output) == {"title": 5 + 2, "primary_category": 2, "secondary_category": 2, "tags": 3}
    split = read([str(folder / "train" / "*")], output, ("title", "cover", "has_cover"), 8)
    assert split.rows == 40
    tags = [t.decode() for t in output.vocabulary_by_name("tags")]
    assert [tags[i - 1] for i in split.labels[1, 2:] if i] == ["shown", "dog"]
    assert split.labels[5, 2:].tolist() == [0] * videos.TAGS_LEARNED
    inputs, labels, _ = next(iter(split.in_order(7)))
    np.testing.assert_array_equal(labels.numpy(), split.labels[:7])
    assert inputs["has_cover"].numpy().tolist() == [False, True, True, True, True, False, True]
    words = [w.decode() for w in output.vocabulary_by_name("title")]
    titles = [[words[i - 1] for i in row if i] for row in inputs["title"].numpy()]
    assert titles[:3] == [["狗", "跑", "here"]] * 2 + [["cats", "play", "here"]]
    assert titles[6] == []
    first, again = ([x["cover"].numpy() for x, _, _ in split.epochs(0, 2, 10, seed=3, shuffle_rows=50)] for _ in "ab")
    np.testing.assert_array_equal(first, again)
    skipped = [x["cover"].numpy() for x, _, _ in split.epochs(0, 2, 10, seed=3, shuffle_rows=50, skip=3)]
    np.testing.assert_array_equal(first[3:], skipped)


def test_training_learns_what_covers_and_titles_tell_and_the_export_embeds_alike(folder: Path, tmp_path: Path):
    run_fn(fn_args(folder, tmp_path))
    best = max(json.loads((tmp_path / "run" / "history.json").read_text()), key=lambda entry: entry["val_score"])
    # Of 20 videos, 4 have no cover, so that their primary category cannot be told; 3 have no title.
    assert best["val_primary_hits"] >= 0.8
    assert best["val_secondary_hits"] >= 0.8
    assert best["val_tags_hits"] == 1.0
    served = tf.saved_model.load(str(tmp_path / "model"))
    assert set(served.signatures) == {"serving_default", "embed"}
    examples = tf.constant([example(i) for i in (51, 52, 55, 90)])
    embedded = served.signatures["embed"](examples=examples)
    assert [v.decode() for v in embedded["video_id"].numpy()] == ["v51", "v52", "v55", "v90"]
    z = embedded["z"].numpy()
    assert (z[2, :4] == 0).all()  # no cover
    assert (z[3] == 0).all()  # 90 has neither: its title is missing too
    alone = served.signatures["embed"](examples=examples[1:2])["z"].numpy()
    np.testing.assert_allclose(z[1:2], alone, rtol=1e-4, atol=1e-5)
    judged = served.signatures["serving_default"](examples=examples)
    assert judged["tags_known"].numpy().tolist() == [1, 1, 0, 0]
    assert judged["primary_known"].numpy().tolist() == [1, 1, 1, 1]
    primary = judged["primary"].numpy().argmax(axis=1)
    names = tft.TFTransformOutput(str(folder)).vocabulary_by_name("primary_category")
    right = [names[p].decode() == ("warm", "cold")[i % 2] for p, i in zip(primary, (51, 52, 55, 90), strict=True)]
    assert judged["primary_hit"].numpy().tolist() == right


def test_an_export_takes_the_published_bert_and_its_vocabulary_with_it(
    folder: Path, tmp_path: Path, bert: dict[str, str]
):
    settings = config(cover=None, title="bert", bert=bert)
    output = tft.TFTransformOutput(str(folder))
    model = build_model(settings, videos.sizes(output))
    assert any(variable.shape == (24, 3) for variable in model.trainable_variables)  # tuned
    export(model, settings, output, str(tmp_path))
    served = tf.saved_model.load(str(tmp_path))
    z = served.signatures["embed"](examples=tf.constant([example(50), example(55)]))["z"].numpy()
    want = model({"title_text": tf.constant(["cats play here", ""])})["z"].numpy()
    np.testing.assert_allclose(z, want, rtol=1e-5)
    assert want[0].any()
    assert not want[1].any()


def test_videos_without_any_label_are_one_clear_error(folder: Path, tmp_path: Path):
    write(tmp_path / "none" / "examples.gz", [example(1, labelled=False)])
    with pytest.raises(ContractError, match=r"expected videos with a category or tags in .*, got 1 videos without"):
        read([str(tmp_path / "none" / "*")], tft.TFTransformOutput(str(folder)), ("title",), 8)
