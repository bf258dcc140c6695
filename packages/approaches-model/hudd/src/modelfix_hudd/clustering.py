"""From heatmaps to root causes: distances, Ward's method, the number of clusters, a layer's score.

The N x N matrix of distances is held in float64, once for all that follows and a second time while
Ward's input is made; all else works on blocks of its rows. 10,000 failures stay below 4 GiB.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from kneed import KneeLocator
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

BLOCK_BYTES = 32 * 1024**2
FEWEST_FAILURES = 12  # with fewer, kmax is below 6 and there is no knee to find
WIDEST_SEARCH = 0.2  # of the failures: the most clusters where no knee is found
# Heatmaps are float32: squared distances below this share of the squared norms are rounding.
ROUNDING = 1e-12

Selection = Literal["gradient-knee", "knee", "minimum"]


@dataclass(frozen=True)
class Clustering:
    """The clusters of one layer.

    Attributes
    ----------
    labels : ndarray of int, [N]
        Cluster of each failure, from 0.
    score : float
        Weighted intra-cluster distance on raw distances; small is tight.
    """

    labels: np.ndarray
    score: float

    @property
    def members(self) -> list[np.ndarray]:
        """Positions of the failures of each cluster with at least two, largest first."""
        order = np.argsort(self.labels, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)
        return sorted((part for part in parts if len(part) > 1), key=len, reverse=True)


# -- distances ---------------------------------------------------------------------------------


def distances(x: np.ndarray, y: np.ndarray | None = None, device: str = "cpu") -> np.ndarray:
    """Return Euclidean distances between rows, by products of blocks in float64.

    Parameters
    ----------
    x : ndarray of float, [N, D]
    y : ndarray of float, [M, D], optional
        Default `x`; then half the products are saved, and the diagonal is 0.
    device : str

    Returns
    -------
    ndarray of float64, [N, M]
    """
    other = x if y is None else y
    result = np.empty((len(x), len(other)))
    for rows in _blocks(len(x), 8 * x.shape[1]):
        left = _on(x[rows], device)
        for columns in _blocks(len(other), 8 * x.shape[1], start=rows.start if y is None else 0):
            block = _between(left, _on(other[columns], device)).cpu().numpy()
            result[rows, columns] = block
            if y is None:
                result[columns, rows] = block.T
    if y is None:
        np.fill_diagonal(result, 0)
    return result


def _between(x: Tensor, y: Tensor) -> Tensor:
    norms = (x * x).sum(dim=1)[:, None] + (y * y).sum(dim=1)
    squares = torch.addmm(norms, x, y.T, alpha=-2)
    return squares.masked_fill_(squares <= ROUNDING * norms, 0).sqrt_()


def _on(rows: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device, torch.float64)


def _blocks(count: int, row_bytes: int, start: int = 0) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for first in range(start, count, size):
        yield slice(first, min(first + size, count))


def normalise(distance: np.ndarray) -> np.ndarray:
    """Divide the rows of a square matrix in place by their maxima; return the divisors, [N]."""
    top = distance.max(axis=1)
    top[top == 0] = 1
    distance /= top[:, None]
    return top


# -- Ward's method -----------------------------------------------------------------------------


def ward(
    profile: np.ndarray,
    top: np.ndarray,
    on: Literal["profile", "distance"] = "profile",
    device: str = "cpu",
) -> np.ndarray:
    """Return the tree of Ward's method, [N - 1, 4] as scipy writes it.

    Parameters
    ----------
    profile : ndarray of float64, [N, N]
        Distances of each failure to all, divided by its `top`.
    top : ndarray of float64, [N]
    on : {"profile", "distance"}
        Whether the rows of `profile` are the points, or the heatmaps that the distances are of.
    device : str
    """
    if on == "profile":
        return linkage(_upper(distances(profile, device=device)), "ward")
    return linkage(_upper(profile, top), "ward")


def _upper(square: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Return what lies above the diagonal, row by row, each times its scale."""
    n = len(square)
    result = np.empty(n * (n - 1) // 2)
    end = 0
    for rows in _blocks(n, 8 * n):
        block = square[rows] if scale is None else square[rows] * scale[rows, None]
        part = block[np.arange(n) > np.arange(rows.start, rows.stop)[:, None]]
        result[end : end + len(part)] = part
        end += len(part)
    return result


def cut(tree: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a tree into k clusters.

    Returns
    -------
    labels : ndarray of int, [N]
        From 0.
    roots : ndarray of int, [k]
        Node of the tree that each cluster is.
    """
    n = len(tree) + 1
    merges = np.arange(n - k)
    children = tree[merges, :2].astype(int)
    parents = np.repeat(n + merges, 2)
    edges = coo_array(
        (np.ones(len(parents)), (children.ravel(), parents)), shape=(2 * n - k, 2 * n - k)
    )
    count, component = connected_components(edges, directed=False)
    roots = np.full(count, -1)
    np.maximum.at(roots, component, np.arange(len(component)))
    return component[:n], roots


# -- weighted intra-cluster distance -----------------------------------------------------------


def sums(
    profile: np.ndarray, labels: np.ndarray, k: int, scale: np.ndarray | None = None
) -> np.ndarray:
    """Sum distances over the pairs of failures within and between clusters.

    Of the two directions of a pair that of the failure with the lower position counts.

    Parameters
    ----------
    profile : ndarray of float64, [N, N]
    labels : ndarray of int, [N]
        In 0 to k - 1.
    k : int
    scale : ndarray of float64, [N], optional
        Factor of each row.

    Returns
    -------
    ndarray of float64, [k, k]
        Symmetric; each pair within a cluster counts once.
    """
    n = len(profile)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(k))
    total = np.zeros((k, k))
    for rows in _blocks(n, 8 * n):
        positions = np.arange(rows.start, rows.stop)[:, None]
        block = np.where(order > positions, profile[rows][:, order], 0)
        if scale is not None:
            block *= scale[rows, None]
        np.add.at(total, labels[rows], np.add.reduceat(block, starts, axis=1))
    both = total + total.T
    np.fill_diagonal(both, np.diag(total))
    return both


def wicd(within: np.ndarray, sizes: np.ndarray) -> float:
    """Return the weighted intra-cluster distance from sums over pairs within clusters.

    Parameters
    ----------
    within, sizes : ndarray, [k]

    Returns
    -------
    float
        Mean over clusters of (share of the failures) x (mean distance of a pair).
    """
    several = sizes > 1
    pairs = sizes[several] * (sizes[several] - 1) / 2
    means = within[several] / pairs
    return float((sizes[several] / sizes.sum() * means).sum() / len(sizes))


def replay(profile: np.ndarray, tree: np.ndarray, kmax: int) -> np.ndarray:
    """Return the weighted intra-cluster distance of the cuts into 2 to `kmax` clusters.

    The tree is cut at `kmax`; then its last merges are repeated on the sums between clusters, of
    which each adds two rows.

    Parameters
    ----------
    profile : ndarray of float64, [N, N]
    tree : ndarray, [N - 1, 4]
    kmax : int
        At most N.

    Returns
    -------
    ndarray of float64, [kmax - 1]
    """
    n = len(profile)
    labels, roots = cut(tree, kmax)
    total = sums(profile, labels, kmax)
    sizes = np.bincount(labels, minlength=kmax)
    row = {int(root): i for i, root in enumerate(roots)}
    alive = np.ones(kmax, dtype=bool)
    result = np.empty(kmax - 1)
    for k in range(kmax, 1, -1):
        result[k - 2] = wicd(np.diag(total)[alive], sizes[alive])
        merge = n - k
        kept, gone = (row.pop(int(node)) for node in tree[merge, :2])
        inside = total[kept, kept] + total[gone, gone] + total[kept, gone]
        total[kept] += total[gone]
        total[:, kept] = total[kept]
        total[kept, kept] = inside
        sizes[kept] += sizes[gone]
        alive[gone] = False
        row[n + merge] = kept
    return result


def gradient(curve: np.ndarray) -> np.ndarray:
    """Return the fourth-order central difference, and first differences at the two ends."""
    result = np.empty_like(curve)
    steps = np.diff(curve)
    result[:2], result[-2:] = steps[:2], steps[-2:]
    result[2:-2] = (curve[:-4] - 8 * curve[1:-3] + 8 * curve[3:-1] - curve[4:]) / 12
    return result


def choose_k(curve: np.ndarray, failures: int, how: Selection = "gradient-knee") -> int:
    """Choose the number of clusters.

    Parameters
    ----------
    curve : ndarray of float64, [kmax - 1]
        Weighted intra-cluster distance from 2 clusters on.
    failures : int
    how : {"gradient-knee", "knee", "minimum"}

    Returns
    -------
    int
        Where there is no knee, the k of the least distance among those up to a fifth of the
        failures, because the distance falls towards many clusters.
    """
    k = np.arange(2, len(curve) + 2)
    found = None
    if how == "gradient-knee":
        found = _knee(k, gradient(curve), "concave", "increasing")
    elif how == "knee":
        found = _knee(k, curve, "convex", "decreasing")
    else:
        return int(k[np.argmin(curve)])
    if found is not None:
        return found
    few = max(1, int(WIDEST_SEARCH * failures) - 1)
    return int(k[np.argmin(curve[:few])])


def _knee(k: np.ndarray, curve: np.ndarray, shape: str, direction: str) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no knee is told by None
        knee = KneeLocator(k, curve, curve=shape, direction=direction).knee
    return None if knee is None else int(knee)


def cluster(
    maps: np.ndarray,
    kmax: int = 500,
    select: Selection = "gradient-knee",
    on: Literal["profile", "distance"] = "profile",
    device: str = "cpu",
) -> Clustering:
    """Cluster the heatmaps of one layer.

    Parameters
    ----------
    maps : ndarray of float32, [N, D]
        With fewer than 12 failures all form one cluster.
    kmax : int
        Most clusters tried, if N / 2 is not less.
    select : {"gradient-knee", "knee", "minimum"}
    on : {"profile", "distance"}
    device : str
        Of the products.

    Returns
    -------
    Clustering
    """
    n = len(maps)
    matrix = distances(maps, device=device)
    top = normalise(matrix)
    if n < FEWEST_FAILURES:
        k, labels = 1, np.zeros(n, dtype=int)
    else:
        tree = ward(matrix, top, on, device)
        curve = replay(matrix, tree, int(np.clip(n // 2, 2, kmax)))
        k = choose_k(curve, n, select)
        labels, _ = cut(tree, k)
    within = np.diag(sums(matrix, labels, k, top))
    return Clustering(labels, wicd(within, np.bincount(labels, minlength=k)))
