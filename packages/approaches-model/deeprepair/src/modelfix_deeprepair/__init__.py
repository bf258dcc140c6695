"""DeepRepair: retraining on clean images in the style of the failures."""

from modelfix_deeprepair.approach import DeepRepair, DeepRepairConfig

__all__ = ["DeepRepair", "DeepRepairConfig"]
