"""Arachne: search-based repair of the few weights that matter for the failures."""

from modelfix_arachne.approach import Arachne

__all__ = ["Arachne"]
