"""INNER for modelfix: probes read each depth, routing marks the weights that are trained."""

from modelfix_inner.approach import Inner

__all__ = ["Inner"]
