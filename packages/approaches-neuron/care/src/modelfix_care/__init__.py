"""CARE: causality-based repair by scaling the activity of hidden neurons."""

from modelfix_care.approach import Care

__all__ = ["Care"]
