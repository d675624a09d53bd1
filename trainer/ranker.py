"""The ranker: multi-head self-attention and attention crossing over fields, user-guided attention over modalities.

Source: the MHSA-crossing ranker ("micro-video recommendation based on multi-head self-attention and feature crossing"),
section 3, equations 1-9, corrected as `trainer/layers/` says file by file. Baselines share configuration, inputs,
training and export; `Config.architecture` chooses.

B batch, N fields, D embedding width, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import tensorflow as tf
import tensorflow_transform as tft
from pydantic import Field, field_validator

from trainer.baselines import acf, afm, autoint, dcn, deep_fm, embedding_mlp, fm, lr, wide_and_deep
from trainer.data import read
from trainer.export import export, write_warm_up
from trainer.inputs import Fields, build_fields, is_content, is_modality, is_social, keras_inputs
from trainer.keras_version import keras
from trainer.layers.attention_crossing import AttentionCrossing
from trainer.layers.multi_head_self_attention import MultiHeadSelfAttention
from trainer.layers.perceptron import perceptron
from trainer.layers.target_attention import TargetAttention
from trainer.layers.user_guided_attention import UserGuidedAttention
from trainer.settings import Settings
from trainer.training import CLICKS, TrainingConfig, fit, is_chief, make_strategy, resumable_folder, until_exported
from trainer.warm_start import Earlier, keep, seen_in, starting_from
from transform.contract import Contract, Kind
from transform.impressions import vocabulary_sizes

# name -> build(fields, config) giving the logit [B, 1]
BASELINES: dict[str, Callable[[Fields, Config], tf.Tensor]] = {
    "lr": lr.build,
    "fm": fm.build,
    "afm": afm.build,
    "embedding_mlp": embedding_mlp.build,
    "wide_and_deep": wide_and_deep.build,
    "deep_fm": deep_fm.build,
    "dcn_v1": dcn.build_v1,
    "dcn_v2": dcn.build_v2,
    "autoint": autoint.build,
    "acf": acf.build,
}


class Attention(Settings):
    """Multi-head self-attention over fields.

    Attributes:
        heads: Heads a layer.
        width: Width of one head.
        layers: Layers, each with a residual.
        residual: `identity` adds to the field vectors; `projected` is AutoInt's, a ReLU over a projection of them, with
            0.003 less validation AUC on MovieLens with ids (one seed). The baseline `autoint` is always projected.
    """

    heads: int = Field(default=2, ge=1)
    width: int = Field(default=8, ge=1)
    layers: int = Field(default=1, ge=1)
    residual: Literal["identity", "projected"] = "identity"


class Crossing(Settings):
    """Attention crossing of all pairs of fields.

    Attributes:
        width: Units of the attention network.
        dropout: Of the pooled crossing.
        output: `sum` pools the weighted pairs to one vector (as AFM does); `pairs` hands all of them on.
    """

    width: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    output: Literal["sum", "pairs"] = "sum"


class Deep(Settings):
    """The multilayer perceptron.

    Attributes:
        units: Units of each hidden layer.
        dropout: After each hidden layer.
    """

    units: tuple[int, ...] = (128, 64)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Config(Settings):
    """A ranking model.

    Attributes:
        architecture: `mhsa_crossing`, or the name of a baseline.
        embedding_width: D.
        embedding_l2: L2 penalty on embedding tables, added to the mean loss. What is best falls as the number of ids
            grows; the default had the best validation AUC on MovieLens (3,000 users) and the demo world.
        linear_l2: L2 penalty on first-order weights.
        id_dropout: Share of ids replaced by an out-of-vocabulary index in training, for cold start.
        linear: Whether the first-order part over raw fields joins the score.
        attention: Self-attention over fields; None leaves it out.
        crossing: Attention crossing; None leaves it out.
        deep: The perceptron; None leaves it out. With `linear: false` too, that is the paper's low-order form, eq. 1.
        cross_layers: Cross layers of DCN.
        modality: Content vectors of the video: fused by user-guided attention, each its own field (concat), or unused.
        social: Whether sets of ids about the user (whom they follow) are used.
        history: Pooling of the history: plain mean (eq. 6), or attention of the candidate over it.
    """

    architecture: str = "mhsa_crossing"
    embedding_width: int = Field(default=16, ge=1)
    embedding_l2: float = Field(default=1e-3, ge=0)
    linear_l2: float = Field(default=1e-5, ge=0)
    id_dropout: float = Field(default=0.0, ge=0, lt=1)
    linear: bool = True
    attention: Attention | None = Attention()
    crossing: Crossing | None = Crossing()
    deep: Deep | None = Deep()
    cross_layers: int = Field(default=3, ge=1)
    modality: Literal["attention", "concat", "none"] = "attention"
    social: bool = True
    history: Literal["mean", "target_attention"] = "mean"

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, name: str) -> str:
        known = ("mhsa_crossing", *BASELINES)
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return name


def build_model(config: Config, contract: Contract, vocabulary_sizes: Mapping[str, int]) -> keras.Model:
    """The model that `config` describes, over the transformed features of `contract`.

    The layer named `logit` is what training attaches its loss to.

    Args:
        config: Architecture and sizes.
        contract: Where inputs, embedding tables and roles come from.
        vocabulary_sizes: Embedding table rows by vocabulary; see `transform.impressions.vocabulary_sizes`.

    Returns:
        From {feature: tensor} to {"score": probability of the positive label [B]} and, where the model chooses among
        modalities, "modality_weights" [B, M].
    """
    inputs = keras_inputs(contract)
    fields = build_fields(_used(contract, config), inputs, vocabulary_sizes, config)
    baseline = BASELINES.get(config.architecture)
    logit, weights = (baseline(fields, config), None) if baseline else _mhsa_crossing(fields, config)
    logit = keras.layers.Flatten(name="logit", dtype="float32")(logit)
    outputs = {"score": tf.sigmoid(logit[:, 0])}
    if weights is not None:
        outputs["modality_weights"] = tf.cast(weights, tf.float32)
    return keras.Model(inputs, outputs, name=config.architecture)


def _mhsa_crossing(fields: Fields, config: Config) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Eq. 2-3: linear part plus DNN over concat(S, P), S from self-attention and P from attention crossing.

    Without self-attention the field vectors stand for S; without crossing there is no P; without the DNN the sum is
    w_S . S + w_P . P + b (eq. 1).

    Returns:
        The logit [B, 1], and the weights of modalities [B, M] where they are attended.
    """
    weights = None
    if config.history == "target_attention" and fields.history is not None:
        fields = _attend_history(fields)
    if config.modality == "attention" and fields.modalities is not None:
        fields, weights = _fuse_modalities(fields)
    representation, attention = fields.vectors, config.attention
    if attention is not None:
        for _ in range(attention.layers):
            layer = MultiHeadSelfAttention(attention.heads, attention.width, attention.residual)
            representation = layer((representation, fields.mask))
    parts = [keras.layers.Flatten()(representation)]
    if config.crossing:
        pairs, _ = AttentionCrossing(config.crossing.width)((fields.vectors, fields.mask))
        pooled = keras.layers.Flatten()(pairs) if config.crossing.output == "pairs" else tf.reduce_sum(pairs, axis=1)
        parts.append(keras.layers.Dropout(config.crossing.dropout)(pooled))
    hidden = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    logit = keras.layers.Dense(1)(perceptron(hidden, config.deep) if config.deep else hidden)
    return keras.layers.Add()([logit, fields.linear]) if config.linear else logit, weights


