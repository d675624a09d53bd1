"""Exposures and clicks of every video up to an instant: the snapshot that topic queues start from."""
