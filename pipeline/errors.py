"""Errors of a run that are not the user's input."""


class RunFailedError(RuntimeError):
    """Something failed that was asked for rightly; the message says what, and where the details are."""
