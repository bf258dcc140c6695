"""From the failures to the style images: draw, cluster for each class, take one of each cluster.

Of the model nothing but its predictions is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from modelfix_core.approach import Evidence
from modelfix_core.dataset import Split
from modelfix_core.errors import Unadaptable
from modelfix_core.seeds import generator
from sklearn.cluster import KMeans

Progress = Callable[[str], None]


class Predictor(Protocol):
    """All that is needed of a model."""

    def predict(self, x: Split) -> np.ndarray:
        """Return logits [N, K]."""
        ...


@dataclass(frozen=True)
class Styles:
    """Clusters of failures and the style images out of them.

    Attributes
    ----------
    failures : int
        Failing images of the repair split.
    members : ndarray of int, [M]
        Positions in the repair split of those that were clustered.
    clusters : ndarray of int, [M]
        Their clusters, numbered over all classes.
    predicted : ndarray of int, [M]
    chosen : ndarray of int, [S]
        Positions in the repair split of the style images, one for each cluster in order.
    """

    failures: int
    members: np.ndarray
    clusters: np.ndarray
    predicted: np.ndarray
    chosen: np.ndarray

    def evidence(self, repair: Split) -> Evidence:
        """Return the clusters with their members, the style image first."""
        is_style = np.isin(self.members, self.chosen)
        order = np.lexsort((~is_style, self.clusters))
        rows = self.members[order]
        columns = {
            "cluster": self.clusters[order],
            "sample": repair.ids[rows],
            "label": repair.y[rows],
            "predicted": self.predicted[order],
            "role": np.where(is_style[order], "style", "member"),
        }
        return Evidence(
            "styles",
            f"{len(self.chosen)} clusters of {len(rows)} failures, each within a class; the look "
            "of the style image of a cluster is given to training images.",
            columns,
        )


def find_styles(
    model: Predictor,
    repair: Split,
    *,
    n_fail: int,
    k: int,
    seed: int,
    progress: Progress = lambda note: None,
) -> Styles:
    """Cluster the failures of each class and draw one of each cluster.

    Parameters
    ----------
    model : Predictor
    repair : Split
    n_fail : int
        Failures of each class that are drawn, at most.
    k : int
        Clusters of each class, at most.
    seed : int
    progress : callable
        Gets what is being done.

    Raises
    ------
    Unadaptable
        If no image of the repair split is mispredicted.
    """
    progress("predicting the repair split")
    predicted = model.predict(repair).argmax(axis=1)
    failing = np.flatnonzero(predicted != repair.y)
    if not len(failing):
        raise Unadaptable("the model mispredicts no image of the repair split: there is no style")
    order = generator(seed, stage="failures").permutation(failing)
    members, clusters, count = [], [], 0
    for label in np.unique(repair.y[failing]):
        own = np.sort(order[repair.y[order] == label][:n_fail])
        progress(f"clustering the failures of class {label}")
        found = cluster(repair.images(own), k)
        members.append(own)
        clusters.append(found + count)
        count += found.max() + 1
    rows, numbers = np.concatenate(members), np.concatenate(clusters)
    rng = generator(seed, stage="styles")
    chosen = [rng.choice(rows[numbers == number]) for number in range(count)]
    return Styles(len(failing), rows, numbers, predicted[rows], np.array(chosen))


def cluster(images: np.ndarray, k: int) -> np.ndarray:
    """Cluster images of one class by their standardised pixels.

    Parameters
    ----------
    images : ndarray of float, [N, C, H, W]
    k : int
        Clusters, at most; fewer if there are fewer different images.

    Returns
    -------
    ndarray of int, [N]
        Numbers from 0 without a gap.
    """
    pixels = images.reshape(len(images), -1).astype(np.float64)
    spread = pixels.std(axis=0)
    spread[spread < np.finfo(np.float32).eps] = 1  # constant pixels say nothing
    standard = (pixels - pixels.mean(axis=0)) / spread
    different = len(np.unique(standard, axis=0))
    # n_init is written out because its default differs between versions of scikit-learn.
    means = KMeans(min(k, different), init="k-means++", n_init=10, random_state=0)
    return np.unique(means.fit_predict(standard), return_inverse=True)[1]
