"""Particle swarm optimisation with inertia weight, one leader and periodic bounds."""

import numpy as np


class InertiaSwarm:
    """The standard global-best particle swarm in a box that wraps around.

    Every particle is pulled towards its own best position and towards the leader, the best position
    of all. With costs as negative fitness, an iteration does what pyswarms' ``GlobalBestPSO`` does
    with periodic bounds, number for number.

    Parameters
    ----------
    positions : ndarray, [P, D]
        Initial particles, inside the bounds. Their velocities are drawn from [0, 1).
    low, high : float or ndarray, [D]
        Bounds: what leaves the box on one side enters it on the other.
    rng : numpy.random.Generator
    iterations : int
        After how many the search is finished.
    inertia : float
        Share of the velocity that is kept.
    own_pull, leader_pull : float
        Upper ends of the random factors of the two attractions.
    patience : int
        Finished too when, after more than this many iterations, none of the last so many raised the
        leader's fitness f by `tolerance` (1 + |f|) or more.
    tolerance : float

    Attributes
    ----------
    positions, velocities : ndarray of float64, [P, D]
    own, own_fitness : ndarray of float64, [P, D] and [P]
        Personal bests.
    leader : ndarray of float64, [D]
        The position that last raised the best fitness; later ones of equal fitness do not count.
    leader_fitness : float
    iteration : int
        Finished iterations.
    evaluations : int
    """

    def __init__(
        self,
        positions: np.ndarray,
        low: float | np.ndarray,
        high: float | np.ndarray,
        rng: np.random.Generator,
        *,
        iterations: int = 100,
        inertia: float = 0.8,
        own_pull: float = 0.41,
        leader_pull: float = 0.41,
        patience: int = 10,
        tolerance: float = 1e-3,
    ) -> None:
        self.positions = np.array(positions, dtype=np.float64)
        self.velocities = rng.uniform(0, 1, self.positions.shape)
        self.own = self.positions.copy()
        self.own_fitness = np.full(len(self.positions), -np.inf)
        self.leader = self.positions[0].copy()
        self.leader_fitness = -np.inf
        self.iteration = 0
        self.evaluations = 0
        self._low = low
        self._high = high
        self._rng = rng
        self._iterations = iterations
        self._inertia = inertia
        self._own_pull = own_pull
        self._leader_pull = leader_pull
        self._patience = patience
        self._tolerance = tolerance
        self._idle = 0  # iterations in a row without notable gain

    @property
    def best(self) -> np.ndarray:
        """The fittest personal best (of the first particle on ties), [D]."""
        return self.own[self.own_fitness.argmax()]

    @property
    def best_fitness(self) -> float:
        """Fitness of `best`."""
        return float(self.own_fitness.max())

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be asked."""
        stagnant = self.iteration > self._patience and self._idle >= self._patience
        return stagnant or self.iteration >= self._iterations

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions to evaluate next, [P, D], and the personal bests to exceed, [P]."""
        if self.iteration:
            self._move()
        self.evaluations += len(self.positions)
        return self.positions.copy(), self.own_fitness.copy()

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness, [P], of the positions last asked for."""
        fitness = np.asarray(fitness, dtype=np.float64)
        better = fitness > self.own_fitness
        self.own[better], self.own_fitness[better] = self.positions[better], fitness[better]
        before = self.leader_fitness
        if self.best_fitness > before:
            self.leader, self.leader_fitness = self.best.copy(), self.best_fitness
        # The first iteration has nothing to compare with: it counts as a gain.
        notable = self._tolerance * (1 + abs(before)) if np.isfinite(before) else 0.0
        idle = np.isfinite(before) and self.leader_fitness - before < notable
        self._idle = self._idle + 1 if idle else 0
        self.iteration += 1

    def _move(self) -> None:
        # Written as the reference does, so that the last bit agrees too.
        pulls = []
        for strength, goal in ((self._own_pull, self.own), (self._leader_pull, self.leader)):
            chance = self._rng.uniform(0, 1, self.positions.shape)
            pulls.append(strength * chance * (goal - self.positions))
        self.velocities = self._inertia * self.velocities + pulls[0] + pulls[1]
        self.positions = wrap(self.positions + self.velocities, self._low, self._high)


def wrap(positions: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Bring positions [P, D] back into [low, high] by whole turns around the box."""
    low, high = np.broadcast_arrays(low, high, positions)[:2]
    span = np.abs(high - low)
    below = high - np.mod(low - positions, span)
    above = low + np.mod(positions - high, span)
    return np.where(positions < low, below, np.where(positions > high, above, positions))
