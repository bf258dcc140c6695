"""The fitness data: on which samples failures are localised and variants are judged."""

import numpy as np
from modelfix_core.dataset import Split

FEWEST_FAILURES = 20


def fitness_samples(
    right: np.ndarray, y: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw a class-balanced sample and add all misclassified samples (section 3).

    Parameters
    ----------
    right : ndarray of bool, [N]
        Which samples the model gets right.
    y : ndarray of int64, [N]
    most : int
        Largest size of the sample; classes that run short leave their places to the others.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int64
        Positions, ascending.
    """
    order = rng.permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    starts = np.searchsorted(y[by_class], y[by_class])
    turn = np.arange(len(y)) - starts  # how many of its class were drawn before a sample
    drawn = by_class[np.argsort(turn, kind="stable")[:most]]
    return np.union1d(drawn, np.flatnonzero(~right))


def joined(first: Split, second: Split) -> Split:
    """Return the samples of both splits, those of `first` first."""
    same = first.x.dtype == second.x.dtype
    x = (first.x, second.x) if same else (first.images(), second.images())
    return Split(np.concatenate(x), np.concatenate([first.y, second.y]))
