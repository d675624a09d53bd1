"""The TFX component that turns a world's interactions into tf.Examples."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.content_embedder.artifact import ContentVectors
from components.frame_embedder.artifact import FrameVectors
from components.impression_example_gen.executor import ROWS_PER_PARTITION, Executor
from components.topic_learner.artifact import Topics


class ImpressionExampleGenSpec(ComponentSpec):
    """A world, a contract, the splits, and what was learned of videos in; `examples` out."""

    PARAMETERS = {
        "world": ExecutionParameter(type=str),
        "world_fingerprint": ExecutionParameter(type=str),
        "contract_json": ExecutionParameter(type=str),
        "splits_json": ExecutionParameter(type=str),
        "rows_per_partition": ExecutionParameter(type=int),
    }
    INPUTS = {
        "content": ChannelParameter(type=ContentVectors, optional=True),
        "topics": ChannelParameter(type=Topics, optional=True),
        "frames": ChannelParameter(type=FrameVectors, optional=True),
    }
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class ImpressionExampleGen(base_beam_component.BaseBeamComponent):
    """Joins interactions with users and videos, and lets each know only what came strictly before it.

    Args:
        world: Folder of the tables users, videos and interactions.
        world_fingerprint: `components.world.tables.fingerprint(world)`: no other use than that unchanged worlds hit the
            cache, and changed ones do not.
        contract_json: `Contract.to_json()`.
        splits_json: `{"by": "time" or "hash", "train": 0.8, "valid": 0.1, "test": 0.1}`.
        content: Content vectors of videos (ContentVectors); None: sources `content.*_vector` are missing everywhere.
        topics: Topics of videos (Topics); None: the source `content.topics` is missing everywhere.
        frames: Looks of videos (FrameVectors); None: the source `content.look_vector` is missing everywhere.
        rows_per_partition: About how many interactions a worker holds at once.

    Outputs: `examples` (Examples) with the splits train, valid and test in gzip TFRecords of tf.Examples, and beside
    them `catalogue/` (a tf.Example a video, of what is known of it besides events), `summary.json` and, where rows were
    refused, `rejected-*.parquet`. Custom properties: `rows`, `rows_train`,
    `rows_valid`, `rows_test`, `neutral`, `rejected`.
    """

    SPEC_CLASS = ImpressionExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        world: str,
        world_fingerprint: str,
        contract_json: str,
        splits_json: str,
        content: types.BaseChannel | None = None,
        topics: types.BaseChannel | None = None,
        frames: types.BaseChannel | None = None,
        rows_per_partition: int = ROWS_PER_PARTITION,
    ) -> None:
        spec = ImpressionExampleGenSpec(
            world=world,
            world_fingerprint=world_fingerprint,
            contract_json=contract_json,
            splits_json=splits_json,
            rows_per_partition=rows_per_partition,
            content=content,
            topics=topics,
            frames=frames,
            examples=types.Channel(type=standard_artifacts.Examples),
        )
        super().__init__(spec=spec)
