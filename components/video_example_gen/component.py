"""The TFX component that turns a world's table of videos into tf.Examples."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.video_example_gen.executor import Executor


class VideoExampleGenSpec(ComponentSpec):
    """A world, a contract, the size of covers and splits in; `examples` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "contract_json": ExecutionParameter(type=str),
        "cover_size": ExecutionParameter(type=int),
        "splits_json": ExecutionParameter(type=str),
    }
    INPUTS = {"clips": ChannelParameter(type=standard_artifacts.Examples, optional=True)}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class VideoExampleGen(base_beam_component.BaseBeamComponent):
    """Writes one video example (`transform.videos`) a video, with its cover brought to one size.

    The cover is the file `cover_path`, else the first of the key frames that ClipExampleGen found. A video without
    either, or whose cover is no picture, has none.

    Args:
        world: Folder of the table `videos`; relative paths of covers start there.
        world_fingerprint: What videos and covers are known by: no other use than that unchanged ones hit the cache.
        contract_json: `Contract.to_json()`, which says what the title is.
        cover_size: Height and width of covers in pixels.
        splits_json: `{"by": "hash" or "time", "train": 0.8, "valid": 0.1, "test": 0.1}`; either never separates the
            videos of one `group_id`.
        clips: Output of the ClipExampleGen that must be done before; None: covers are those of `cover_path` alone.

    Outputs: `examples` (Examples) with the splits train, valid and test in gzip TFRecords, and beside them
    `summary.json`. Custom properties: `rows`, `rows_train`, `rows_valid`, `rows_test`, `with_cover`, `bad_covers`.
    """

    SPEC_CLASS = VideoExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        world: str,
        world_fingerprint: str,
        contract_json: str,
        cover_size: int,
        splits_json: str,
        clips: types.BaseChannel | None = None,
    ) -> None:
        spec = VideoExampleGenSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            contract_json=contract_json,
            cover_size=cover_size,
            splits_json=splits_json,
            clips=clips,
            examples=types.Channel(type=standard_artifacts.Examples),
        )
        super().__init__(spec=spec)
