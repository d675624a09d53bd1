"""JIFR: its equations against NumPy, what a new video and a missing frame leave of them, BPR, and what is exported."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer import jifr, jifr_export
from trainer.data import Split
from trainer.jifr import RATED, Config, Jifr, Triples, build_scorer, measure, objective
from trainer.jifr_export import Opened, rebuild
from trainer.layers.pair_scorer import Shape, Shown
from trainer.training import resumable_folder
from transform import frames as frame_examples
from transform.contract import ContractError

SMALL = {"width": 3, "visual_width": 3, "attention_units": 4, "negatives": 2}
USERS, VIDEOS, FRAMES, WIDTH = 4, 6, 3, 5
RANDOM = np.random.default_rng(0)


def shape(history: str | None = "history") -> Shape:
    frames = RANDOM.normal(size=(VIDEOS, FRAMES, WIDTH)).astype(np.float32)
    mask = np.ones((VIDEOS, FRAMES), np.float32)
    mask[2, 1:], mask[3], mask[0] = 0, 0, 0  # video 2 has one frame, video 3 none
    met_users, met_videos = np.ones(USERS, bool), np.ones(VIDEOS, bool)
    return Shape(
        USERS,
        VIDEOS,
        "user_id",
        history,
        frames * mask[:, :, None],
        mask,
        met_users,
        met_videos,
        ("user_id", "video_id"),
    )


def shown(of: Shape, ids: list[int], known: list[float]) -> Shown:
    return Shown(tf.constant(ids, tf.int64), tf.constant(known), tf.constant(of.frames[ids]), tf.constant(of.mask[ids]))


def scored(scorer: Any, of: Shape, users: list[int], videos: Shown, history: tuple[int, ...] = (1, 2, 0)) -> np.ndarray:
    """Every user with every video."""
    inputs = {"user_id": tf.constant(users, tf.int64), "history": tf.constant([history] * len(users), tf.int64)}
    which = tf.repeat(tf.range(len(videos.ids))[tf.newaxis], len(users), axis=0)
    return np.asarray(scorer(inputs, videos, which, 0.0)["scores"])


def spread(scorer: Any, of: Shape) -> None:
    """Weights large enough to tell one equation from another."""
    scored(scorer, of, [1], shown(of, [1], [1.0]))
    for weight in scorer.trainable_weights:
        weight.assign(RANDOM.normal(size=weight.shape))


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values - values.max()) / np.exp(values - values.max()).sum()


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("rating", [True, False])
def test_scores_are_those_of_the_equations(content: bool, rating: bool):
    of = shape()
    scorer = Jifr(Config(**SMALL, content_attention=content, rating_attention=rating), of)
    spread(scorer, of)
    u, v, w, p = (
        np.asarray(table) for table in (scorer.user_table.embeddings, scorer.video_table.embeddings,
                                scorer.visual_table.embeddings, scorer.project.kernel)
    )  # fmt: skip
    got = scored(scorer, of, [1, 3], shown(of, [1, 2], [1.0, 1.0]))
    for row, user in enumerate((1, 3)):
        for column, video in enumerate((1, 2)):
            frames = of.frames[video][of.mask[video] > 0]
            alpha = np.full(len(frames), 1 / len(frames))
            if content:  # eq. 6-7
                reduced = frames @ np.asarray(scorer.reduce.kernel)
                hidden = v[video] @ np.asarray(scorer.content.first.kernel)
                hidden = np.maximum(hidden + reduced @ np.asarray(scorer.content.second.kernel), 0)
                alpha = softmax((hidden @ np.asarray(scorer.content.weigh.kernel))[:, 0])
            x = alpha @ (frames @ p)  # eq. 5, or eq. 1
            products = np.array([u[user] @ v[video], w[user] @ x])
            expected = products.sum()  # eq. 2
            if rating:  # eq. 8-10
                pairs = ((u[user], v[video]), (w[user], x))
                first, second = np.asarray(scorer.rating.first.kernel), np.asarray(scorer.rating.second.kernel)
                hidden = np.stack([np.maximum(a @ first + b @ second, 0) for a, b in pairs])
                expected = softmax((hidden @ np.asarray(scorer.rating.weigh.kernel))[:, 0]) @ products
            assert got[row, column] == pytest.approx(expected, abs=1e-5)
    videos = scorer.videos(shown(of, [1], [1.0]))
    liked = scorer.look({"w": tf.constant(w[[3]])}, videos["looks"])
    telling = np.log(videos["alpha"][0] + 1e-6)  # the same for all frames without content attention
    np.testing.assert_allclose(liked[0], of.frames[1] @ p @ w[3] + telling, atol=1e-5)  # eq. 4
    scorer.attended_frames = False
    printed = scorer.look({"w": tf.constant(w[[3]])}, scorer.videos(shown(of, [1], [1.0]))["looks"])
    np.testing.assert_allclose(printed[0], of.frames[1] @ p @ w[3], atol=1e-5)  # eq. 4 as printed


@pytest.mark.parametrize(
    ("architecture", "matrices"),
    [("jifr", "P W0"), ("vbpr", "E visual_bias"), ("vpoi", "Q P"), ("cdl", "hidden project")],
)
def test_matrices_of_pictures_are_penalised(architecture: str, matrices: str):
    of = shape()
    config = Config(**SMALL, architecture=architecture, projection_l2=0.5)
    scorer = {"jifr": Jifr, **jifr.BASELINES}[architecture](config, of)
    spread(scorer, of)
    named = {layer.name: np.asarray(layer.kernel) for layer in scorer.submodules if hasattr(layer, "kernel")}
    expected = 0.5 * sum((named[name] ** 2).sum() for name in matrices.split())
    scored(scorer, of, [1], shown(of, [1], [1.0]))
    assert float(sum(scorer.losses)) == pytest.approx(expected, rel=1e-5)


def test_a_new_video_is_judged_by_its_looks_and_one_without_frames_by_who_opened_it():
    of = shape()
    scorer = Jifr(Config(**SMALL), of)
    spread(scorer, of)
    u, v, w = (np.asarray(t.embeddings) for t in (scorer.user_table, scorer.video_table, scorer.visual_table))
    new, blind, neither = shown(of, [1], [0.0]), shown(of, [3], [1.0]), shown(of, [3], [0.0])
    x = np.asarray(scorer.videos(new)["x"])[0]
    assert scored(scorer, of, [2], new)[0, 0] == pytest.approx(w[2] @ x, abs=1e-5)
    assert scored(scorer, of, [2], blind)[0, 0] == pytest.approx(u[2] @ v[3], abs=1e-5)
    assert scored(scorer, of, [2], neither)[0, 0] == 0


@pytest.mark.parametrize("architecture", ["jifr", *jifr.BASELINES])
def test_missing_frames_count_for_nothing(architecture: str):
    of = shape()
    scorer = build_scorer(Config(**SMALL, architecture=architecture), of)
    spread(scorer, of)
    long = shown(of, [2], [1.0])
    short = Shown(long.ids, long.known, long.frames[:, :1], long.mask[:, :1])
    np.testing.assert_allclose(scored(scorer, of, [1, 2], long), scored(scorer, of, [1, 2], short), rtol=1e-5)


def test_the_baselines_score_as_their_papers_say():
    of = shape()
    config = Config(**SMALL)
    both = shown(of, [1, 4], [1.0, 1.0])
    mean = of.frames[[1, 4]].mean(axis=1)
    bpr, vbpr, cdl = (jifr.BASELINES[name](config, of) for name in ("bpr", "vbpr", "cdl"))
    for scorer in (bpr, vbpr, cdl):
        spread(scorer, of)

    def tables(scorer: Any) -> tuple[np.ndarray, np.ndarray]:
        u, v = scorer.user_table.embeddings.numpy(), scorer.video_table.embeddings.numpy()
        return u[2], scorer.bias_table.embeddings.numpy()[[1, 4], 0] + v[[1, 4]] @ u[2]

    np.testing.assert_allclose(scored(bpr, of, [2], both)[0], tables(bpr)[1], atol=1e-5)
    w = vbpr.visual_table.embeddings.numpy()[2]
    sight = mean @ vbpr.project.kernel.numpy() @ w + (mean @ vbpr.everyone.kernel.numpy())[:, 0]
    np.testing.assert_allclose(scored(vbpr, of, [2], both)[0], tables(vbpr)[1] + sight, atol=1e-5)
    hidden = np.maximum(of.frames[[1, 4]] @ cdl.hidden.kernel.numpy() + cdl.hidden.bias.numpy(), 0)
    x = (hidden @ cdl.project.kernel.numpy()).mean(axis=1)
    distance = ((cdl.user_table.embeddings.numpy()[2] - x) ** 2).sum(axis=1)
    np.testing.assert_allclose(scored(cdl, of, [2], both)[0], -distance, atol=1e-4)


def relu_attention(attention: Any, user: np.ndarray, other: np.ndarray) -> float:
    """w relu(W_u u + W_x x + b), before the softmax."""
    hidden = user @ attention.of_user.kernel.numpy() + other @ attention.of_other.kernel.numpy()
    hidden = np.maximum(hidden + attention.of_other.bias.numpy(), 0)
    return float((hidden @ attention.weigh.kernel.numpy())[0])


@pytest.mark.parametrize("watched", [(1, 2, 0), (4, 0, 0), (3, 5, 2), (0, 0, 0)])
def test_acf_scores_a_user_who_is_also_what_was_watched(watched: tuple[int, ...]):
    """Chen et al. 2017: score eq. 5, items weighed by eq. 6-7, frames by eq. 9-11; 0 is padding, 3 has no frame."""
    of = shape()
    acf = jifr.BASELINES["acf"](Config(**SMALL), of)
    spread(acf, of)
    u, v, p = (t.embeddings.numpy() for t in (acf.user_table, acf.video_table, acf.auxiliary))
    bias = acf.bias_table.embeddings.numpy()[:, 0]
    got = scored(acf, of, [1, 3], shown(of, [1, 4], [1.0, 1.0]), watched)
    for row, user in enumerate((1, 3)):
        weights, items = [], [item for item in watched if item]
        for item in items:
            frames, content = of.frames[item][of.mask[item] > 0], np.zeros(WIDTH)
            if len(frames):  # eq. 9-11
                content = softmax(np.array([relu_attention(acf.component, u[user], c) for c in frames])) @ frames
            weights.append(relu_attention(acf.item, u[user], np.concatenate([v[item], p[item], content])))  # eq. 6
        own = u[user] + (softmax(np.array(weights)) @ p[items] if items else 0)  # eq. 7, and 5 in brackets
        np.testing.assert_allclose(got[row], bias[[1, 4]] + v[[1, 4]] @ own, atol=1e-4)


def test_vpoi_scores_without_pictures_which_count_by_the_loss_alone():
    """Wang et al. 2017, eq. 5-8: whose pictures are whose is told by Q among users, by P among videos."""
    of = shape()
    vpoi = jifr.BASELINES["vpoi"](Config(**SMALL, picture_weight=0.3), of)
    spread(vpoi, of)
    u, v = vpoi.user_table.embeddings.numpy(), vpoi.video_table.embeddings.numpy()
    bias, ids = vpoi.bias_table.embeddings.numpy()[:, 0], [1, 4, 2]
    got = scored(vpoi, of, [2], shown(of, ids, [1.0] * 3))[0]
    np.testing.assert_allclose(got, bias[ids] + v[ids] @ u[2], atol=1e-5)

    pictures = np.stack([of.frames[i][of.mask[i] > 0].mean(axis=0) for i in ids])  # the first is the positive one's
    of_user = pictures @ vpoi.of_users.kernel.numpy() @ u[2]
    of_video = pictures @ vpoi.of_videos.kernel.numpy() @ v[ids[0]]
    worse = sum(np.mean([np.log1p(np.exp(told[n] - told[0])) for n in (1, 2)]) for told in (of_user, of_video))
    square = {i: v[i] @ v[i] + bias[i] ** 2 for i in ids}
    l2 = u[2] @ u[2] + square[1] + (square[4] + square[2]) / 2
    inputs, which = {"user_id": tf.constant([2], tf.int64)}, tf.constant([[0, 1, 2]])
    penalty = vpoi(inputs, shown(of, ids, [1.0] * 3), which, 0.1)["penalty"]
    np.testing.assert_allclose(penalty, [0.1 * l2 + 0.3 * worse], rtol=1e-4)

    liked = vpoi.look({"u": tf.constant(u[[2]])}, vpoi.videos(shown(of, [1], [1.0]))["looks"])
    np.testing.assert_allclose(liked[0], of.frames[1] @ vpoi.of_users.kernel.numpy() @ u[2], atol=1e-5)


def test_loss_by_hand():
    # Margins of the first row: 1 and 3; of the second: -1, and a video that was opened, which counts for nothing. The
    # third was not opened. ln(1 + e^-1) = .31326, ln(1 + e^-3) = .04859, ln(1 + e^1) = 1.31326.
    scores = tf.constant([[2.0, 1.0, -1.0], [0.0, 1.0, RATED], [9.0, 0.0, 0.0]])
    outputs = {"logits": scores, "penalty": tf.constant([0.5, 0.1, 7.0])}
    label, weight = tf.constant([1.0, 1.0, 0.0]), tf.constant([1.0, 3.0, 1.0])
    first, second = (0.31326 + 0.04859) / 2 + 0.5, 1.31326 + 0.1
    loss = objective().loss({}, outputs, label, weight)
    np.testing.assert_allclose(loss, (first + 3 * second) / 4, rtol=1e-4)
    measured = measure(scores.numpy(), label.numpy(), weight.numpy())
    assert measured["auc"] == pytest.approx((1 * 1 + 3 * 0) / 4)
    assert measured["loss"] == pytest.approx(((0.31326 + 0.04859) / 2 + 3 * 1.31326) / 4, rel=1e-4)
    assert np.isnan(measure(scores.numpy(), 0 * label.numpy(), weight.numpy())["auc"])


def test_the_penalty_is_on_the_free_vectors_of_a_triple():
    of = shape()
    scorer = Jifr(Config(**SMALL), of)
    spread(scorer, of)
    tables = (scorer.user_table, scorer.visual_table, scorer.video_table)
    u, w, v = (np.square(t.embeddings.numpy()).sum(axis=1) for t in tables)
    got = scorer(
        {"user_id": tf.constant([1], tf.int64)}, shown(of, [1, 2, 4], [1.0] * 3), tf.constant([[0, 1, 2]]), 0.1
    )
    np.testing.assert_allclose(got["penalty"], [0.1 * (u[1] + w[1] + v[1] + (v[2] + v[4]) / 2)], rtol=1e-5)


def test_negatives_are_of_the_train_split_and_opened_ones_are_marked():
    of = shape()
    opened = Opened(np.array([1, 1, 1, 2]), np.array([1, 2, 4, 1]))
    triples = Triples(
        Jifr(Config(**{**SMALL, "negatives": 400}), of),
        Config(**{**SMALL, "negatives": 400}),
        of,
        opened,
        "video_id",
    )
    inputs = {"user_id": tf.constant([1, 2], tf.int64), "video_id": tf.constant([1, 1], tf.int64)}
    scores = triples(inputs)["scores"].numpy()
    assert (scores[:, 0] != RATED).all()
    assert (scores[0, 1:] == RATED).all()  # user 1 has opened all there is
    share = (scores[1, 1:] == RATED).mean()  # user 2 one of three
    assert 0.2 < share < 0.47
    assert len(np.unique(scores[1, 1:])) == 3  # videos 2 and 4 beside the mark
    np.testing.assert_array_equal(triples(inputs)["scores"], scores)  # each epoch is judged by the same draws
    other = triples({**inputs, "video_id": tf.constant([1, 2], tf.int64)})["scores"].numpy()
    assert (other[1, 1:] != scores[1, 1:]).mean() > 0.4  # two thirds of the draws fall otherwise
    first, second = (triples(inputs, training=True)["scores"].numpy()[1, 1:] == RATED for _ in range(2))
    assert 0.3 < (first != second).mean() < 0.6  # drawn anew: 2 * 1/3 * 2/3


def test_of_whom_nothing_was_learned_counts_as_unknown():
    of = shape()._replace(users=6, met_users=np.array([False, True, False, True, False, False]), buckets=2)
    # Row 0 is a missing id, 2 opened nothing, 4 and 5 are out of vocabulary.
    assert of.met(tf.constant([0, 1, 2, 3, 4, 5], tf.int64)).numpy().tolist() == [4, 1, 4, 3, 4, 5]


def test_what_is_out_of_vocabulary_is_not_what_somebody_opened(world: Any):
    columns = {name: values[:4] for name, values in world.transformed.items()}
    columns["clicked"] = np.array([1, 1, 0, 1], np.float32)
    columns["user_id"], columns["video_id"] = np.array([1, 1, 2, 7]), np.array([2, 6, 1, 3])
    sizes = {**world.sizes, "user_id": 8, "video_id": 7}  # one bucket each: rows 7 and 6
    opened = jifr.opened_in(Split(world.contract, ("x",), {}, 4, columns), sizes)
    assert (opened.users.tolist(), opened.videos.tolist()) == ([1], [2])


def test_a_killed_training_goes_on_with_the_very_same_frames_only(tmp_path: Path):
    given = SimpleNamespace(custom_config={"checkpoint_dir": str(tmp_path)}, transform_graph_path="graph")
    split = SimpleNamespace(files=("a",))
    folders = [resumable_folder(given, split, also=also) for also in ((), ["f/1"], ["f/2"], ["f/1"])]
    assert len(set(folders)) == 3
    assert folders[1] == folders[3]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ContractError, match="width and visual_width must be equal, got 8 and 32"):
        Config.of({"width": 8}, "model")
    with pytest.raises(ContractError, match="expected one of jifr, bpr, vbpr, acf, cdl, vpoi"):
        Config.of({"architecture": "nmf"}, "model")
    with pytest.raises(ContractError, match="architecture acf: expected a contract with a feature of kind history"):
        build_scorer(Config(**SMALL, architecture="acf"), shape(history=None))


LOOKS = np.eye(5, dtype=np.float32)


def frame_records(videos: int = 5, extra: str = "") -> list[bytes]:
    """Video i has the looks i and i + 1, the second picture no time; v4 has no frame."""
    records = []
    for i, name in enumerate([f"v{i}" for i in range(videos)] + ([extra] if extra else [])):
        paths, seconds, looks = [f"{name}-0", f"{name}-1"], [0.5, np.nan], LOOKS[[i % 5, (i + 1) % 5]]
        count = 0 if i == 4 else 2
        records.append(frame_examples.encode(name, paths[:count], seconds[:count], looks[:count], [True] * count))
    return records


@pytest.fixture(scope="module")
def exported(world: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(world, tmp_path_factory.mktemp("jifr"), "jifr")


def arguments(world: Any, folder: Path, architecture: str) -> SimpleNamespace:
    """What TFX gives `run_fn`, for two epochs; `frames.gz` is in the folder."""
    given = SimpleNamespace(**vars(world.fn_args))
    given.frames_files = [str(folder / "frames*")]
    given.custom_config = {
        "contract": world.contract.to_json(),
        "model": {**SMALL, "architecture": architecture},
        "training": {"epochs": 2, "batch_size": 16},
        "checkpoint_dir": str(folder / "checkpoint"),
    }
    given.model_run_dir, given.serving_model_dir = str(folder / "run"), str(folder / "1")
    return given


def export(world: Any, folder: Path, architecture: str) -> str:
    """What `run_fn` leaves of two epochs."""
    with tf.io.TFRecordWriter(str(folder / "frames.gz"), "GZIP") as writer:
        for record in frame_records():
            writer.write(record)
    jifr.run_fn(arguments(world, folder, architecture))
    return str(folder / "1")


def asked(world: Any, *rows: dict[str, Any]) -> tf.Tensor:
    return tf.constant([world.example(row) for row in rows])


def test_signatures_answer_alike_and_choose_the_best_frame(world: Any, exported: str):
    loaded = tf.saved_model.load(exported)
    rows = [{"user_id": "u1", "history": ["v1"], "video_id": v} for v in ("v0", "v3", "v4", "nobody")]
    got = {n: v.numpy() for n, v in loaded.signatures["serving_default"](examples=asked(world, *rows)).items()}
    assert got["frame"].tolist()[2:] == [-1, -1]
    assert got["score"][3] == 0
    assert np.isnan(got["frame_scores"][2:]).all()
    best = got["frame_scores"][:2].argmax(axis=1)
    assert got["frame"][:2].tolist() == best.tolist()
    np.testing.assert_array_equal(got["frame_score"][:2], got["frame_scores"][[0, 1], best])
    np.testing.assert_array_equal(np.isnan(got["at_seconds"][:2]), best == 1)  # the second picture has no time
    raw = loaded.signatures["raw"](
        user_id=tf.constant(["u1"] * 4),
        history=tf.constant([["v1", ""]] * 4),
        video_id=tf.constant([r["video_id"] for r in rows]),
    )
    assert got["path"].tolist() == [f"{v}-{frame}".encode() for v, frame in zip(("v0", "v3"), best, strict=True)] + [
        b"",
        b"",
    ]
    assert raw["path"].numpy().tolist() == got.pop("path").tolist()
    for name, values in got.items():
        np.testing.assert_allclose(raw[name], values, atol=1e-6)


@pytest.mark.parametrize("architecture", jifr.BASELINES)
def test_an_exported_baseline_tells_videos_apart_and_frames_if_it_sees_them(
    world: Any, tmp_path: Path, architecture: str
):
    loaded = tf.saved_model.load(export(world, tmp_path, architecture))
    rows = [{"user_id": "u1", "history": ["v1"], "video_id": f"v{i}"} for i in range(5)]
    got = {n: v.numpy() for n, v in loaded.signatures["serving_default"](examples=asked(world, *rows)).items()}
    assert len(np.unique(got["score"])) == 5
    assert got["frame"].tolist() == [*got["frame"][:4], -1]
    assert (got["frame"][:4] >= 0).all()
    apart = np.ptp(got["frame_scores"][:4], axis=1) > 0
    assert apart.all() if jifr.BASELINES[architecture].looks else not apart.any()
    measured = loaded.signatures["evaluate"](examples=asked(world, *rows))
    np.testing.assert_array_equal(measured["score"], got["score"])
    assert ((measured["above"] >= 0) & (measured["above"] < 5)).numpy().all()


def test_evaluation_counts_what_is_scored_higher_among_unopened_videos(world: Any, exported: str):
    loaded = tf.saved_model.load(exported)
    opened = {(r["user_id"], r["video_id"]) for r in world.raw if r["clicked"]}
    users = [f"u{i}" for i in range(6)]
    videos = [f"v{i}" for i in range(5)]
    for user in users:
        rows = [{"user_id": user, "history": ["v0"], "video_id": video} for video in videos]
        got = {n: v.numpy() for n, v in loaded.signatures["evaluate"](examples=asked(world, *rows)).items()}
        for own, score in enumerate(got["score"]):
            others = [i for i, v in enumerate(videos) if i != own and v != "v0" and (user, v) not in opened]
            above = sum((got["score"][i] > score) + 0.5 * (got["score"][i] == score) for i in others)
            assert got["above"][own] == pytest.approx(above)
            np.testing.assert_allclose(got["above_sampled"][own], above)  # fewer than 1,000: all are drawn
        assert got["opened"].tolist() == [v == "v0" or (user, v) in opened for v in videos]
    unknown = loaded.signatures["evaluate"](examples=asked(world, {"user_id": "u1", "video_id": "nobody"}))
    assert np.isinf(unknown["above"].numpy()).all()
    assert not unknown["opened"].numpy().any()
    assert np.isinf(unknown["above_sampled"].numpy()).all()


def test_a_training_goes_on_from_the_served_one_and_still_knows_whom_that_had_met(
    world: Any, exported: str, tmp_path: Path
):
    """Nearly nothing is learned, of a day on which only u0 and u1 opened anything."""
    args = arguments(world, Path(exported).parent, "jifr")
    world.write_transformed(world.transformed["user_id"] <= 2, tmp_path / "few" / "train.gz")
    args.train_files = [str(tmp_path / "few" / "*")]
    args.custom_config = {**args.custom_config, "warm_start": exported}
    args.custom_config["training"] = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-9}
    args.model_run_dir, args.serving_model_dir = str(tmp_path / "run"), str(tmp_path / "2")
    jifr.run_fn(args)
    rows = [{"user_id": f"u{u}", "video_id": f"v{v}"} for u in range(6) for v in range(5)]
    before, after = (
        tf.saved_model.load(folder).signatures["serving_default"](examples=asked(world, *rows))["score"].numpy()
        for folder in (exported, str(tmp_path / "2"))
    )
    np.testing.assert_array_equal(before == 0, after == 0)
    assert np.corrcoef(before, after)[0, 1] > 0.99  # frames are standardised anew


def test_a_draw_is_neighbours_in_the_shuffled_ring_of_others(monkeypatch: Any):
    """Two of five others, three times, from places 0, 1 and 3: the last goes on at the ring's start."""
    monkeypatch.setattr(jifr_export, "SAMPLED", 2)
    monkeypatch.setattr(jifr_export, "REPEATS", 3)
    random = np.random.default_rng(1)
    lots, beats = random.random((4, 7)).astype(np.float32), random.random((4, 7)).astype(np.float32)
    others = np.ones((4, 7), bool)
    for row, out in enumerate(((0, 6), (2, 3), (1,), range(7))):  # five, five, six and no others
        others[row, list(out)] = False
    beats[~others] = 0
    serving = SimpleNamespace(_lots=lambda seed: tf.constant(lots))
    got = jifr_export._Serving._above_of_drawn(
        serving, tf.constant(beats), tf.constant(others), tf.zeros([4], tf.int64)
    )
    for row in range(3):
        ring = [i for i in np.argsort(-lots[row]) if others[row, i]]
        starts = [0, 1, 3] if len(ring) == 5 else [0, 2, 4]
        expected = [beats[row, ring[start]] + beats[row, ring[(start + 1) % len(ring)]] for start in starts]
        np.testing.assert_allclose(got[row], expected, atol=1e-6)
    assert got[3].numpy().tolist() == [0, 0, 0]


