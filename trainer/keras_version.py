"""Keras 2, checked once: TFRS and TFT need it, and TensorFlow 2.16 gives Keras 3 unless told otherwise.

Modules of `trainer` write `from trainer.keras_version import keras` where they need Keras. TensorFlow loads `tf.keras`
when it is first touched, so importing `tensorflow` before this module does no harm.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow as tf

keras = tf.keras

if not keras.Model.__module__.startswith("tf_keras"):
    raise ImportError(
        f"expected Keras 2 (package tf_keras) behind tf.keras, got {keras.Model.__module__}: something touched "
        "tf.keras before trainer was imported; set TF_USE_LEGACY_KERAS=1 in the environment"
    )

__all__ = ["keras"]
