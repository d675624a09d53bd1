"""The model now being served, as the baseline of an evaluation."""
