"""How topics are learned. Light, so that configurations are checked at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TopicSettings(BaseModel):
    """How topics are learned; the paper's values where it prints any, but for 6,000 topics of 3 million videos.

    Attributes:
        topics: K, at most.
        threshold: tau_3: a video has every topic whose centre is at least so similar (cosine).
        most: Topics of a video, at most.
        tag_width: Width of a tag's vector.
        walks: Random walks from each tag.
        walk_length: Tags of a walk.
        seed: Of walks, skip-gram and clustering.
        cover_size: Height and width, in pixels, that covers are brought to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    topics: int = Field(default=128, ge=1)
    threshold: float = Field(default=0.6, ge=-1, le=1)
    most: int = Field(default=8, ge=1)
    tag_width: int = Field(default=64, ge=1)
    walks: int = Field(default=10, ge=1)
    walk_length: int = Field(default=100, ge=2)
    seed: int = Field(default=0, ge=0)
    cover_size: int = Field(default=96, ge=8)
