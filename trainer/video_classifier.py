"""The multimodal video classifier: sight, sound and title of a clip to its category, and to content vectors.

Source: "Multimodal Micro-video Classification Based on 3D Convolutional Neural Network" (NetVLAD, attention, late
fusion; eq. 1-13), with the private and shared networks of the recommendation paper (sections 3.1 and 3.4, eq. 10-11).

B batch, T frames, T' time steps of the network, S pixels, P x M a spectrogram, L words, D `width`, C categories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import tensorflow as tf
import tensorflow_transform as tft
from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from trainer.clip_data import read
from trainer.clip_export import export
from trainer.clip_training import ClipTrainingConfig, objective
from trainer.export import write_warm_up
from trainer.keras_version import keras
from trainer.layers.fields import AnyPresent, MaskedMean
from trainer.layers.frame_attention import FrameAttention, spread_over_frames
from trainer.layers.net_vlad import NetVlad
from trainer.layers.private_shared import difference_loss, private_shared, similarity_loss
from trainer.layers.title_encoder import title_encoder
from trainer.settings import Settings
from trainer.training import fit, is_chief, make_strategy, resumable_folder, until_exported
from trainer.visual.c2d import c2d
from trainer.visual.conv3d import conv3d
from trainer.visual.i3d import Stream, i3d, load_checkpoint
from trainer.visual.scene import Scene, joint_feature, scene_probabilities
from trainer.visual.two_stream import behaviour_scores
from transform.clip_settings import ClipSettings
from transform.clips import PRIMARY_CATEGORY, scale_frames, sizes
from transform.contract import ContractError

Tensors = dict[str, tf.Tensor]


class Config(Settings):
    """A video classifier.

    Attributes:
        visual: Network over frames: the paper's 3D network, I3D, or the 2D baseline, which sees no motion.
        filters: Of each block of `conv3d` and `c2d`.
        rgb_checkpoint: Weights of `i3d`, DeepMind's release (path without `.index`).
        flow_checkpoint: The same for optical flow.
        two_stream: A second network over optical flow, and the summed class scores of both (eq. 4).
        scene: VGG scene features, joined with the behaviour features (eq. 6); None leaves them out.
        sound_filters: Of each block of the sound network; None: no sound.
        title_width: Width of word vectors; None: no title.
        width: D, even.
        clusters: K of NetVLAD, for each modality.
        dropout: Before and after the fused vector.
        similarity: Weight of L_S.
        difference: Weight of L_D.
        behaviour: Weight of the cross-entropy of the behaviour scores, where there are any.
        secondary: Weight of the secondary category's cross-entropy; 0: it is not predicted.
    """

    visual: Literal["conv3d", "c2d", "i3d"] = "conv3d"
    filters: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), min_length=1)
    rgb_checkpoint: str | None = None
    flow_checkpoint: str | None = None
    two_stream: bool = False
    scene: Scene | None = None
    sound_filters: tuple[PositiveInt, ...] | None = Field(default=(16, 32, 64), min_length=1)
    title_width: int | None = Field(default=64, ge=1)
    width: int = Field(default=128, ge=2, multiple_of=2)
    clusters: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    similarity: float = Field(default=0.1, ge=0)
    difference: float = Field(default=0.1, ge=0)
    behaviour: float = Field(default=0.5, ge=0)
    secondary: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check_checkpoints(self) -> Self:
        if (self.rgb_checkpoint or self.flow_checkpoint) and self.visual != "i3d":
            raise ValueError("checkpoints are of `visual: i3d`")
        if self.flow_checkpoint and not self.two_stream:
            raise ValueError("flow_checkpoint needs `two_stream: true`")
        return self

    def check(self, clips: ClipSettings, vectors: Iterable[int] = ()) -> None:
        """Refuse what does not go together.

        Args:
            clips: What the model would see.
            vectors: Lengths of the content vectors that others expect of it.

        Raises:
            ContractError: The clips do not have what the model needs, or its vectors are of another length.
        """
        if self.two_stream and not clips.flow:
            raise ContractError(
                "model.two_stream: expected clips with optical flow, got none: set `flow: true` for clips"
            )
        if (self.visual == "i3d" or self.scene) and clips.size < 32:
            raise ContractError(
                f"model: i3d and scene need frames of at least 32 pixels, got size {clips.size} for clips"
            )
        if others := sorted(set(vectors) - {self.width}):
            raise ContractError(
                f"model.width: expected {others[0]}, the dimension that the contract gives content vectors, got "
                f"{self.width}: make them equal"
            )


def build_model(config: Config, clips: ClipSettings, sizes: Mapping[str, int]) -> keras.Model:
    """The model that `config` describes, over decoded clips; `losses` is what it is trained with.

    Args:
        config: Architecture and sizes.
        clips: T, S, P, M and whether there is flow.
        sizes: Rows of the `title` embedding (0 is padding), and how many `primary_category` and `secondary_category`
            there are.

    Returns:
        From {frames [B, T, S, S, 3] (0 to 255), flow [B, T, S, S, 2] (with `two_stream`), sound [B, T, P, M] and
        has_audio [B] (with `sound_filters`), title int64 [B, L] (with `title_width`)} to, all float32:

        - probabilities and logits [B, C]; secondary and secondary_logits with `config.secondary`;
        - visual, audio, text and fused [B, D]: zeros where a modality is missing. With sound, visual and audio are a
          private and a shared vector of D / 2 each;
        - frame_vectors [B, T, D] and frame_attention [B, T], which sums to 1. The network may see several frames as one
          time step: its vector is then that of each, and its weight is divided among them;
        - behaviour [B, C] (eq. 4), with `two_stream` or `scene`.

    Raises:
        ContractError: The clips do not have what the config needs, or weights do not fit.
    """
    config.check(clips)
    inputs = _inputs(config, clips)
    streams = _streams(config, clips, inputs)
    local = keras.layers.Dense(config.width, "relu")(_concatenate(streams))
    steps = tf.ones_like(local[:, :, 0])
    attended, attention = FrameAttention(name="key_frames")((local, steps))
    vectors = {"visual": _descriptor(config, local, steps, attended)}
    if config.sound_filters:
        vectors |= {"audio": _sound(config, config.sound_filters, inputs)}
        vectors = private_shared(vectors, config.width // 2)
        vectors["audio"] *= tf.cast(inputs["has_audio"], vectors["audio"].dtype)[:, tf.newaxis]
    if config.title_width:
        vectors["text"] = _title(config, config.title_width, inputs["title"], sizes["title"])
    outputs: Tensors = {}
    classes = sizes["primary_category"]
    joint = []
    if config.two_stream or config.scene:
        outputs["behaviour"] = behaviour_scores(streams, classes)
        joint = [_joint(config, inputs["frames"], outputs["behaviour"])]
    dropped = keras.layers.Dropout(config.dropout)(_concatenate([*vectors.values(), *joint]))
    fused = keras.layers.Dense(config.width, "relu", name="fused")(dropped)
    outputs |= _heads(config, fused, sizes)
    absent = tf.zeros_like(vectors["visual"])
    outputs |= {name: vectors.get(name, absent) for name in ("visual", "audio", "text")} | {"fused": fused}
    weights = spread_over_frames(attention, clips.frames)
    outputs["frame_vectors"] = spread_over_frames(local, clips.frames)
    outputs["frame_attention"] = weights / tf.reduce_sum(weights, axis=1, keepdims=True)
    return keras.Model(inputs, {name: tf.cast(x, tf.float32) for name, x in outputs.items()}, name="video_classifier")


def losses(
    config: Config, inputs: Tensors, outputs: Tensors, labels: Tensors, class_weights: tf.Tensor | None = None
) -> Tensors:
    """What training minimises, and its parts.

    Args:
        config: Weights of the parts.
        inputs: Of the model; has_audio says where there is sound.
        outputs: Of the model.
        labels: primary_category (and secondary_category) int64 [B]; below 0 is unknown and takes no part.
        class_weights: [C] for the primary category; 1 for all if None.

    Returns:
        Scalars by name: `loss`, the weighted sum, and each part without its weight (`cross_entropy` and so on).
    """
    primary = labels["primary_category"]
    weights = {"cross_entropy": 1.0}
    parts = {"cross_entropy": _cross_entropy(outputs["logits"], primary, class_weights)}
    if config.secondary:
        weights["secondary"] = config.secondary
        parts["secondary"] = _cross_entropy(outputs["secondary_logits"], labels["secondary_category"], None)
    if "behaviour" in outputs:
        weights["behaviour"] = config.behaviour
        # log of the scores: their softmax is the scores divided by their sum.
        parts["behaviour"] = _cross_entropy(tf.math.log(outputs["behaviour"] + 1e-7), primary, class_weights)
    if config.sound_filters:
        weights |= {"similarity": config.similarity, "difference": config.difference}
        parts |= _branch_losses(outputs["visual"], outputs["audio"], tf.cast(inputs["has_audio"], tf.float32))
    return {"loss": tf.add_n([weights[name] * part for name, part in parts.items()]), **parts}


def _branch_losses(visual: tf.Tensor, audio: tf.Tensor, has_audio: tf.Tensor) -> Tensors:
    """L_S and L_D of the two halves, private and shared, of both modalities' vectors."""
    visual_private, visual_shared = tf.split(visual, 2, axis=1)
    audio_private, audio_shared = tf.split(audio, 2, axis=1)
    difference = difference_loss(visual_private, visual_shared, tf.ones_like(has_audio))
    difference += difference_loss(audio_private, audio_shared, has_audio)
    return {"similarity": similarity_loss(visual_shared, audio_shared, has_audio), "difference": difference}


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor, class_weights: tf.Tensor | None) -> tf.Tensor:
    """Mean over the rows with a known label of the cross-entropy in nats, times the weight of the row's class."""
    known = tf.cast(labels >= 0, tf.float32)
    labels = tf.maximum(labels, 0)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    weight = known if class_weights is None else known * tf.gather(class_weights, labels)
    return tf.reduce_sum(entropy * weight) / tf.maximum(tf.reduce_sum(known), 1.0)


