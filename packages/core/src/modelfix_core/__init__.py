"""Vocabulary, contracts, data, models and exchange of modelfix, and the job that runs one approach.

The names below are loaded on first use, so that importing a light part (``modelfix_core.errors``)
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelfix_core.approach import (
        Approach,
        ApproachConfig,
        ApproachInfo,
        Budget,
        Candidate,
        Category,
        Evidence,
        Framework,
        Localisation,
        Need,
        Outcome,
        Task,
    )
    from modelfix_core.dataset import Dataset, Split
    from modelfix_core.errors import BudgetExceeded, Failure, ModelfixError, Unadaptable
    from modelfix_core.fixing import Fixing, fix
    from modelfix_core.model import Layer, Model
    from modelfix_core.population import Patch, Scores
    from modelfix_core.subject import Subject

_ROOMS = {
    "approach": [
        "Approach",
        "ApproachConfig",
        "ApproachInfo",
        "Budget",
        "Candidate",
        "Category",
        "Evidence",
        "Framework",
        "Localisation",
        "Need",
        "Outcome",
        "Task",
    ],
    "dataset": ["Dataset", "Split"],
    "errors": ["BudgetExceeded", "Failure", "ModelfixError", "Unadaptable"],
    "fixing": ["Fixing", "fix"],
    "model": ["Layer", "Model"],
    "population": ["Patch", "Scores"],
    "subject": ["Subject"],
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Approach",
    "ApproachConfig",
    "ApproachInfo",
    "Budget",
    "BudgetExceeded",
    "Candidate",
    "Category",
    "Dataset",
    "Evidence",
    "Failure",
    "Fixing",
    "Framework",
    "Layer",
    "Localisation",
    "Model",
    "ModelfixError",
    "Need",
    "Outcome",
    "Patch",
    "Scores",
    "Split",
    "Subject",
    "Task",
    "Unadaptable",
    "fix",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
