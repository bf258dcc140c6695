"""HUDD: heatmaps of failures, clustered into root causes that choose what to retrain on."""

from modelfix_hudd.approach import Hudd, HuddConfig

__all__ = ["Hudd", "HuddConfig"]
