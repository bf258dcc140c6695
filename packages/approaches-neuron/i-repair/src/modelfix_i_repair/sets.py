"""The general and the specific set: what must stay right and what is to be repaired."""

from dataclasses import dataclass

import numpy as np
from modelfix_core.seeds import generator


@dataclass(frozen=True)
class Sets:
    """Positions in the repair split.

    Attributes
    ----------
    general : ndarray of int64, [|G|]
        Correctly classified samples, balanced over the classes.
    specific : ndarray of int64, [|S|]
        Misclassified samples.
    """

    general: np.ndarray
    specific: np.ndarray


def draw_sets(
    logits: np.ndarray, y: np.ndarray, per_class: int, most: int | None, seed: int
) -> Sets:
    """Draw both sets from the repair split (steps 1 and 2 of the algorithm).

    Parameters
    ----------
    logits : ndarray of float, [N, K]
        Of the original model.
    y : ndarray of int, [N]
    per_class : int
        Size of the general set per class; a class with fewer correct samples gives all it has.
    most : int or None
        Largest size of the specific set; None takes every misclassified sample.
    seed : int
        Of the random order in which samples are taken.

    Returns
    -------
    Sets
    """
    right = logits.argmax(axis=1) == y
    order = generator(seed, stage="general").permutation(np.flatnonzero(right))
    general = [order[y[order] == label][:per_class] for label in range(logits.shape[1])]
    specific = generator(seed, stage="specific").permutation(np.flatnonzero(~right))
    return Sets(np.concatenate(general), specific[:most])
