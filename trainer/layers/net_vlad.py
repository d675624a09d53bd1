"""NetVLAD: local features gathered around learned clusters.

B batch, M local features (frames, tokens), N their width, K clusters.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras
from trainer.layers.masked_softmax import masked_softmax


@keras.saving.register_keras_serializable("shortlist")
class NetVlad(keras.layers.Layer):
    r"""What the local features of a clip differ by from the cluster centres, eq. 7-9 of the classifier's paper::

        alpha_k(x_i) = softmax over k of  w_k^T x_i + b_k;   y_jk = sum_i alpha_k(x_i) (x_ij - c_kj)

    Where this differs from the print: eq. 8 has one w for all k, which would cancel out of the softmax; and y is
    divided by its length (Arandjelovic et al. 2016), so that it does not grow with the number of local features. Absent
    ones take no part; where all are absent y is zeros.

    Attributes:
        clusters: K.
    """

    def __init__(self, clusters: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.clusters = clusters

    def build(self, input_shape: Any) -> None:
        """Makes w, b and c."""
        width = int(input_shape[0][-1])
        self.kernel = self.add_weight("kernel", [width, self.clusters], initializer="glorot_uniform")
        self.bias = self.add_weight("bias", [self.clusters], initializer="zeros")
        self.centres = self.add_weight("centres", [self.clusters, width], initializer="glorot_uniform")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """(local features [B, M, N], mask [B, M]) to [B, K * N], cluster by cluster."""
        features, mask = inputs
        assigned = masked_softmax(features @ self.kernel + self.bias, mask[:, :, tf.newaxis])
        # sum_i alpha (x - c) = sum_i alpha x - (sum_i alpha) c: no [B, M, K, N] is made.
        near = tf.einsum("bmk,bmn->bkn", assigned, features)
        residual = near - tf.reduce_sum(assigned, axis=1)[:, :, tf.newaxis] * self.centres
        flat = tf.reshape(tf.cast(residual, tf.float32), [-1, self.clusters * features.shape[2]])
        return tf.cast(tf.math.l2_normalize(flat, axis=1), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "clusters": self.clusters}
