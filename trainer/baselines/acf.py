"""Attentive collaborative filtering: which videos of the history, and which parts of a video, matter to this user.

Source: Chen et al. 2017, "Attentive collaborative filtering: multimedia recommendation with item- and component-level
attention", eq. 5 (score), 6-7 (item level), 9-11 (component level). Differences: the parts are the modality vectors, as
the MHSA-crossing paper has it, and of the candidate, since a request carries no content of watched videos; one table
serves as item vector and as auxiliary item vector; the loss is cross-entropy as for every ranker here, and the
first-order part joins as the biases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from trainer.inputs import Fields
from trainer.layers.user_guided_attention import UserGuidedAttention
from transform.contract import ContractError

if TYPE_CHECKING:
    from trainer.ranker import Config


def build(fields: Fields, config: Config) -> tf.Tensor:
    """Logit = <u + sum_l a(u, l) p_l, v + sum_m b(u, m) x_m> + biases, [B, 1].

    Raises:
        ContractError: The contract has no derived history.
    """
    if fields.history is None:
        raise ContractError(
            "architecture acf: expected a contract with a feature of kind history and a derived source, got none: "
            "add `source: derived.user_history`, or choose another architecture"
        )
    width = config.embedding_width
    watched, _ = UserGuidedAttention(width, name="item_attention")((fields.user, fields.history, fields.history_mask))
    video = fields.video
    if fields.modalities is not None:
        content, _ = UserGuidedAttention(width, name="component_attention")(
            (fields.user, fields.modalities, fields.modality_mask)
        )
        video += content
    return fields.linear + tf.reduce_sum((fields.user + watched) * video, axis=1, keepdims=True)
