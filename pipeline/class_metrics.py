"""Top-1, macro precision and recall, and the confusion matrix of a classifier, as TFMA metrics.

TFMA's own precision and recall of several classes compare each probability with a threshold; here, as for a user, the
class with the highest probability is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.metrics import multi_class_confusion_matrix_metrics as matrices

UNLABELLED, UNHEARD_OF = -2, -1  # instead of a class: no label, and one that was not in the training split

Confusion = Mapping[tuple[int, int], float]  # weight of the examples by (label, answer)


class OfClasses(metric_types.Metric):
    """One of what a confusion matrix tells: accuracy, macro_precision, macro_recall, or confusion_matrix itself.

    Examples without a label do not count. Those of a class that the model never heard of do, as wrong answers.

    Args:
        name: Which.
    """

    def __init__(self, name: str) -> None:
        super().__init__(metric_util.merge_per_key_computations(_computations), name=name)


metric_types.register_metric(OfClasses)


def summarise(confusion: Confusion) -> dict[str, float]:
    """Accuracy, and the means of precision and recall over the classes that occur as labels; NaN without examples.

    The precision of a class that is never answered is 0.
    """
    total, right = sum(confusion.values()), sum(n for (label, answer), n in confusion.items() if label == answer)
    labels, answers = Counter[int](), Counter[int]()
    for (label, answer), weight in confusion.items():
        labels[label] += weight  # type: ignore[assignment]
        answers[answer] += weight  # type: ignore[assignment]
    hits = {label: confusion.get((label, label), 0.0) for label in labels}
    precisions = [hits[label] / answers[label] if answers[label] else 0.0 for label in labels]
    recalls = [hits[label] / labels[label] for label in labels]
    return {
        "accuracy": right / total if total else float("nan"),
        "macro_precision": float(np.mean(precisions)) if labels else float("nan"),
        "macro_recall": float(np.mean(recalls)) if labels else float("nan"),
    }


def _computations(
    name: str,
    eval_config: tfma.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
    example_weighted: bool = False,
) -> list[Any]:
    shared = {"model_name": model_name, "output_name": output_name, "example_weighted": example_weighted}
    counted = matrices.multi_class_confusion_matrices(
        thresholds=[-1.0],  # any probability will do
        extract_label_prediction_and_weight=_answers,
        eval_config=eval_config,
        **shared,
    )
    key = metric_types.MetricKey(name=name, **shared)

    def result(metrics: Mapping[Any, Any]) -> dict[Any, Any]:
        found = metrics[counted[-1].keys[-1]]
        entries = {k: n for k, n in next(iter(found.values()), {}).items() if k.actual_class_id != UNLABELLED}
        if name == "confusion_matrix":
            return {key: matrices.Matrices({0.0: entries})}
        return {key: summarise({tuple(k): n for k, n in entries.items()})[name]}

    return [*counted, metric_types.DerivedMetricComputation(keys=[key], result=result)]


def _answers(element: Any, **arguments: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """TFMA's own, but for labels that are no class, which it takes for the first one."""
    label, prediction, weight = next(metric_util.to_label_prediction_example_weight(element, **arguments))
    if label.size > 1 and not label.any():  # as TFMA encodes a label that is not among the classes
        given = np.ravel(element.get_labels(arguments["model_name"], arguments["output_name"]))
        label = np.array([UNHEARD_OF if given.size and given[0] else UNLABELLED])
    yield label, prediction, weight
