"""Baselines of the ranker, one short module each: `build(fields, config)` makes the logit [B, 1] of the fields."""
