"""The TFMA configuration of a model: metrics, slices and gates, all derived from contract and run configuration."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_model_analysis as tfma

from pipeline.config import METRICS, Gate, ModelConfig
from transform import clips
from transform.contract import Contract, ContractError, Kind, Role

TOP_K = 10
HIGHER_IS_BETTER = dict.fromkeys(("auc", "ndcg", "recall", *METRICS["clips"]), True) | {"logloss": False}


def eval_config(contract: Contract, model: ModelConfig, prediction_key: str) -> tfma.EvalConfig:
    """What Evaluator measures, by which slices, and which values bless a model.

    The signature that is scored is `serving_default`, the very one that answers requests.

    Args:
        contract: Names the label, the user key and the slice features.
        model: Gates and further slices.
        prediction_key: Output of the signature that is evaluated.

    Raises:
        ContractError: A slice names a feature that is not categorical with one value.
    """
    slices = slice_features(contract, model)
    label, user = contract.label.name, contract.user_key.name
    return tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(signature_name="serving_default", label_key=label, prediction_key=prediction_key)],
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slices)],
        metrics_specs=[
            tfma.MetricsSpec(
                metrics=[
                    tfma.MetricConfig(class_name="ExampleCount"),
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
            ),
        ],
    )


def clip_eval_config(model: ModelConfig, prediction_key: str) -> tfma.EvalConfig:
    """What Evaluator measures of a classifier of clips: top-1, macro precision and recall, and the confusion matrix.

    Args:
        model: Gates and further slices, of the texts of a clip example.
        prediction_key: Output of `serving_default` with the probabilities; `all_classes` names them.

    Raises:
        ContractError: A slice names something else.
    """
    known = (clips.PRIMARY_CATEGORY, clips.SECONDARY_CATEGORY, clips.HAS_AUDIO, clips.DURATION_BUCKET)
    slices = list(dict.fromkeys([clips.HAS_AUDIO, clips.DURATION_BUCKET, *_gated_slices(model)]))
    for name in slices:
        if name not in known:
            raise ContractError(f"cannot slice clips by {name!r}: expected one of {', '.join(known)}")
    spec = tfma.ModelSpec(
        signature_name="serving_default", label_key=clips.PRIMARY_CATEGORY, prediction_key=prediction_key
    )
    names = (*METRICS["clips"], "confusion_matrix")
    of_classes = [_metric("OfClasses", name, model.gates, module="pipeline.class_metrics") for name in names]
    return tfma.EvalConfig(
        model_specs=[spec],
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slices)],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount"), *of_classes])],
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
        higher = HIGHER_IS_BETTER[gate.metric]
        threshold.change_threshold.direction = (
            tfma.MetricDirection.HIGHER_IS_BETTER if higher else tfma.MetricDirection.LOWER_IS_BETTER
        )
        # TFMA compares with "<=" and ">=": the tolerance is open by a hair, so that an equal model passes at 0.
        threshold.change_threshold.absolute.value = (-1 if higher else 1) * (gate.change + 1e-9)
    return threshold
