"""Evaluator: TFX's, for which the first model of all is held against nothing."""
