"""3M-DNN: the smallest change of weights, in one or several layers, that makes inputs right."""

from modelfix_minimal_3m.approach import Minimal3M, Minimal3MConfig

__all__ = ["Minimal3M", "Minimal3MConfig"]
