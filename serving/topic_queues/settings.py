"""What the queues are made and read by."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

SHARED = ("redis://", "rediss://")  # addresses of stores that many machines reach


class QueueSettings(BaseModel):
    """The paper's numbers, and what it leaves open.

    A video that was shown `min_exposures` times or more is in the queues of its topics if its click-through rate is
    `min_click_rate` or more. One shown less often is fresh: a random `fresh_share` of them is in the queues, drawn
    anew with each snapshot. (The paper fills a tenth of each queue with fresh videos instead: as long as nothing had
    passed the thresholds that would be none at all.)

    The order is that of the smoothed rate (clicked + strength * prior) / (shown + strength): the mean of a Beta
    distribution whose prior is the topic's own mean in the last snapshot, worth `prior_strength` exposures. So one
    lucky click does not lead a queue, and a fresh video starts from the middle. That mean is itself smoothed in the
    same way towards `min_click_rate`, which also stands for topics that no snapshot knows.

    A store applies its thresholds to a video when it is recorded, and to all of them when a snapshot is loaded.

    Attributes:
        store: Where counts and queues are kept: a `redis://` or `rediss://` address (a password is read from the
            variable SHORTLIST_QUEUES_PASSWORD), or the path of a SQLite file; None is a file beside the run.
        recent_clicks: How many of the user's last clicks tell the topics (N1).
        topics: From how many topics candidates come (N2).
        candidates: How many candidates (N3).
        min_exposures: Exposures from which a video is not fresh any more (tau1).
        min_click_rate: Clicks per exposure, 0 to 1 (tau2).
        fresh_share: Share of the fresh videos, 0 to 1.
        prior_strength: Exposures that the prior is worth, above 0.
        seed: Of the draw of fresh videos.

    Source: multimodal-topic-learning.txt, section III-C 1, but for the smoothing, which is ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    store: str | None = None
    recent_clicks: int = Field(default=128, ge=1)
    topics: int = Field(default=4, ge=1)
    candidates: int = Field(default=600, ge=1)
    min_exposures: int = Field(default=10, ge=1)
    min_click_rate: float = Field(default=0.07, ge=0, le=1)
    fresh_share: float = Field(default=0.1, ge=0, le=1)
    prior_strength: float = Field(default=20.0, gt=0)
    seed: int = 0

    @property
    def shared(self) -> bool:
        """Whether many machines reach the store, so that the step that counts fills it, wherever it runs."""
        return (self.store or "").startswith(SHARED)

    @field_validator("store")
    @classmethod
    def _keep_secrets_out(cls, store: str | None) -> str | None:
        if store and "://" in store and (urlsplit(store).password or "password=" in urlsplit(store).query):
            raise ValueError(
                "expected an address without a password, which would end up in run.json and in the report: set "
                "SHORTLIST_QUEUES_PASSWORD"
            )
        return store
