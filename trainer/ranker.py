"""The ranker: multi-head self-attention and attention crossing over fields, user-guided attention over modalities.

Source: the MHSA-crossing ranker ("micro-video recommendation based on multi-head self-attention and feature crossing"),
section 3, equations 1-9, corrected as `trainer/layers/` says file by file. Baselines share configuration, inputs,
training and export; `Config.architecture` chooses.

B batch, N fields, D embedding width, M modalities.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.settings import Settings


class Attention(Settings):
    """Multi-head self-attention over fields.

    Attributes:
        heads: Heads a layer.
        width: Width of one head.
        layers: Layers, each with a residual.
    """

    heads: int = Field(default=2, ge=1)
    width: int = Field(default=8, ge=1)
    layers: int = Field(default=2, ge=1)


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
        embedding_l2: L2 penalty on embedding tables.
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
    embedding_l2: float = Field(default=1e-5, ge=0)
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
