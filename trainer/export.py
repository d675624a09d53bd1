"""One exporter for all ranking models: what is evaluated is what is served.

B batch, M modalities. The SavedModel answers with three signatures, all written here by one inner function:

- `serving_default`: `examples`, string [B], serialized tf.Examples of raw features, any of which may be missing;
- `raw`: the same features as named tensors, so that models compose in one graph without parsing again: id and text
  string [B], ids and history string [B, any] padded with '', number float [B] (NaN = missing), vector float [B, D]
  (zeros = missing);
- `transform_features`: `examples` to transformed features, for evaluation.

The first two give `score` float [B] and, from models that choose among modalities, `modality_weights` float [B, M].
Only ops of a stock TF Serving occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from trainer.captured import save
from trainer.keras_version import keras
from transform.contract import Contract, Feature, Kind
from transform.schema import parse_spec

_WARM_UP_ROWS = 8

Tensors = dict[str, tf.Tensor]


class _Serving(tf.Module):
    """Holds what the signatures capture."""

    def __init__(self, model: keras.Model, contract: Contract, transform_output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.weights = model.variables
        self.tft_layer = transform_output.transform_features_layer()
        self._contract = contract

    def signatures(self, model: keras.Model) -> dict[str, tf.types.experimental.ConcreteFunction]:
        spec = parse_spec(self._contract)

        def answer(raw: Tensors) -> Tensors:
            return model(self._transform(raw), training=False)

        def serving_default(examples: tf.Tensor) -> Tensors:
            return answer(tf.io.parse_example(examples, spec))

        def raw(**features: tf.Tensor) -> Tensors:
            return answer({f.name: _sparse(f, features[f.name]) for f in self._contract.inputs})

        def transform_features(examples: tf.Tensor) -> Tensors:
            return self._transform(tf.io.parse_example(examples, spec))

        # No AutoGraph: nothing here needs it, and it would convert all of tf_keras.
        examples = tf.TensorSpec([None], tf.string, "examples")
        tensors = {f.name: _tensor_spec(f) for f in self._contract.inputs}
        return {
            "serving_default": tf.function(serving_default, autograph=False).get_concrete_function(examples),
            "raw": tf.function(raw, autograph=False).get_concrete_function(**tensors),
            "transform_features": tf.function(transform_features, autograph=False).get_concrete_function(examples),
        }

    def _transform(self, raw: Tensors) -> Tensors:
        transformed = self.tft_layer(raw)
        return {f.name: transformed[f.name] for f in self._contract.inputs}


def export(model: keras.Model, contract: Contract, transform_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes the SavedModel of `model` with its preprocessing to `directory`.

    Args:
        model: From transformed features to `score`, as `trainer.ranker.build_model` makes it, computing in float32.
        contract: The features.
        transform_output: What Transform wrote.
        directory: Where to; made if need be. Files of the SavedModel's names are overwritten, others stay.
    """
    serving = _Serving(model, contract, transform_output)
    save(serving, serving.signatures(model), directory)


def write_warm_up(raw_files: Sequence[str], directory: str) -> None:
    """Writes requests made of real examples into a SavedModel, which a server answers before any traffic reaches it.

    Args:
        raw_files: Patterns of TFRecord files of raw tf.Examples, compressed by GZIP; the first few are taken.
        directory: Of the SavedModel, which has the signature `serving_default` of `examples`.
    """
    files = tf.io.gfile.glob(list(raw_files))
    rows = list(tf.data.TFRecordDataset(sorted(files), "GZIP").take(_WARM_UP_ROWS).as_numpy_iterator())
    folder = tf.io.gfile.join(directory, "assets.extra")
    tf.io.gfile.makedirs(folder)
    with tf.io.TFRecordWriter(tf.io.gfile.join(folder, "tf_serving_warmup_requests")) as writer:
        for batch in filter(None, (rows[:1], rows)):
            request = predict_pb2.PredictRequest(inputs={"examples": tf.make_tensor_proto(batch, tf.string)})
            log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
            writer.write(log.SerializeToString())


def transformed(layer: Any, contract: Contract, raw: Mapping[str, Any], batch: tf.Tensor) -> Tensors:
    """Transformed features of some raw ones; those that are not given are missing, which an empty example says best.

    Args:
        layer: `TFTransformOutput.transform_features_layer()`.
        contract: The features.
        raw: Some of them, parsed.
        batch: How many examples.
    """
    rest = {name: how for name, how in parse_spec(contract).items() if name not in raw}
    missing = tf.io.parse_example(tf.fill([batch], ""), rest) if rest else {}
    return dict(layer({**missing, **raw}))


def _tensor_spec(feature: Feature) -> tf.TensorSpec:
    if feature.kind is Kind.VECTOR:
        return tf.TensorSpec([None, feature.dimension], tf.float32, feature.name)
    if feature.kind is Kind.NUMBER:
        return tf.TensorSpec([None], tf.float32, feature.name)
    return tf.TensorSpec([None, None] if feature.kind in (Kind.IDS, Kind.HISTORY) else [None], tf.string, feature.name)


def _sparse(feature: Feature, values: tf.Tensor) -> tf.Tensor | tf.SparseTensor:
    """Lists as preprocessing takes them: without the padding."""
    return tf.sparse.from_dense(values) if feature.kind in (Kind.IDS, Kind.HISTORY) else values
