"""What a request for a feed holds beside the user's features, what its tables hold of videos, and how it is arranged.

Light: clients and the command line load it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Of a request, beside features by their own names. A feature's name holds no slash, so that none is taken.
NOW = "feed/now"  # int64, unix seconds; left out: the server's clock
LENGTH = "feed/length"  # int64, how many videos; left out: that of the settings
EXCLUDE = "feed/exclude"  # strings, videos that are not to be shown
QUEUE = "feed/queue"  # strings, further candidates, as a store of topic queues gives them
CATEGORIES = "feed/categories"  # strings, primary categories the user had events with, and of each in this order:
CATEGORY_EVENTS = "feed/category_events"  # floats, how many events
CATEGORY_RATES = "feed/category_rates"  # floats, (positives + 1) / (events + 2)
PROFILE = "feed/profile"  # floats, the content that the user took to; left out: not known

# Of an example of a video, beside features by their own names.
PUBLISHED_AT = "feed/published_at"  # int64, unix seconds; UNKNOWN_TIME or left out: not known
PRIMARY_CATEGORY = "feed/primary_category"  # string; left out: the world knows no categories
FUSED_VECTOR = "feed/fused_vector"  # floats of length 1; left out: not known
POSITIVES = "feed/positives"  # float, how many events of the video were positive

UNKNOWN_TIME = -(2**63)
NO_CATEGORIES = "\0"  # no name of a category
NEVER_MET = 0.0, 0.5  # events and rate of a category that a request does not name


class FeedSettings(BaseModel):
    """How ranked candidates become a feed.

    Attributes:
        length: Videos of a feed, where the request does not say.
        most: Videos of a feed, at most; a request for more is answered with so many.
        per_author: Of each author only so many of the best candidates compete; more are taken only where the feed would
            be shorter otherwise. None: any number. Heeded where the contract has a feature of `videos.author_id`.
        per_topic: The same, by a video's first topic, where the contract has a feature of topics. A video without one,
            for it came later or topics are not learned, counts among those without one of its primary category, if the
            contract has that; with neither it is of no group, and not capped.
        fresh_share: Share of the places that is kept for fresh videos, as far as there are any among the candidates.
            Heeded where the contract has a feature of `derived.video_age_hours`.
        fresh_hours: How long a video is fresh after it was published.
        retrieval_weight: What the retrieval model's score counts for beside the logarithm of the ranker's in the order
            of the candidates. With the inverse of retrieval's temperature the sum is, but for a constant, log P(comes
            upon) + log P(likes, having come upon). For logs without impressions, ratings say: a ranker that never saw
            what people passed over cannot tell what they would come upon. Heeded where there is a retrieval model. 0:
            the ranker alone.
        explore_share: Share of the places of somebody without history that is kept for videos drawn by lot; the others
            are the most popular of all topics in turn, ranked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    length: int = Field(default=20, ge=1)
    most: int = Field(default=200, ge=1, le=1000)
    per_author: int | None = Field(default=2, ge=1)
    per_topic: int | None = Field(default=5, ge=1)
    fresh_share: float = Field(default=0.1, ge=0, le=1)
    fresh_hours: float = Field(default=72.0, gt=0)
    retrieval_weight: float = Field(default=0.0, ge=0)
    explore_share: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> FeedSettings:
        if self.length > self.most:
            raise ValueError(f"feed: length {self.length} is above most {self.most}: raise most")
        if self.fresh_share + self.explore_share > 1:
            raise ValueError("feed: fresh_share and explore_share must not add up to more than 1")
        return self
