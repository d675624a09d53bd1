"""Accuracy, macro precision and recall and the confusion matrix are those of the most probable class, through TFMA."""

import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score, recall_score

from pipeline.class_metrics import summarise
from pipeline.config import Gate, ModelConfig
from pipeline.evaluation import clip_eval_config
from pipeline.report import gates, measured
from transform.contract import ContractError

# (label, probabilities of a, b and c, has_audio): answers are a, a, b, c, b, a.
EXAMPLES = [
    ("a", [0.5, 0.3, 0.2], "yes"),
    ("b", [0.4, 0.35, 0.25], "yes"),
    ("b", [0.2, 0.6, 0.2], "no"),
    ("c", [0.1, 0.1, 0.8], "no"),
    ("unheard of", [0.1, 0.8, 0.1], "no"),
    ("", [0.9, 0.05, 0.05], "yes"),  # no label: does not count
]


class _Recite(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def answer(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {"probabilities": tf.io.FixedLenFeature([3], tf.float32)})
        names = tf.repeat(tf.constant([["a", "b", "c"]]), tf.shape(examples)[0], axis=0)
        return {"probabilities": parsed["probabilities"], "all_classes": names}


def model_config(*gates_of: Gate, slices: tuple[str, ...] = ()) -> ModelConfig:
    return ModelConfig(gates=gates_of or (Gate(metric="accuracy", at_least=0.5),), slices=slices)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classes")
    model = _Recite()
    tf.saved_model.save(model, str(folder / "model"), signatures={"serving_default": model.answer})
    with tf.io.TFRecordWriter(str(folder / "examples")) as writer:
        for label, probabilities, has_audio in EXAMPLES:
            texts = {"primary_category": label, "has_audio": has_audio, "duration_bucket": "0-5s"}
            feature = {n: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode()])) for n, v in texts.items()}
            feature["probabilities"] = tf.train.Feature(float_list=tf.train.FloatList(value=probabilities))
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    config = model_config(
        Gate(metric="accuracy", at_least=0.5),
        Gate(metric="macro_recall", at_least=0.9),
        Gate(metric="accuracy", at_least=0.9, slices=("has_audio=no",)),
    )
    tfma.run_model_analysis(
        eval_config=clip_eval_config(config),
        eval_shared_model=tfma.default_eval_shared_model(str(folder / "model"), eval_config=clip_eval_config(config)),
        data_location=str(folder / "examples"),
        output_path=str(folder / "evaluation"),
    )
    return str(folder / "evaluation")


def test_measures_by_hand(evaluation: str):
    by_name = {s.name: s.metrics for s in measured.measured(evaluation)}
    # five labelled: a right, b wrong, b right, c right, unheard of wrong
    assert by_name["all examples"]["accuracy"] == pytest.approx(3 / 5)
    # precision: a 1/2, b 1/2, c 1, unheard of 0; recall: a 1, b 1/2, c 1, unheard of 0
    assert by_name["all examples"]["macro_precision"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 0) / 4)
    assert by_name["all examples"]["macro_recall"] == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)
    assert by_name["has_audio = yes"]["accuracy"] == pytest.approx(1 / 2)
    assert by_name["has_audio = no"]["accuracy"] == pytest.approx(2 / 3)
    assert set(by_name) == {"all examples", "has_audio = yes", "has_audio = no", "duration_bucket = 0-5s"}


def test_the_confusion_matrix_leaves_out_only_what_has_no_label(evaluation: str):
    assert measured.confusion(evaluation) == {(0, 0): 1, (1, 0): 1, (1, 1): 1, (2, 2): 1, (-1, 1): 1}


def test_gates_hold_or_fail_by_all_examples_and_by_slice(evaluation: str):
    verdicts = {(gate.metric, gate.slice): gate.passed for gate in gates.gates(evaluation)}
    assert verdicts == {
        ("accuracy", "all examples"): True,
        ("macro_recall", "all examples"): False,
        ("accuracy", "has_audio = no"): False,
    }


def test_slices_are_of_the_clip_example():
    with pytest.raises(ContractError, match="cannot slice clips by 'user_novelty': expected one of primary_category"):
        clip_eval_config(model_config(slices=("user_novelty",)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_summary_is_that_of_scikit_learn(pairs: list[tuple[int, int]]):
    labels, answers = zip(*pairs, strict=True)
    macro = {"average": "macro", "labels": sorted(set(labels)), "zero_division": 0}
    assert summarise({pair: float(pairs.count(pair)) for pair in pairs}) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, answers),
            "macro_precision": precision_score(labels, answers, **macro),
            "macro_recall": recall_score(labels, answers, **macro),
        }
    )


def test_nothing_labelled_measures_nothing():
    assert {str(value) for value in summarise({}).values()} == {"nan"}
