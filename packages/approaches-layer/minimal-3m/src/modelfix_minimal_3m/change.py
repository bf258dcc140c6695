"""A change of weights with what its solver guarantees, and the ways to end without one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NORMS = ("l1", "linf")


class Infeasible(Exception):
    """No change of the allowed size makes all points right."""


class Unsolved(Exception):
    """The solver gave no answer; the message says why."""


@dataclass(frozen=True)
class Change:
    """What to add to the weights.

    Attributes
    ----------
    weights : mapping of str to ndarray of float64
        By name of the initializer.
    cost : float
        Norm of the change: the largest entry (``linf``) or the sum of all (``l1``), in absolute
        values, over all changed layers.
    lower_bound : float
        No change of these layers that fixes the points costs less; 0 where nothing was proven.
    solver : str
        ``highs-lp``, ``highs-milp`` or ``marabou``.
    tolerance : float
        By how much the solver may violate a constraint.
    single_cost : float or None
        Cost of changing the last layer alone, where several layers were searched.
    proposals : int
        Values of the separation layers that were tried.
    """

    weights: Mapping[str, np.ndarray]
    cost: float
    lower_bound: float
    solver: str
    tolerance: float
    single_cost: float | None = None
    proposals: int = 0


def norm_of(change: np.ndarray, norm: str) -> float:
    """Return the ``l1`` or ``linf`` norm of all entries."""
    return float(np.abs(change).sum() if norm == "l1" else np.abs(change).max(initial=0.0))


def reduce(h: np.ndarray, norm: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Reduce the weights of each row to one number where there is one point only.

    For one point all that matters of a row ``w`` of the change is ``w h``. The cheapest row that
    gives it is a multiple of the sign of ``h`` (``linf``) or of one unit vector (``l1``), hence
    the problem with one feature ``||h||_1`` or ``||h||_inf`` has the same optimum.

    Parameters
    ----------
    h : ndarray of float64, [k, D]
    norm : {"l1", "linf"}

    Returns
    -------
    features : ndarray of float64, [k, D] or [1, 1]
    expansion : ndarray of float64, [1, D], or None
        The change is the reduced change times this; None where nothing was reduced.
    """
    if len(h) != 1 or not h.any():
        return h, None
    if norm == "linf":
        return np.abs(h).sum(axis=1, keepdims=True), np.sign(h)
    largest = int(np.abs(h[0]).argmax())
    expansion = np.zeros_like(h)
    expansion[0, largest] = np.sign(h[0, largest])
    return np.abs(h[:, largest : largest + 1]), expansion
