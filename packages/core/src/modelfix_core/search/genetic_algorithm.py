"""A genetic algorithm with an elite, binary tournaments and any mutation."""

from collections.abc import Callable

import numpy as np

Mutation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class GeneticAlgorithm:
    """A generational genetic algorithm whose elite keeps its fitness.

    The fittest of a generation survive unchanged; all others are replaced by children. A child's
    parent is the fitter of two individuals drawn with replacement; it is crossed, if at all, with
    the winner of a second such tournament, and mutated.

    Fitness may have several criteria, compared in their order; full ties go to the older one.
    Since even the last of a generation can win a tournament, every child is to be evaluated in
    full: the bars that `ask` gives are ``-inf``.

    Parameters
    ----------
    population : ndarray, [P, D]
        The first generation, P >= 2; computed with in float32.
    mutate : callable
        ``mutate(parents [p, D], rng)`` gives their children, [p, D]; it leaves `parents` alone.
    rng : numpy.random.Generator
    elite : int
        How many survive, 1 <= elite < P.
    generations : int
        After how many the search is finished; the first one counts.
    patience : int, optional
        Finished too when the best first criterion did not rise for this many generations; default
        never.
    target : float
        Finished too when the best first criterion reaches it.
    crossover : float
        Probability in [0, 1] that a coordinate comes from the second parent; 0 is no crossover.

    Attributes
    ----------
    population : ndarray of float32, [P, D]
        Fittest first, once it was told of.
    fitness : ndarray of float64, [P, F]
        ``-inf`` until the first `tell`.
    generation : int
        Evaluated generations.
    evaluations : int
        Individuals asked for so far.
    """

    def __init__(
        self,
        population: np.ndarray,
        mutate: Mutation,
        rng: np.random.Generator,
        *,
        elite: int = 1,
        generations: int = 100,
        patience: int | None = None,
        target: float = np.inf,
        crossover: float = 0.0,
    ) -> None:
        if not 1 <= elite < len(population):
            raise ValueError(f"an elite of {elite} needs 1 to {len(population) - 1} individuals")
        self.population = np.array(population, dtype=np.float32)
        self.fitness = np.full((len(population), 1), -np.inf)
        self.generation = 0
        self.evaluations = 0
        self._mutate = mutate
        self._rng = rng
        self._elite = elite
        self._generations = generations
        self._patience = patience
        self._target = target
        self._crossover = crossover
        self._stagnant = 0

    @property
    def best(self) -> np.ndarray:
        """The fittest individual (the oldest on ties), [D]."""
        return self.population[0]

    @property
    def best_fitness(self) -> float:
        """First criterion of the fittest individual."""
        return float(self.fitness[0, 0])

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be asked."""
        stagnant = self._patience is not None and self._stagnant >= self._patience
        enough = self.generation >= self._generations or self.best_fitness >= self._target
        return self.generation > 0 and (stagnant or enough)

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the individuals to evaluate next, [p, D], and what each has to reach, [p]."""
        if self.generation:
            self.population[self._elite :] = self._children(len(self.population) - self._elite)
        asked = self.population[self._elite if self.generation else 0 :]
        self.evaluations += len(asked)
        return asked.copy(), np.full(len(asked), -np.inf)

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness, [p] or [p, F], of the individuals last asked for, in their order."""
        told = np.asarray(fitness, dtype=np.float64).reshape(len(fitness), -1)
        before = self.best_fitness
        kept = self.fitness[: self._elite if self.generation else 0]
        everyone = np.concatenate([kept.reshape(-1, told.shape[1]), told])
        # Survivors come first and fittest first, so a stable sort gives ties to the older one.
        order = np.lexsort(-everyone.T[::-1])
        self.population, self.fitness = self.population[order], everyone[order]
        self.generation += 1
        self._stagnant = 0 if self.best_fitness > before else self._stagnant + 1

    def _children(self, count: int) -> np.ndarray:
        children = self.population[self._tournaments(count)]
        if self._crossover:
            others = self.population[self._tournaments(count)]
            crossed = self._rng.random(children.shape) < self._crossover
            children = np.where(crossed, others, children)
        return self._mutate(children, self._rng)

    def _tournaments(self, count: int) -> np.ndarray:
        # The population is sorted, so the smaller position is the fitter one.
        return self._rng.integers(len(self.population), size=(count, 2)).min(axis=1)
