"""Repair: a particle swarm searches factors between 0 and 2 for the selected neurons' values."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from modelfix_core.search import InertiaSwarm, race

from modelfix_care.localisation import Objective
from modelfix_care.tail import Tail

BLOCKS = 10  # of inputs, after each of which hopeless particles drop out


@dataclass(frozen=True)
class Step:
    """Where the search stands after an iteration.

    Attributes
    ----------
    number : int
        Finished iterations.
    factors : ndarray of float64, [r]
        Of the best particle so far, in [0, 2].
    gain : float
        By how much it raises the objective, as a share; never negative.
    is_new : bool
        Whether the factors are not those of the step before.
    """

    number: int
    factors: np.ndarray
    gain: float
    is_new: bool


class Gain:
    """By how much scaled neurons raise the objective on the inputs of a tail.

    Parameters
    ----------
    tail : Tail
    aim : Objective
    neurons : ndarray of int64, [r]
    """

    def __init__(self, tail: Tail, aim: Objective, neurons: np.ndarray) -> None:
        self._tail = tail
        self._aim = aim
        self._neurons = neurons
        ends = np.linspace(0, len(tail.y), BLOCKS + 1).astype(int)
        self._blocks = [slice(a, b) for a, b in itertools.pairwise(ends) if b > a]
        self._most = [float(aim.weights[block].sum()) for block in self._blocks]

    def __call__(self, positions: np.ndarray, bars: np.ndarray) -> np.ndarray:
        """Return the gain of positions p [P, r], float64 [P]; ``-inf`` for some below their bar.

        Position p scales by 1 + p. The bars are gains themselves.
        """
        reached = race(self._reached, self._most, positions, bars * self._aim.total + self._before)
        return (reached - self._before) / self._aim.total

    @property
    def _before(self) -> float:
        return self._aim.before

    def _reached(self, block: int, positions: np.ndarray) -> np.ndarray:
        part = self._blocks[block]
        return self._tail.scaled(self._neurons, 1 + positions, part, self._aim.weights)


def repair(
    tail: Tail,
    aim: Objective,
    neurons: np.ndarray,
    rng: np.random.Generator,
    *,
    particles: int = 20,
    iterations: int = 100,
    inertia: float = 0.8,
    own_pull: float = 0.41,
    leader_pull: float = 0.41,
    patience: int = 10,
    tolerance: float = 1e-3,
) -> Iterator[Step]:
    """Search factors for the values of `neurons`; all particles start at the original model.

    Parameters
    ----------
    tail : Tail
        With the repair split.
    aim : Objective
    neurons : ndarray of int64, [r]
    rng : numpy.random.Generator
    particles, iterations, inertia, own_pull, leader_pull, patience, tolerance
        As in `modelfix_core.search.InertiaSwarm`.

    Yields
    ------
    Step
        After every iteration; the last one has the best personal best.
    """
    gain = Gain(tail, aim, neurons)
    search = InertiaSwarm(
        np.zeros((particles, len(neurons))),
        -1.0,
        1.0,
        rng,
        iterations=iterations,
        inertia=inertia,
        own_pull=own_pull,
        leader_pull=leader_pull,
        patience=patience,
        tolerance=tolerance,
    )
    search.ask()
    search.tell(np.zeros(particles))  # the original model's own gain
    known = search.leader
    yield Step(search.iteration, 1 + known, 0.0, False)
    while not search.finished:
        search.tell(gain(*search.ask()))
        # A particle that came to the same fitness later may have the best personal best.
        best = search.best if search.finished else search.leader
        is_new = not np.array_equal(best, known)
        known = best.copy()
        yield Step(search.iteration, 1 + known, search.leader_fitness, is_new)
