"""Multi-gate mixture of experts: tasks share experts, and each mixes them in its own way.

B batch, D width of the input, H experts, U units of an expert, N tasks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.keras_version import keras


@keras.saving.register_keras_serializable("shortlist")
class MixtureOfExperts(keras.layers.Layer):
    r"""MMoE (Ma et al. 2018), eq. 1 of the topic paper::

        f^k(z) = sum_i g^k(z)_i f_i(z),   f_i(z) = ReLU(W_i z + b_i),   g^k(z) = softmax(G_k z)

    Attributes:
        experts: H.
        units: U.
        tasks: N.
    """

    def __init__(self, experts: int, units: int, tasks: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.experts, self.units, self.tasks = experts, units, tasks

    def build(self, input_shape: Any) -> None:
        """Makes all experts as one matrix, and all gates as another."""
        width = int(input_shape[-1])
        # Side by side: Glorot's bound of the joint matrix would be that of one wide layer, not of H of U units.
        bound = (6 / (width + self.units)) ** 0.5
        initial = keras.initializers.RandomUniform(-bound, bound)
        self.kernel = self.add_weight("kernel", [width, self.experts * self.units], initializer=initial)
        self.bias = self.add_weight("bias", [self.experts * self.units], initializer="zeros")
        self.gates = self.add_weight("gates", [width, self.tasks * self.experts], initializer="glorot_uniform")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[B, D] to [B, N, U]."""
        experts = tf.reshape(tf.nn.relu(inputs @ self.kernel + self.bias), [-1, self.experts, self.units])
        gates = tf.nn.softmax(tf.reshape(inputs @ self.gates, [-1, self.tasks, self.experts]))
        return gates @ experts

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "experts": self.experts, "units": self.units, "tasks": self.tasks}
