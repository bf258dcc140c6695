"""3M-DNN: the smallest change of weights, in one or several layers, that makes inputs right."""

from modelfix_minimal_3m.approach import Minimal3M, Minimal3MConfig
from modelfix_minimal_3m.proof import describe

__all__ = ["Minimal3M", "Minimal3MConfig", "describe"]