def test_every_user_and_video_has_a_lot_of_its_own(exported: str):
    loaded = tf.saved_model.load(exported)
    serving = SimpleNamespace(fingerprints=loaded.fingerprints)
    lots = jifr_export._Serving._lots(serving, tf.constant([1, 2], tf.int64)).numpy()
    assert len(set(lots.ravel())) == lots.size
    assert (np.argsort(lots[0]) != np.argsort(lots[1])).any()


def test_draws_go_evenly_round_all_that_the_user_has_not_opened(
    world: Any, exported: str, tmp_path: Path, monkeypatch: Any
):
    """Twelve draws of one begin at each of 1, 2, 3 or 4 others equally often, so that their mean is the share above."""
    monkeypatch.setattr(jifr_export, "SAMPLED", 1)
    monkeypatch.setattr(jifr_export, "REPEATS", 12)
    rebuild(exported, frame_records(), str(tmp_path / "2"))
    loaded = tf.saved_model.load(str(tmp_path / "2"))
    opened = {(r["user_id"], r["video_id"]) for r in world.raw if r["clicked"]}
    shares = []
    for user, own in ((f"u{i}", f"v{j}") for i in range(6) for j in range(5)):
        got = loaded.signatures["evaluate"](examples=asked(world, {"user_id": user, "video_id": own}))
        others = [v for v in (f"v{i}" for i in range(5)) if v != own and (user, v) not in opened]
        share = got["above"].numpy()[0] / max(len(others), 1)
        assert got["above_sampled"].numpy()[0].mean() == pytest.approx(share)
        shares.append(share)
    assert len({s for s in shares if 0 < s < 1}) > 1


