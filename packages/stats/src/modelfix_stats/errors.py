"""Errors for people: one sentence that says what was expected and what to do."""


class StatsError(ValueError):
    """The data or an option cannot be used as asked; the message is all a user needs."""
