"""Localisation: the average causal effect of every neuron on what the model gets right."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from modelfix_care.tail import Tail

NEURONS_AT_ONCE = 4


@dataclass(frozen=True)
class Objective:
    """What is kept high: the weighted share of inputs that are right.

    Attributes
    ----------
    weights : ndarray of float64, [n]
        What each input counts when it is right.
    before : float
        Sum of the weights of the inputs that the original model gets right.
    """

    weights: np.ndarray
    before: float

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self.weights.sum())


def objective(right: np.ndarray, balanced: bool = False) -> Objective:
    """Weigh the inputs.

    Parameters
    ----------
    right : ndarray of bool, [n]
        Which inputs the original model gets right.
    balanced : bool
        Whether the inputs it gets wrong count together as much as those it gets right; by default,
        and where there are no inputs of one kind, every input counts 1.
    """
    good, bad = int(right.sum()), int((~right).sum())
    share = good / bad if balanced and good and bad else 1.0
    return Objective(np.where(right, 1.0, share), float(good))


def average_causal_effects(
    tail: Tail,
    aim: Objective,
    neurons: np.ndarray,
    values: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Measure what forcing a neuron to values of its range costs on average.

    Parameters
    ----------
    tail : Tail
        With the repair split.
    aim : Objective
    neurons : ndarray of int64, [m]
    values : int
        Number K of equally spaced values from the smallest to the largest that a neuron takes.
    progress : callable
        Gets how many neurons are done, and m.

    Returns
    -------
    ndarray of float64, [m]
        Mean over the values of the objective before minus the objective under the intervention;
        positive if the model depends on the neuron, 0 for a neuron that is constant.
    """
    effects = np.zeros(len(neurons))
    varying = np.flatnonzero(tail.high[neurons] > tail.low[neurons])
    for start in range(0, len(varying), NEURONS_AT_ONCE):
        progress(start, len(varying))
        rows = varying[start : start + NEURONS_AT_ONCE]
        chosen = neurons[rows]
        forced = np.linspace(tail.low[chosen], tail.high[chosen], values, axis=1)
        reached = tail.forced(np.repeat(chosen, values), forced.ravel(), aim.weights)
        lost = aim.before * values - reached.reshape(-1, values).sum(axis=1)
        effects[rows] = lost / (values * aim.total)
    return effects


def scored_neurons(size: int, stride: int) -> np.ndarray:
    """Return every stride-th of `size` neurons."""
    return np.arange(0, size, stride)


def select(effects: np.ndarray, amount: int | float, absolute: bool = False) -> np.ndarray:
    """Select the neurons of largest effect.

    Parameters
    ----------
    effects : ndarray, [m]
    amount : int or float
        How many, or which share of the m neurons, rounded up.
    absolute : bool
        Whether to rank by absolute effect.

    Returns
    -------
    ndarray of int64, [r]
        Positions in `effects`, by falling effect.
    """
    # Rounded first, because 0.1 * 70 is slightly more than 7.
    count = amount if isinstance(amount, int) else ceil(round(amount * len(effects), 9))
    ranked = np.abs(effects) if absolute else effects
    return np.argsort(-ranked, kind="stable")[:count]