def _inputs(config: Config, clips: ClipSettings) -> Tensors:
    """Keras casts what it is fed (uint8 frames, a bool has_audio) to these types."""
    pixels = (clips.frames, clips.size, clips.size)
    shapes: dict[str, tuple[int | None, ...]] = {"frames": (*pixels, 3)}
    if config.two_stream:
        shapes["flow"] = (*pixels, 2)
    if config.sound_filters:
        shapes |= {"sound": (clips.frames, clips.sound_steps, clips.mels), "has_audio": ()}
    inputs = {name: keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()}
    if config.title_width:
        inputs["title"] = keras.Input((None,), name="title", dtype="int64")
    return inputs


def _streams(config: Config, clips: ClipSettings, inputs: Tensors) -> list[tf.Tensor]:
    """[B, T', F] of each stream: RGB, and flow if there are two."""
    streams = [_visual(config, clips, scale_frames(inputs["frames"]), "RGB", config.rgb_checkpoint)]
    if config.two_stream:
        streams.append(_visual(config, clips, inputs["flow"], "Flow", config.flow_checkpoint))
    return streams


def _visual(config: Config, clips: ClipSettings, clip: tf.Tensor, stream: Stream, checkpoint: str | None) -> tf.Tensor:
    if config.visual == "conv3d":
        return conv3d(clip, config.filters)
    if config.visual == "c2d":
        return c2d(clip, config.filters)
    network = i3d(stream, clips.frames, clips.size)
    if checkpoint:
        load_checkpoint(network, checkpoint)
    return network(clip)


