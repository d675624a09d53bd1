"""How frames are described. Light, so that configurations are checked at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FrameSettings(BaseModel):
    """How frames are described.

    Attributes:
        encoder: `colours` needs no weights: hues, brightness and edges of each quarter of a picture. `vgg19` is the
            paper's: 4,096 values of the layer fc2. `given` takes the column `frame_vectors` of the videos: the values
            of all pictures of a video one behind the other, or of one frame where it has no picture.
        weights: File of Keras's VGG19 with its top layers; `vgg19` needs one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Literal["colours", "vgg19", "given"] = "colours"
    weights: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_weights(self) -> FrameSettings:
        if (self.encoder == "vgg19") is (self.weights is None):
            raise ValueError(
                "frames: encoder vgg19 needs `weights: FILE` (Keras's vgg19_weights_tf_dim_ordering_tf_kernels.h5), "
                "and no other takes any"
            )
        return self
