"""Where a SavedModel keeps what later trainings take over: read by the pipeline too, which imports no trainer."""

FOLDER = "assets.extra/warm_start"