def _sound(config: Config, filters: tuple[int, ...], inputs: Tensors) -> tf.Tensor:
    """The descriptor [B, D] of sound: the 3D network over the sequence of spectrograms, one channel each."""
    features = conv3d(tf.expand_dims(inputs["sound"], -1), filters, "clip")
    local = keras.layers.Dense(config.width, "relu")(features)
    mask = tf.cast(inputs["has_audio"][:, tf.newaxis], local.dtype) * tf.ones_like(local[:, :, 0])
    attended, _ = FrameAttention()((local, mask))
    return _descriptor(config, local, mask, attended)


def _title(config: Config, width: int, title: tf.Tensor, rows: int) -> tf.Tensor:
    """The text vector [B, D]; zeros for an empty title."""
    words, mask = title_encoder(title, rows, width)
    vector = _descriptor(config, words, mask, MaskedMean()((words, mask)))
    return vector * AnyPresent()(mask)[:, tf.newaxis]


def _descriptor(config: Config, local: tf.Tensor, mask: tf.Tensor, pooled: tf.Tensor) -> tf.Tensor:
    """A modality's clusters and its pooled vector, brought to [B, D]."""
    clusters = NetVlad(config.clusters)((local, mask))
    return keras.layers.Dense(config.width)(keras.layers.Concatenate()([clusters, pooled]))