def test_a_score_that_is_no_number_is_the_last(world: Any, exported: str, tmp_path: Path):
    loaded = tf.saved_model.load(exported)
    for weight in filter(lambda part: isinstance(part, tf.Variable), loaded.scorer.captured):
        if weight.dtype.is_floating:
            weight.assign(tf.fill(weight.shape, tf.constant(np.nan, weight.dtype)))
    got = loaded.signatures["evaluate"](examples=asked(world, {"user_id": "u1", "video_id": "v1"}))
    assert np.isnan(got["score"].numpy()[0])
    assert got["above"].numpy()[0] >= 1  # all others


def test_draws_differ_from_each_other_and_are_the_same_in_each_execution(
    world: Any, tmp_path: Path, exported: str, monkeypatch: Any
):
    monkeypatch.setattr(jifr_export, "SAMPLED", 1)
    rebuild(exported, frame_records(), str(tmp_path / "2"))
    rows = asked(world, *({"user_id": f"u{i % 6}", "video_id": f"v{i // 6}"} for i in range(30)))
    first, second = (
        tf.saved_model.load(str(tmp_path / "2")).signatures["evaluate"](examples=rows)["above_sampled"].numpy()
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first <= 1).all()
    assert (first != first[:, :1]).any()


def test_a_new_video_has_a_cover_after_a_rebuild_without_training(world: Any, exported: str, tmp_path: Path):
    rebuild(exported, frame_records(extra="fresh"), str(tmp_path / "2"))
    rebuild(str(tmp_path / "2"), frame_records(extra="fresh"), str(tmp_path / "3"))  # again, of its own
    rows = asked(world, *({"user_id": "u1", "video_id": v} for v in ("v0", "fresh")))
    old = tf.saved_model.load(exported).signatures["serving_default"](examples=rows)
    for version in "23":
        new = tf.saved_model.load(str(tmp_path / version)).signatures["serving_default"](examples=rows)
        assert old["frame"].numpy().tolist()[1] == -1
        np.testing.assert_allclose(new["score"][0], old["score"][0], atol=1e-6)
        # It looks as v0 does; all that is known of v0 besides is in the attention.
        np.testing.assert_allclose(new["frame_scores"][1], old["frame_scores"][0], atol=0.01)
        assert new["score"].numpy()[1] != 0


def test_rebuilding_of_other_frames_or_another_model_is_refused(exported: str, tmp_path: Path):
    wide = frame_examples.encode("v0", ["a"], [0.0], np.ones((1, 7)), [True])
    with pytest.raises(ContractError, match="expected frames of 5 values, got 7"):
        rebuild(exported, [wide], str(tmp_path / "x"))
    with pytest.raises(ContractError, match="expected distinct videos, got 'v0' twice"):
        rebuild(exported, [wide, wide], str(tmp_path / "x"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(ContractError, match="expected a model of videos and frames"):
        rebuild(str(tmp_path / "other"), [wide], str(tmp_path / "x"))