def _used(contract: Contract, config: Config) -> Contract:
    """The contract without the features that `config` switches off."""
    off = [
        f
        for f in contract.inputs
        if (is_content(f) and config.modality == "none") or (is_social(f) and not config.social)
    ]
    return contract.model_copy(update={"features": tuple(f for f in contract.features if f not in off)})


def _attend_history(fields: Fields) -> Fields:
    """The first derived history pooled by attention of the candidate instead of the plain mean."""
    position = next(i for i, f in enumerate(fields.features) if f.kind is Kind.HISTORY and f.table == "derived")
    pooled = TargetAttention(fields.video.shape[-1])((fields.history, fields.history_mask, fields.video))
    before, after = fields.vectors[:, :position], fields.vectors[:, position + 1 :]
    return fields._replace(vectors=keras.layers.Concatenate(axis=1)([before, pooled[:, tf.newaxis], after]))


def _fuse_modalities(fields: Fields) -> tuple[Fields, tf.Tensor]:
    """One field, fused by user-guided attention, in the place of all content vectors; and the weights [B, M]."""
    kept = [i for i, f in enumerate(fields.features) if not is_modality(f)]
    fused, weights = UserGuidedAttention(fields.user.shape[-1])((fields.user, fields.modalities, fields.modality_mask))
    present = tf.reduce_max(fields.modality_mask, axis=1, keepdims=True)
    vectors = keras.layers.Concatenate(axis=1)([tf.gather(fields.vectors, kept, axis=1), fused[:, tf.newaxis]])
    mask = keras.layers.Concatenate(axis=1)([tf.gather(fields.mask, kept, axis=1), present])
    return fields._replace(vectors=vectors, mask=mask), weights


def run_fn(fn_args: Any) -> None:
    """Trains and exports one ranking model: what TFX's Trainer calls, for the ranker and all baselines.

    Args:
        fn_args: TFX's FnArgs with `raw_files`, as `components.trainer` makes them. `custom_config` holds `contract`
            (JSON), `model` and `training` (keys of `Config` and `TrainingConfig`), `checkpoint_dir` (where an
            unfinished training of the same inputs is kept) and perhaps `warm_start` (the SavedModel to start from).
    """
    given = fn_args.custom_config
    contract = Contract.from_json(given["contract"])
    config = Config.of(given.get("model", {}), "model")
    training = TrainingConfig.of(given.get("training", {}), "training")
    strategy = make_strategy(training)
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    feature_spec = transform_output.transformed_feature_spec()
    train = read(fn_args.train_files, feature_spec, contract, training.memory_bytes)
    valid = read(fn_args.eval_files, feature_spec, contract, training.memory_bytes)
    sizes, earlier = vocabulary_sizes(contract, transform_output), Earlier.of(fn_args, contract, transform_output)
    build = starting_from(earlier, partial(build_model, config, contract, sizes))
    checkpoint_dir = resumable_folder(fn_args, train, valid)
    with until_exported(checkpoint_dir, strategy):
        model = fit(build, train, valid, CLICKS, training, strategy, checkpoint_dir, fn_args.model_run_dir)
        if earlier:
            earlier.put_back(model, seen_in(train, sizes))
        if is_chief():
            export(model, contract, transform_output, fn_args.serving_model_dir)
            write_warm_up(fn_args.raw_files, fn_args.serving_model_dir)
            keep(model, contract, transform_output, fn_args.serving_model_dir)
