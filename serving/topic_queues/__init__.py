"""Queues of videos by topic, in the order of click-through rate, kept up to date as clicks arrive."""
