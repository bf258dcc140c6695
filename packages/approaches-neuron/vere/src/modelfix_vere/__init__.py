"""VeRe for modelfix: linear relaxation finds the neuron whose repair promises most."""

from modelfix_vere.approach import VeRe

__all__ = ["VeRe"]
