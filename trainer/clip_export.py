"""The exporter of video classifiers: what is evaluated, served, and embeds the world's videos is one SavedModel.

B batch, C categories, D width of the content vectors, T frames. Two signatures, both from `examples`, string [B],
serialized clip examples (`transform/clips.py`):

- `serving_default`: probabilities float [B, C], all_classes string [B, C] (their names), predicted_class string [B];
- `embed`: video_id string [B]; visual, audio, text and fused float [B, D], zeros where a modality is missing;
  frame_vectors float [B, T, D], frame_attention float [B, T] and frame_times float [B, T] (seconds).

Whoever loads it imports tensorflow_text for its ops, which a stock TF Serving has.
"""

from __future__ import annotations

import tensorflow as tf
import tensorflow_transform as tft

from trainer.captured import save
from trainer.clip_data import decode, transform
from trainer.keras_version import keras
from transform import clips
from transform.clip_settings import SHAPE_FILE, ClipSettings

VECTORS = ("visual", "audio", "text", "fused", "frame_vectors", "frame_attention")

Tensors = dict[str, tf.Tensor]


class _Serving(tf.Module):
    """Holds what the signatures capture."""

    def __init__(self, model: keras.Model, settings: ClipSettings, transform_output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.weights = model.variables
        self.tft_layer = transform_output.transform_features_layer()
        self._settings = settings
        self._classes = transform_output.vocabulary_by_name(clips.PRIMARY_CATEGORY)

    def signatures(self, model: keras.Model) -> dict[str, tf.types.experimental.ConcreteFunction]:
        def answer(raw: Tensors) -> Tensors:
            inputs = {**decode(raw, self._settings), clips.TITLE: transform(self.tft_layer, raw)[clips.TITLE]}
            return model({name: inputs[name] for name in model.input_names}, training=False)

        def serving_default(examples: tf.Tensor) -> Tensors:
            probabilities = answer(self._parse(examples))["probabilities"]
            names = tf.constant(self._classes)
            return {
                "probabilities": probabilities,
                "all_classes": tf.repeat(names[tf.newaxis], tf.shape(probabilities)[0], axis=0),
                "predicted_class": tf.gather(names, tf.argmax(probabilities, axis=1)),
            }

        def embed(examples: tf.Tensor) -> Tensors:
            raw = self._parse(examples)
            answered = answer(raw)
            kept = {name: raw[name] for name in (clips.VIDEO_ID, clips.FRAME_TIMES)}
            return {**{name: answered[name] for name in VECTORS}, **kept}

        # No AutoGraph: nothing here needs it, and it would convert all of tf_keras.
        examples = tf.TensorSpec([None], tf.string, "examples")
        return {
            function.__name__: tf.function(function, autograph=False).get_concrete_function(examples)
            for function in (serving_default, embed)
        }

    def _parse(self, examples: tf.Tensor) -> Tensors:
        return tf.io.parse_example(examples, clips.parse_spec(self._settings))


def export(model: keras.Model, settings: ClipSettings, transform_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes the SavedModel of `model` with decoding and preprocessing to `directory`.

    Args:
        model: As `trainer.video_classifier.build_model` makes it, computing in float32.
        settings: The shape of clips.
        transform_output: What Transform wrote.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.
    """
    serving = _Serving(model, settings, transform_output)
    save(serving, serving.signatures(model), directory)
    path = f"{directory}/{SHAPE_FILE}"
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(settings.shape)
