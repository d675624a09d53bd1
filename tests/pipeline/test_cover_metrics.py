"""Metrics of videos and frames by hand, alone and through TFMA on a SavedModel; gates need feedback to judge by."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma

from pipeline.config import Gate, ModelConfig
from pipeline.cover_metrics import Sums, places
from pipeline.evaluation import cover_eval_config
from pipeline.models import COVERS
from transform import contract as contracts
from transform.contract import ContractError

NAN = float("nan")
# user, label, liked frames, others above, above of two draws, scores of frames, of the average user's.
IMPRESSIONS = [
    ("a", 1.0, [1], 0.0, [0.0, 20.0], [0.1, 0.9, NAN], [0.5, 0.2, NAN]),
    ("a", 1.0, [], 15.0, [1.0, 1.0], [NAN, NAN, NAN], [NAN, NAN, NAN]),
    ("a", 0.0, [0, 2], 3.0, [0.0, 0.0], [0.2, 0.9, 0.4], [0.3, 0.2, 0.1]),
    ("b", 1.0, [0], 2.0, [2.0, 2.0], [0.5, 0.5, NAN], [0.0, 0.0, NAN]),
    ("b", 1.0, [], 0.0, [0.0, 0.0], [0.1, 0.2, NAN], [0.2, 0.1, NAN]),
]
OPENED_BEFORE = {4}  # is not sought, however high it stands
D = 1 / np.log2(2 + np.arange(5))  # 1, .631, .5, .431, .387

EXPECTED = {
    "hits": (1 / 2 + 1) / 2,
    "ndcg": (D[0] / 2 + D[2]) / 2,
    "hits_sampled": (3 / 4 + 1) / 2,
    "ndcg_sampled": ((D[0] + 0 + D[1] + D[1]) / 4 + D[2]) / 2,
    # By impression with likes: the first is at 0; frames 0 and 2 of the third at 2 and 1; the fourth shares 0 and 1.
    "frame_hits_at_1": (1 + 0 + 1 / 2) / 3,
    "frame_hits_at_2": (1 + 1 / 2 + 1) / 3,
    **{f"frame_hits_at_{k}": 1.0 for k in (3, 4, 5)},
    "frame_ndcg_at_1": (1 + 0 + 1 / 2) / 3,
    "frame_ndcg_at_2": (1 + D[1] / (D[0] + D[1]) + (D[0] + D[1]) / 2) / 3,
    **{f"frame_ndcg_at_{k}": (1 + (D[1] + D[2]) / (D[0] + D[1]) + (D[0] + D[1]) / 2) / 3 for k in (3, 4, 5)},
    "frame_hits_at_1_random": (1 / 2 + 1 / 3 + 1 / 2) / 3,
    "frame_hits_at_1_popular": (0 + 1 / 2 + 1 / 2) / 3,
    "frame_lift": (1 + 0 + 1 / 2) / (1 / 2 + 1 / 3 + 1 / 2),
    "frame_lift_popular": (1 + 0 + 1 / 2) / (0 + 1 / 2 + 1 / 2),
}


def answer(index: int) -> dict[str, np.ndarray]:
    _, _, _, above, drawn, scores, popular = IMPRESSIONS[index]
    outputs = {"above": above, "above_sampled": drawn, "frame_scores": scores, "popular_frame_scores": popular}
    numbers = {name: np.atleast_1d(np.array(value, np.float32)) for name, value in outputs.items()}
    return {**numbers, "opened": np.array([index in OPENED_BEFORE])}


def test_values_by_hand_in_one_part_and_in_several():
    parts = []
    for index, (user, label, liked, *_) in enumerate(IMPRESSIONS):
        parts.append(Sums())
        parts[-1].add(user, label, liked, answer(index))
    together = Sums()
    for part in parts:
        together.merge(pickle.loads(pickle.dumps(part)))
    assert together.values() == pytest.approx(EXPECTED)
    assert set(EXPECTED) == set(COVERS)
    assert all(np.isnan(value) for value in Sums().values().values())


def test_a_liked_frame_that_is_not_there_is_no_question():
    sums = Sums()
    sums.add("a", 0.0, [2, 7], answer(0))  # frame 2 has no picture, frame 7 is beyond the last
    assert sums.judged == 0


def test_equal_scores_share_their_places():
    assert places(1, 2, 2) == (0.5, pytest.approx(D[1] / 2))  # places 1 and 2 of which the first counts
    assert places(0, 4, 1) == (0.25, 0.25)  # chance


class Answering(tf.Module):
    """Answers from the table above, by the number in the example; or chooses frames as the average user would."""

    def __init__(self, personal: bool) -> None:
        super().__init__()
        self.personal = personal

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def evaluate(self, examples):
        number = tf.io.parse_example(examples, {"number": tf.io.FixedLenFeature([], tf.int64)})["number"]
        rows = [answer(index) for index in range(len(IMPRESSIONS))]
        if not self.personal:
            rows = [{**row, "frame_scores": row["popular_frame_scores"]} for row in rows]
        outputs = {name: tf.gather(tf.constant(np.stack([row[name] for row in rows])), number) for name in rows[0]}
        return {**outputs, "above": outputs["above"][:, 0], "opened": outputs["opened"][:, 0]}


def judged(tmp_path: Path, gate: Gate, personal: bool = True) -> dict[str, float]:
    """What TFMA measures; its verdict is in the folder `out`."""
    module = Answering(personal)
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"evaluate": module.evaluate})
    with tf.io.TFRecordWriter(str(tmp_path / "examples")) as writer:
        for index, (user, label, liked, *_) in enumerate(IMPRESSIONS):
            feature = {
                "user_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[user.encode()])),
                "liked_frames": tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(i).encode() for i in liked])),
                "clicked": tf.train.Feature(float_list=tf.train.FloatList(value=[label])),
                "number": tf.train.Feature(int64_list=tf.train.Int64List(value=[index])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    config = cover_eval_config(contracts.load("microvideo"), ModelConfig(gates=(gate,)))
    shared = tfma.default_eval_shared_model(str(tmp_path / "1"), eval_config=config)
    result = tfma.run_model_analysis(
        shared, config, data_location=str(tmp_path / "examples"), output_path=str(tmp_path / "out")
    )
    measured = result.get_metrics_for_slice()
    return {name: value["doubleValue"] for name, value in measured.items() if name != "example_count"}


def test_tfma_measures_the_signature_evaluate(tmp_path: Path):
    assert judged(tmp_path, Gate(metric="frame_lift", at_least=2.0)) == pytest.approx(EXPECTED)
    assert not tfma.load_validation_result(str(tmp_path / "out")).validation_ok  # 9 / 8


@pytest.mark.parametrize("personal", [True, False])
def test_a_model_that_chooses_as_the_average_user_would_is_refused(tmp_path: Path, personal: bool):
    values = judged(tmp_path, Gate(metric="frame_lift_popular", at_least=1.2), personal)
    assert values["frame_lift_popular"] == pytest.approx(1.5 if personal else 1)
    assert tfma.load_validation_result(str(tmp_path / "out")).validation_ok is personal


def test_frames_are_gated_only_where_something_is_known_of_them():
    on_frames = ModelConfig(gates=(Gate(metric="frame_lift", at_least=2.0),))
    with pytest.raises(ContractError, match="cannot gate frame_lift: contract 'movielens' has no feedback on frames"):
        cover_eval_config(contracts.load("movielens"), on_frames)
    on_videos = ModelConfig(gates=(Gate(metric="hits", at_least=0.1),))
    assert cover_eval_config(contracts.load("movielens"), on_videos).metrics_specs
    sliced = ModelConfig(gates=(Gate(metric="hits", at_least=0.1),), slices=("user_novelty",))
    with pytest.raises(ContractError, match="cannot slice by 'user_novelty'"):
        cover_eval_config(contracts.load("movielens"), sliced)
