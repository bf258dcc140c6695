"""REASSURE: repair of ReLU networks by patches that act on one linear region each."""

from modelfix_reassure.approach import Reassure, ReassureConfig
from modelfix_reassure.verification import Guarantees, verify

__all__ = ["Guarantees", "Reassure", "ReassureConfig", "verify"]
