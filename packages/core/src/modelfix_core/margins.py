"""By how much labels win, and how much of that float32 may lose."""

import numpy as np

# Weights and sums of a model are float32: this part of the largest logit may be lost.
ROUNDING = 2e-6


def margins(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute by how much the label of each input wins; negative where another class does.

    Parameters
    ----------
    logits : ndarray, [N, K]
    y : ndarray of int64, [N]

    Returns
    -------
    ndarray of float64, [N]
    """
    rivals, rows = logits.astype(float), np.arange(len(y))
    own = rivals[rows, y]
    rivals[rows, y] = -np.inf
    return own - rivals.max(axis=1)


def rounding(logits: np.ndarray) -> float:
    """Return by how much float32 logits of this size may be off."""
    return ROUNDING * max(1.0, float(np.abs(logits).max(initial=0.0)))
