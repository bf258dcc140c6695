"""Vocabulary, contracts, data, models and exchange of modelfix, and the job that runs one approach."""

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Budget,
    Candidate,
    Category,
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

__all__ = [
    "Approach",
    "ApproachConfig",
    "ApproachInfo",
    "Budget",
    "BudgetExceeded",
    "Candidate",
    "Category",
    "Dataset",
    "Failure",
    "Fixing",
    "Framework",
    "Layer",
    "Localisation",
    "Model",
    "ModelfixError",
    "Need",
    "Outcome",
    "Split",
    "Task",
    "Unadaptable",
    "fix",
]
