"""Particle swarm optimisation with constriction, speed limits and speeds that never reach zero."""

import numpy as np


class ParticleSwarm:
    """The particle swarm of the first Arachne ("PSO-A"; arXiv version of 2019).

    An iteration moves every particle, then computes its next velocity from the personal bests and
    from the best of all as they were before the iteration, then evaluates the new position. The
    velocities start at zero, so the first iteration moves nothing and is not evaluated again.

    Parameters
    ----------
    positions : ndarray, [P, D]
        Initial particles.
    slowest, fastest : float or ndarray, [D]
        Limits of each coordinate's absolute velocity; 0 <= slowest <= fastest.
    rng : numpy.random.Generator
    iterations : int
        After how many the search is finished.
    patience : int
        Finished too when, after more than this many iterations, the best of the last so many is not
        above the one before them.
    phi : float
        Upper end of the two attractions' random factors, above 4; the constriction follows from it.

    Attributes
    ----------
    positions, velocities : ndarray of float64, [P, D]
    own, own_fitness : ndarray of float64, [P, D] and [P]
        Personal bests.
    iteration : int
        Finished iterations.
    evaluations : int
    """

    def __init__(
        self,
        positions: np.ndarray,
        slowest: float | np.ndarray,
        fastest: float | np.ndarray,
        rng: np.random.Generator,
        *,
        iterations: int = 100,
        patience: int = 10,
        phi: float = 4.1,
    ) -> None:
        self.positions = np.array(positions, dtype=np.float64)
        self.velocities = np.zeros_like(self.positions)
        self.own = self.positions.copy()
        self.own_fitness = np.full(len(self.positions), -np.inf)
        self.iteration = 0
        self.evaluations = 0
        self._slowest = slowest
        self._fastest = fastest
        self._rng = rng
        self._iterations = iterations
        self._patience = patience
        self._phi = phi
        self._constriction = 2 / (phi - 2 + np.sqrt(phi**2 - 4 * phi))
        self._history: list[float] = []

    @property
    def best(self) -> np.ndarray:
        """The fittest position so far (of the first particle on ties), [D]."""
        return self.own[self.own_fitness.argmax()]

    @property
    def best_fitness(self) -> float:
        """Fitness of `best`."""
        return float(self.own_fitness.max())

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be asked."""
        if self.iteration >= self._iterations:
            return True
        if self.iteration <= self._patience:
            return False
        return self._history[-1] <= self._history[-1 - self._patience]

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions to evaluate next, [P, D], and the personal bests to exceed, [P]."""
        if self._history:
            self.positions += self.velocities
            self._steer()
        self.evaluations += len(self.positions)
        return self.positions.copy(), self.own_fitness.copy()

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness, [P], of the positions last asked for."""
        better = np.asarray(fitness, dtype=np.float64) > self.own_fitness
        self.own[better] = self.positions[better]
        self.own_fitness[better] = np.asarray(fitness)[better]
        if not self._history:
            # The first iteration: no particle moves, only the velocities are new.
            self._history.append(self.best_fitness)
            self._steer()
        self._history.append(self.best_fitness)
        self.iteration += 1

    def _steer(self) -> None:
        attraction = self._rng.uniform(0, self._phi, (2, len(self.positions), 1))
        pull = attraction[0] * (self.own - self.positions)
        pull += attraction[1] * (self.best - self.positions)
        velocity = self._constriction * (self.velocities + pull)
        speed = np.clip(np.abs(velocity), self._slowest, self._fastest)
        self.velocities = np.where(velocity > 0, speed, -speed)
