"""Which images resemble a root cause, and how often each is seen in retraining."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Bags:
    """What is added to the training images.

    Attributes
    ----------
    rows : ndarray of int, [B]
        Positions in the pool, with repetition.
    size : int
        Of the bag of each cluster.
    """

    rows: np.ndarray
    size: int


def quotas(sizes: np.ndarray, factor: float) -> np.ndarray:
    """Return how many images each cluster may have, rounded up."""
    return np.ceil(factor * np.asarray(sizes) - 1e-9).astype(int)


def assign(distance: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Assign images to clusters with room, nearest images of nearest clusters first.

    In round r every image that is not assigned yet asks its r-th nearest cluster, in the order of
    their distances.

    Parameters
    ----------
    distance : ndarray of float, [I, R]
        Of each image to the nearest member of each cluster.
    quota : ndarray of int, [R]

    Returns
    -------
    ndarray of int, [I]
        Cluster, or -1.
    """
    left = np.array(quota)
    assigned = np.full(len(distance), -1)
    preference = np.argsort(distance, axis=1, kind="stable")
    for target in preference.T:
        if not left.any():
            break
        rows = np.flatnonzero((assigned < 0) & (left[target] > 0))
        rows = rows[_rank(target[rows], distance[rows, target[rows]]) < left[target[rows]]]
        assigned[rows] = target[rows]
        left -= np.bincount(target[rows], minlength=len(left))
    return assigned


def keep(assigned: np.ndarray, distance: np.ndarray, quota: np.ndarray) -> list[np.ndarray]:
    """Return the nearest images that each cluster keeps of those assigned to it.

    Parameters
    ----------
    assigned : ndarray of int, [I]
    distance : ndarray of float, [I, R]
    quota : ndarray of int, [R]

    Returns
    -------
    list of ndarray of int
        Positions in the pool by ascending distance, for each cluster.
    """
    rows = np.flatnonzero(assigned >= 0)
    own = distance[rows, assigned[rows]]
    rank = _rank(assigned[rows], own)
    kept = rank < quota[assigned[rows]]
    rows = rows[kept][np.lexsort((rank[kept], assigned[rows][kept]))]
    return np.split(rows, np.searchsorted(assigned[rows], np.arange(1, len(quota))))


def _rank(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the rank of each value within its group, from 0; on ties the earlier one is first."""
    order = np.lexsort((value, group))
    ordered = group[order]
    rank = np.empty(len(group), dtype=int)
    rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return rank


def bag(
    kept: Sequence[np.ndarray],
    distance: np.ndarray,
    rng: np.random.Generator,
    how: Literal["balanced", "reference"] = "balanced",
) -> Bags:
    """Repeat images until every cluster has as many as the largest one keeps.

    Parameters
    ----------
    kept : sequence of ndarray of int
        Positions in the pool that each cluster keeps; those of clusters without any are left out.
    distance : ndarray of float, [I, R]
    rng : numpy.random.Generator
    how : {"balanced", "reference"}
        Whether each bag is cut to the common size, or the whole list.

    Returns
    -------
    Bags
    """
    size = max((len(rows) for rows in kept), default=0)
    bags = [
        _fill(rows, distance[rows, cluster], size, rng)
        for cluster, rows in enumerate(kept)
        if len(rows)
    ]
    if how == "balanced":
        bags = [rows[:size] for rows in bags]
    rows = np.concatenate([*bags, np.zeros(0, dtype=int)])
    return Bags(rows[: size * len(bags)], size)


def _fill(
    rows: np.ndarray, distance: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Append sweeps over `rows` until there are `size`; nearer images are more often in a sweep."""
    if len(rows) == 1:
        return np.repeat(rows, size)
    total = distance.sum()
    share = 1 - distance / total if total > 0 else np.ones(len(rows))
    parts, count = [rows], len(rows)
    while count < size:
        parts.append(rows[rng.random() < share])
        count += len(parts[-1])
    return np.concatenate(parts)
