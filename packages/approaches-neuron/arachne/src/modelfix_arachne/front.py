"""The Pareto front of two costs that are both maximised."""

import numpy as np


def pareto_front(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Find the points that no other point dominates, in O(N log N).

    A point is dominated if another one is at least as large in both costs and larger in one; exact
    duplicates of a point on the front are on it too.

    Parameters
    ----------
    first, second : ndarray, [N]

    Returns
    -------
    ndarray of int64, [D]
        Positions, by falling first cost.
    """
    order = np.lexsort((-second, -first))
    x, y = first[order], second[order]
    heads = np.flatnonzero(np.append(True, x[1:] != x[:-1]))
    group = np.repeat(np.arange(len(heads)), np.diff(np.append(heads, len(x))))
    # The head of a group of equal first costs has the group's largest second cost.
    largest = y[heads]
    before = np.append(-np.inf, np.maximum.accumulate(largest)[:-1])
    return order[(y == largest[group]) & (y > before[group])]
