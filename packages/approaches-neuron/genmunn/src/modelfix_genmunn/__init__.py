"""GenMuNN: spectrum-ranked weights mutated by a genetic algorithm."""

from modelfix_genmunn.approach import GenMuNN

__all__ = ["GenMuNN"]
