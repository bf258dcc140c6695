"""NeuRecover: repair of the weights that training spoiled, found in the training history."""

from modelfix_neurecover.approach import NeuRecover

__all__ = ["NeuRecover"]
