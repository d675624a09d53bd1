"""What ServingCheck found. Light: the report reads it too."""

from __future__ import annotations

from dataclasses import dataclass

CHECK_FILE = "check.json"  # of the artifact: every bound


@dataclass(frozen=True)
class Bound:
    """One thing that was measured, and how much of it there may be; `got` is None where it was never reached."""

    metric: str
    at_most: float
    got: float | None

    @property
    def passed(self) -> bool:
        """Whether it was measured and is within the bound."""
        return self.got is not None and self.got <= self.at_most
