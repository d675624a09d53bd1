"""The TFX component that turns a world's media into tf.Examples of clips."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.clip_example_gen.executor import Executor


class ClipExampleGenSpec(ComponentSpec):
    """A world, a contract, settings and splits in; `examples` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "contract_json": ExecutionParameter(type=str),
        "settings_json": ExecutionParameter(type=str),
        "splits_json": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class ClipExampleGen(base_beam_component.BaseBeamComponent):
    """Decodes every video with a `media_path` into frames and sound, and picks candidates for its cover.

    A file that gives no clip costs a row of `rejected.parquet`, not the run.

    Args:
        world: Folder of the table `videos`; relative media paths start there.
        world_fingerprint: `media.fingerprint(world)`: no other use than that unchanged media hit the cache, and changed
            ones do not.
        contract_json: `Contract.to_json()`, which says what the title is.
        settings_json: `ClipSettings.to_json()`.
        splits_json: `{"by": "hash" or "time", "train": 0.8, "valid": 0.1, "test": 0.1}`; either never separates the
            videos of one `group_id`.

    Outputs: `examples` (Examples) with the splits train, valid and test in gzip TFRecords of the clip example
    (`transform.clips`), and beside them `summary.json` and `rejected.parquet`. Custom properties: `rows`, `rows_train`,
    `rows_valid`, `rows_test`, `rejected`, `without_media`, `with_audio`, `key_frames`, `bytes_per_clip`. In the world:
    `key_frames/` and the table `key_frames` (video_id, frame_index, at_seconds, path).
    """

    SPEC_CLASS = ClipExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self, world: str, world_fingerprint: str, contract_json: str, settings_json: str, splits_json: str
    ) -> None:
        spec = ClipExampleGenSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            contract_json=contract_json,
            settings_json=settings_json,
            splits_json=splits_json,
            examples=types.Channel(type=standard_artifacts.Examples),
        )
        super().__init__(spec=spec)
