"""Which inputs the repair is about: the failing ones to fix and the passing ones to keep."""

from collections import Counter

import numpy as np
from modelfix_core.errors import Failure


def failing(
    predicted: np.ndarray, y: np.ndarray, target: str, rng: np.random.Generator
) -> np.ndarray:
    """Select the failures to fix (I_neg).

    Parameters
    ----------
    predicted, y : ndarray of int64, [N]
    target : str
        ``all``; ``sample:q``, a share q of them drawn without replacement, at least one; or
        ``type:k``, those of the k-th most frequent pair of true and predicted class.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int64
        Positions, ascending.

    Raises
    ------
    Failure
        If nothing is left to fix.
    """
    wrong = np.flatnonzero(predicted != y)
    if not len(wrong):
        raise Failure("the model is right on the whole repair split; there is nothing to fix")
    kind, _, value = target.partition(":")
    if kind == "sample":
        size = max(1, round(float(value) * len(wrong)))
        return np.sort(rng.choice(wrong, size, replace=False))
    if kind == "type":
        return _of_type(wrong, predicted, y, int(value))
    return wrong


def _of_type(wrong: np.ndarray, predicted: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    pairs = Counter(zip(y[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    ranked = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    if k > len(ranked):
        raise Failure(
            f"target type:{k} is empty: the failures are of {len(ranked)} types (pairs of true and "
            "predicted class)"
        )
    true, wrongly = ranked[k - 1]
    return wrong[(y[wrong] == true) & (predicted[wrong] == wrongly)]


def passing(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the positions of all inputs that the model gets right (I_pos), ascending.

    Raises
    ------
    Failure
        If there is none.
    """
    right = np.flatnonzero(predicted == y)
    if not len(right):
        raise Failure("the model is right on no input of the repair split; none to preserve")
    return right


def balanced(passing: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw about `size` passing inputs with the classes' shares among all of them (S+).

    Each class keeps at least one input; all inputs are taken where there are no more than `size`.
    """
    if size >= len(passing):
        return passing
    drawn = []
    for label in np.unique(y[passing]):
        members = passing[y[passing] == label]
        quota = min(len(members), max(1, round(size * len(members) / len(passing))))
        drawn.append(rng.choice(members, quota, replace=False))
    return np.sort(np.concatenate(drawn))


def by_margin(passing: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Sort passing inputs by how narrowly they are right: those that break first come first."""
    ordered = np.partition(logits[passing], -2, axis=1)
    return passing[np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")]
