"""Errors for people: each message is one sentence that says what was expected and what to do."""


class ModelfixError(Exception):
    """A mistake in what modelfix was given; the message is all a user needs to see."""


class Unadaptable(ModelfixError):
    """The approach cannot be applied to this task; the message is the reason."""


class Failure(ModelfixError):
    """The approach could be applied but cannot give a fixed model; the message is the reason."""


class BudgetExceeded(Exception):
    """The task's time is used up; raised by `Task.progress`, never to be caught by an approach."""
