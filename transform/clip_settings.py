"""What a clip is made of: how many frames of which size, how much sound, and which files are refused.

Light: neither TensorFlow nor anything else that is slow, so that configurations are checked at once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transform.contract import ContractError, did_you_mean

SHAPE_FILE = "assets.extra/clips.json"  # of a SavedModel that reads clips or covers: what shape these must have


class ClipSettings(BaseModel):
    """The shape of clips, shared by the component that writes them and the models that read them.

    Attributes:
        frames: T, frames a clip.
        size: S, height and width of a frame in pixels.
        sampling: "uniform": the middles of T equal parts of the file; "consecutive": T frames at `sampling_fps` from
            the middle of the file.
        sampling_fps: Frames a second of "consecutive".
        jpeg_quality: 1 to 100.
        flow: Whether optical flow from each frame to the next one in the file is stored too.
        sound_rate: Samples a second that sound is brought to.
        sound_steps: P, windows of sound a frame.
        mels: M, mel bands a window.
        key_frames: K, candidates for the cover a video; 0: none.
        key_frame_size: Shorter side of their pictures, at most, in pixels.
        max_pixels: Largest frame (width times height) that is decoded.
        max_seconds: Longest file.
        max_frames: Most frames a file may have by its header (or rate times duration).
        max_decode_seconds: After so long a file is given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    frames: int = Field(default=32, ge=1, le=1024)
    size: int = Field(default=224, ge=8, le=1024)
    sampling: Literal["uniform", "consecutive"] = "uniform"
    sampling_fps: float = Field(default=16.0, gt=0, le=1000)
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    flow: bool = False
    sound_rate: int = Field(default=16_000, ge=4_000, le=96_000)
    sound_steps: int = Field(default=16, ge=1)
    mels: int = Field(default=64, ge=1)
    key_frames: int = Field(default=8, ge=0, le=64)
    key_frame_size: int = Field(default=360, ge=16, le=4096)
    max_pixels: int = Field(default=4096 * 2304, ge=64, lt=2**31)
    max_seconds: float = Field(default=3600.0, gt=0)
    max_frames: int = Field(default=250_000, ge=2)
    max_decode_seconds: float = Field(default=120.0, gt=0)

    @property
    def shape(self) -> str:
        """What a model must be made for to read clips of these settings: arrays of that form and that meaning."""
        return self.model_dump_json(
            include={"frames", "size", "flow", "sampling", "sampling_fps", "sound_rate", "sound_steps", "mels"}
        )

    def to_json(self) -> str:
        """The settings as JSON, for `from_json`: how they travel to components."""
        return self.model_dump_json(exclude_unset=True)

    @classmethod
    def from_json(cls, text: str) -> ClipSettings:
        """The settings in a text such as `{"frames": 16, "size": 64}`; what is left out has its default.

        Raises:
            ContractError: Not JSON, a key is unknown, or a value is out of range.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ContractError("\n".join(_explain(detail) for detail in error.errors())) from error


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = list(ClipSettings.model_fields)
        return f"clip settings: unknown key {key!r}{did_you_mean(key, known)}: allowed are {', '.join(known)}"
    return f"clip settings, {key or 'the whole'}: {detail['msg']}, got {detail['input']!r}: mend the config"
