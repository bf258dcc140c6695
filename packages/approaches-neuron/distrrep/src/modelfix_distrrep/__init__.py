"""DISTRREP: one repair for each dangerous misclassification, merged by a risk-aware search."""

from modelfix_distrrep.approach import DistrRep

__all__ = ["DistrRep"]
