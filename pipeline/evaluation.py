"""The TFMA configuration of a model: metrics, slices and gates, all derived from contract and run configuration."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_model_analysis as tfma

from pipeline.config import LOWER_IS_BETTER, Gate, ModelConfig
from pipeline.models import CLASSES, COVERS, RETRIEVAL, TASKS
from transform import clips, videos
from transform.contract import Contract, ContractError, Kind, Role

TOP_K = 10
_TYPE = tfma.TF_GENERIC  # else TFMA loads each model once more, with Keras, to see that it is none of Keras's


def eval_config(contract: Contract, model: ModelConfig) -> tfma.EvalConfig:
    """What Evaluator measures, by which slices, and which values bless a model.

    The signature that is scored is `serving_default`, the very one that answers requests.

    Args:
        contract: Names the label, the user key and the slice features.
        model: Gates and further slices.

    Raises:
        ContractError: A slice names a feature that is not categorical with one value.
    """
    slices = slice_features(contract, model)
    label, user = contract.label.name, contract.user_key.name
    spec = tfma.ModelSpec(signature_name="serving_default", label_key=label, prediction_key="score", model_type=_TYPE)
    unweighted = None
    if contract.weight is not None:
        # As in training. Counts are of rows, and in one user's list every row counts once: TFMA knows no other weights.
        spec.example_weight_key = contract.weight.name
        unweighted = tfma.ExampleWeightOptions(unweighted=True)
    return tfma.EvalConfig(
        model_specs=[spec],
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slices)],
        metrics_specs=[
            tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount")], example_weights=unweighted),
            tfma.MetricsSpec(
                metrics=[
                    _metric("AUC", "auc", model.gates),
                    _metric("BinaryCrossEntropy", "logloss", model.gates),
                    _metric("Calibration", "calibration", model.gates),
                    tfma.MetricConfig(class_name="CalibrationPlot"),
                ],
            ),
            tfma.MetricsSpec(
                metrics=[
                    _metric("NDCG", "ndcg", model.gates, f'"gain_key": "{label}", '),
                    _metric("RecallAtK", "recall", model.gates, module="pipeline.recall_at_k"),
                ],
                query_key=user,
                binarize=tfma.BinarizationOptions(top_k_list={"values": [TOP_K]}),
                example_weights=unweighted,
            ),
        ],
    )


def clip_eval_config(model: ModelConfig) -> tfma.EvalConfig:
    """What Evaluator measures of a classifier of clips: top-1, macro precision and recall, and the confusion matrix.

    Args:
        model: Gates and further slices, of the texts of a clip example.

    Raises:
        ContractError: A slice names something else.
    """
    known = (clips.PRIMARY_CATEGORY, clips.SECONDARY_CATEGORY, clips.HAS_AUDIO, clips.DURATION_BUCKET)
    slices = list(dict.fromkeys([clips.HAS_AUDIO, clips.DURATION_BUCKET, *_gated_slices(model)]))
    names = (*CLASSES, "confusion_matrix")
    metrics = [_metric("OfClasses", name, model.gates, module="pipeline.class_metrics") for name in names]
    return _of_texts("clips", known, slices, metrics, prediction_key="probabilities")


def video_eval_config(model: ModelConfig) -> tfma.EvalConfig:
    """What Evaluator measures of a topic representation: how often it is right on each task.

    Args:
        model: Gates and further slices, of the texts of a video example.

    Raises:
        ContractError: A slice names something else.
    """
    metrics = [_metric("TaskHits", name, model.gates, module="pipeline.task_hits") for name in TASKS]
    return _of_texts("videos", videos.DESCRIBED[2:], list(dict.fromkeys(_gated_slices(model))), metrics)


def retrieval_eval_config(contract: Contract, model: ModelConfig) -> tfma.EvalConfig:
    """What Evaluator measures of a retrieval model, by its exported index and over all examples.

    Args:
        contract: Names label, user and video.
        model: Gates.

    Raises:
        ContractError: Slices are asked for.
    """
    keys = f'"user": "{contract.user_key.name}", "video": "{contract.video_key.name}", '
    module = "pipeline.retrieval_metrics"
    metrics = [_metric("RetrievalMetric", name, model.gates, keys, module) for name in RETRIEVAL]
    return _of_all(contract, model, metrics)


def cover_eval_config(contract: Contract, model: ModelConfig) -> tfma.EvalConfig:
    """What Evaluator measures of a model of videos and frames: how well it ranks either, over all examples.

    Args:
        contract: Names label, user and liked frames.
        model: Gates.

    Raises:
        ContractError: Slices are asked for, or a gate on frames where the contract has no feedback on them.
    """
    liked = contract.feedback.name if contract.feedback else ""
    for gate in model.gates:
        if gate.metric.startswith("frame") and not liked:
            raise ContractError(
                f"cannot gate {gate.metric}: contract {contract.name!r} has no feedback on frames: add a feature of "
                "role feedback with `source: derived.liked_frames`, or remove the gate"
            )
    keys = f'"user": "{contract.user_key.name}", "liked": "{liked}", '
    metrics = [_metric("CoverMetric", name, model.gates, keys, "pipeline.cover_metrics") for name in COVERS]
    return _of_all(contract, model, metrics)


def _of_all(contract: Contract, model: ModelConfig, metrics: Sequence[tfma.MetricConfig]) -> tfma.EvalConfig:
    """What is measured over all examples by the signature `evaluate`."""
    for name in _gated_slices(model):
        raise ContractError(f"cannot slice by {name!r} what is measured over all examples: remove the slice")
    return tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(signature_name="evaluate", label_key=contract.label.name, model_type=_TYPE)],
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount"), *metrics])],
    )


def _of_texts(
    what: str, known: Sequence[str], slices: Sequence[str], metrics: Sequence[tfma.MetricConfig], **answers: str
) -> tfma.EvalConfig:
    for name in slices:
        if name not in known:
            raise ContractError(f"cannot slice {what} by {name!r}: expected one of {', '.join(known)}")
    spec = tfma.ModelSpec(signature_name="serving_default", label_key=clips.PRIMARY_CATEGORY, **answers)
    spec.model_type = _TYPE
    return tfma.EvalConfig(
        model_specs=[spec],
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slices)],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount"), *metrics])],
    )


def _gated_slices(model: ModelConfig) -> list[str]:
    return [*model.slices, *(name.partition("=")[0] for gate in model.gates for name in gate.slices)]


def slice_features(contract: Contract, model: ModelConfig) -> list[str]:
    """Features by which metrics are sliced: the contract's slices, the run's, and those of the gates.

    Raises:
        ContractError: A named feature does not exist, or has more than one value an example.
    """
    names = [*(f.name for f in contract.select(roles=(Role.SLICE,))), *_gated_slices(model)]
    for name in names:
        if contract.feature(name).kind is not Kind.ID:
            raise ContractError(
                f"cannot slice by {name!r}: expected a feature of kind id, got {contract.feature(name).kind.value}"
            )
    return list(dict.fromkeys(names))


def _metric(
    class_name: str, name: str, gates: Sequence[Gate], extra: str = "", module: str | None = None
) -> tfma.MetricConfig:
    config = tfma.MetricConfig(class_name=class_name, config=f'{{{extra}"name": "{name}"}}', module=module)
    for gate in (gate for gate in gates if gate.metric == name):
        # TFMA would check a plain `threshold` on every slice; an empty spec is all examples together.
        specs = [_slicing_spec(name) for name in gate.slices] or [tfma.SlicingSpec()]
        config.per_slice_thresholds.extend(
            tfma.PerSliceMetricThreshold(slicing_specs=[spec], threshold=_threshold(gate)) for spec in specs
        )
    return config


def _slicing_spec(name: str) -> tfma.SlicingSpec:
    feature, _, value = name.partition("=")
    return tfma.SlicingSpec(feature_values={feature: value}) if value else tfma.SlicingSpec(feature_keys=[feature])


def _threshold(gate: Gate) -> tfma.MetricThreshold:
    threshold = tfma.MetricThreshold()
    if gate.at_least is not None:
        threshold.value_threshold.lower_bound.value = gate.at_least
    if gate.at_most is not None:
        threshold.value_threshold.upper_bound.value = gate.at_most
    if gate.change is not None:
        higher = gate.metric not in LOWER_IS_BETTER
        threshold.change_threshold.direction = (
            tfma.MetricDirection.HIGHER_IS_BETTER if higher else tfma.MetricDirection.LOWER_IS_BETTER
        )
        # TFMA compares with "<=" and ">=": the tolerance is open by a hair, so that an equal model passes at 0.
        threshold.change_threshold.absolute.value = (-1 if higher else 1) * (gate.change + 1e-9)
    return threshold
