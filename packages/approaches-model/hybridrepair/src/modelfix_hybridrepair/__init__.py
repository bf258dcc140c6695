"""HybridRepair: few labels, spread over clusters, and semi-supervised fine-tuning."""

from modelfix_hybridrepair.approach import HybridRepair, HybridRepairConfig

__all__ = ["HybridRepair", "HybridRepairConfig"]
