"""Apricot for modelfix: weights move towards submodels that are right, between retraining."""

from modelfix_apricot.approach import Apricot, ApricotConfig

__all__ = ["Apricot", "ApricotConfig"]
