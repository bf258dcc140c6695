"""Which images are annotated, and whom their labels speak for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from modelfix_core.seeds import seed_for
from sklearn.cluster import HDBSCAN, KMeans

from modelfix_hybridrepair.annotation import Annotator
from modelfix_hybridrepair.approach import HybridRepairConfig

NOISE = -1
MOST_AT_ONCE = 10_000  # images whose mutual distances are held at a time


@dataclass(frozen=True)
class Regions:
    """Labels that a few annotations give to many images.

    Attributes
    ----------
    cluster : ndarray of int, [N]
        Cluster of each image of the pool; -1 for those that are in none.
    centres : ndarray of int, [A]
        Positions that were annotated.
    taken : ndarray of int, [A]
        Clusters that the centres speak for.
    label : ndarray of int, [N]
        Of the cluster's centre; -1 outside of the taken clusters.
    """

    cluster: np.ndarray
    centres: np.ndarray
    taken: np.ndarray
    label: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """Positions of all images that got a label."""
        return np.flatnonzero(self.label >= 0)


def dense(features: np.ndarray, config: HybridRepairConfig) -> np.ndarray:
    """Return which points lie in a density cluster, [N]; all where none does.

    Parameters
    ----------
    features : ndarray of float, [N, D]
        Of length 1.
    config : HybridRepairConfig
    """
    labels = HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        # scikit-learn counts the point itself, the authors' library does not.
        min_samples=config.min_samples + 1,
        # Both are exact; the tree is slower but does not hold all distances.
        algorithm="brute" if len(features) <= MOST_AT_ONCE else "kd_tree",
        copy=True,
    ).fit(features)
    inside = labels.labels_ >= 0
    return inside if inside.any() else np.ones(len(features), dtype=bool)


def choose(
    features: np.ndarray,
    e: np.ndarray,
    annotate: Annotator,
    config: HybridRepairConfig,
    seed: int,
    progress: Callable[[str], None] = lambda note: None,
) -> Regions:
    """Spend the budget on the clusters that are least smooth in sum, one centre each.

    Parameters
    ----------
    features : ndarray of float, [N, D]
        Of length 1 or 0.
    e : ndarray of float, [N]
        Unsmoothness.
    annotate : Annotator
    config : HybridRepairConfig
    seed : int
    progress : callable

    Returns
    -------
    Regions
    """
    progress("looking for dense regions")
    positions = np.flatnonzero(dense(features, config))
    progress("clustering")
    count = max(len(positions) // config.avg_clustersize, min(annotate.budget, len(positions)), 1)
    state = seed_for(seed=seed, stage="clusters")
    found = KMeans(count, n_init=1, random_state=state).fit(features[positions])
    cluster = np.full(len(features), NOISE)
    cluster[positions] = found.labels_
    score = np.bincount(found.labels_, weights=e[positions], minlength=count)
    size = np.bincount(found.labels_, minlength=count)
    best = np.lexsort((np.arange(count), -score, size == 0))
    taken = best[: min(annotate.budget, np.count_nonzero(size))]
    candidates = positions if config.centres == "members" else np.arange(len(features))
    centres = _nearest(features, found.cluster_centers_, cluster, taken, candidates, config)
    if annotate.budget > len(positions):
        cluster, centres, taken = _with_noise(cluster, centres, taken, annotate.budget, seed)
    label = np.full(len(features), NOISE)
    for name, given in zip(taken, annotate(centres), strict=True):
        label[cluster == name] = given
    return Regions(cluster, centres, taken, label)


def _nearest(
    features: np.ndarray,
    middles: np.ndarray,
    cluster: np.ndarray,
    taken: np.ndarray,
    candidates: np.ndarray,
    config: HybridRepairConfig,
) -> np.ndarray:
    """Return for each taken cluster the position nearest to its middle."""
    points = features[candidates]
    squares = (points**2).sum(axis=1) - 2 * middles[taken] @ points.T
    if config.centres == "members":
        squares[cluster[candidates] != taken[:, None]] = np.inf
    return candidates[squares.argmin(axis=1)]


def _with_noise(
    cluster: np.ndarray, centres: np.ndarray, taken: np.ndarray, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spend what is left of the budget on images of no cluster, each a cluster of its own."""
    noise = np.flatnonzero(cluster == NOISE)
    rng = np.random.default_rng(seed_for(seed=seed, stage="noise"))
    drawn = rng.choice(noise, min(budget - len(centres), len(noise)), replace=False)
    names = cluster.max() + 1 + np.arange(len(drawn))
    cluster = cluster.copy()
    cluster[drawn] = names
    return cluster, np.concatenate([centres, drawn]), np.concatenate([taken, names])
