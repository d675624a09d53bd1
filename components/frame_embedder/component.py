"""The TFX component that says what each candidate for a cover looks like."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.frame_embedder.artifact import FrameVectors
from components.frame_embedder.executor import Executor


class FrameEmbedderSpec(ComponentSpec):
    """A world and settings in; `frames` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
    }
    INPUTS = {"clips": ChannelParameter(type=standard_artifacts.Examples, optional=True)}
    OUTPUTS = {"frames": ChannelParameter(type=FrameVectors)}


class FrameEmbedder(base_beam_component.BaseBeamComponent):
    """Writes one frame example a video: the pictures its cover may be chosen from, each with a vector.

    They are the key frames that ClipExampleGen found, or else the files `frame_paths`, or `cover_path` alone. Where
    the videos come with `frame_vectors` (encoder `given`), these are of the video's own files, whatever its clip
    has. A video without any has an example without frames; a picture that cannot be read keeps its place, without a
    vector.

    Args:
        world: Folder of the table `videos`; relative paths start there.
        world_fingerprint: What videos and pictures are known by: no other use than that unchanged ones hit the cache.
        settings_json: `FrameSettings.model_dump_json()`.
        clips: Output of the ClipExampleGen that must be done before; None: there are no key frames.

    Outputs: `frames` (FrameVectors), with the custom properties `videos`, `pictures` and `bad_pictures`.
    """

    SPEC_CLASS = FrameEmbedderSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self, world: str, world_fingerprint: str, settings_json: str, clips: types.BaseChannel | None = None
    ) -> None:
        spec = FrameEmbedderSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            settings_json=settings_json,
            clips=clips,
            frames=types.Channel(type=FrameVectors),
        )
        super().__init__(spec=spec)
