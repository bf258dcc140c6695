"""I-REPAIR: repair of misclassifications by influence-masked gradient steps."""

from modelfix_i_repair.approach import IRepair

__all__ = ["IRepair"]
