"""The named subjects, and how a subject is prepared; torch is needed for the training alone."""

from modelfix_core.subjects.catalogue import CATALOGUE, DEFAULT, NamedSubject, named
from modelfix_core.subjects.own import prepare_own
from modelfix_core.subjects.prepare import Prepared, prepare
from modelfix_core.subjects.recipes import Recipe

__all__ = [
    "CATALOGUE",
    "DEFAULT",
    "NamedSubject",
    "Prepared",
    "Recipe",
    "named",
    "prepare",
    "prepare_own",
]