def _joint(config: Config, frames: tf.Tensor, behaviour: tf.Tensor) -> tf.Tensor:
    """Behaviour features, multiplied with scene features where there are any."""
    return joint_feature(behaviour, scene_probabilities(frames, config.scene)) if config.scene else behaviour


def _heads(config: Config, fused: tf.Tensor, sizes: Mapping[str, int]) -> Tensors:
    hidden = keras.layers.Dropout(config.dropout)(fused)
    logits = keras.layers.Dense(sizes["primary_category"], name="logits", dtype="float32")(hidden)
    outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits)}
    if config.secondary:
        second = keras.layers.Dense(sizes["secondary_category"], name="secondary_logits", dtype="float32")(hidden)
        outputs |= {"secondary_logits": second, "secondary": tf.nn.softmax(second)}
    return outputs


def _concatenate(parts: list[tf.Tensor]) -> tf.Tensor:
    return keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]


def run_fn(fn_args: Any) -> None:
    """Trains and exports one video classifier: what TFX's Trainer calls.

    Args:
        fn_args: TFX's FnArgs with `raw_files`, as `components.trainer` makes them. `custom_config` holds `clips`
            (JSON), `model` and `training` (keys of `Config` and `ClipTrainingConfig`) and `checkpoint_dir` (where an
            unfinished training of the same inputs is kept).
    """
    given = fn_args.custom_config
    settings = ClipSettings.from_json(given["clips"])
    config = Config.of(given.get("model", {}), "model")
    training = ClipTrainingConfig.of(given.get("training", {}), "training")
    config.check(settings)
    strategy = make_strategy(training)
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    inputs = list(_inputs(config, settings))
    train = read(fn_args.train_files, settings, transform_output, inputs, training.augmentation)
    valid = read(fn_args.eval_files, settings, transform_output, inputs)
    rows = sizes(transform_output)
    if len(set(train.labels.tolist())) < 2:
        raise ContractError("expected clips of two primary categories or more to learn from, got only one: add others")
    weights = train.class_weights(rows[PRIMARY_CATEGORY]) if training.class_weights == "balanced" else None
    goal = objective(lambda inputs, outputs, labels: losses(config, inputs, outputs, labels, weights)["loss"])
    checkpoint_dir = resumable_folder(fn_args, train, valid)
    build = partial(build_model, config, settings, rows)
    with until_exported(checkpoint_dir, strategy):
        model = fit(build, train, valid, goal, training, strategy, checkpoint_dir, fn_args.model_run_dir)
        if is_chief():
            export(model, settings, transform_output, fn_args.serving_model_dir)
            write_warm_up(fn_args.raw_files, fn_args.serving_model_dir)
            names = [name.decode() for name in transform_output.vocabulary_by_name(PRIMARY_CATEGORY)]
            with tf.io.gfile.GFile(f"{fn_args.model_run_dir}/classes.json", "w") as file:
                file.write(json.dumps(names))
