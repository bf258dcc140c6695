"""Correction for many comparisons, over a whole family at once."""

from typing import Literal

import numpy as np
from statsmodels.stats.multitest import multipletests

from modelfix_stats.errors import StatsError

Correction = Literal["bh", "holm", "none"]
METHODS = {"bh": "fdr_bh", "holm": "holm"}


def adjust(p: np.ndarray, correction: Correction = "bh") -> np.ndarray:
    """Return the adjusted p values of one family.

    Parameters
    ----------
    p : array_like of float, [n]
        All p values of the family; NaN where a pair cannot be tested: those do not count.
    correction : {"bh", "holm", "none"}
        Benjamini-Hochberg (false discovery rate), Holm (any false claim), or none.

    Returns
    -------
    ndarray of float64, [n]
        In the order of `p`; significant iff below alpha, strictly.

    Raises
    ------
    StatsError
        For an unknown correction.
    """
    p = np.asarray(p, dtype=float)
    if correction == "none":
        return p.copy()
    if correction not in METHODS:
        raise StatsError(f"correction={correction!r}: expected bh, holm or none.")
    adjusted = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method=METHODS[correction])[1]
    return adjusted
