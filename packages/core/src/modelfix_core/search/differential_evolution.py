"""Differential evolution rand/1/bin, dithered, with the asynchronous update exactly batched."""

from typing import NamedTuple

import numpy as np


class Draws(NamedTuple):
    """Every random number of one generation of P individuals in D dimensions.

    Attributes
    ----------
    factor : float32
        Scale F of the difference of two donors, one for the generation (dither).
    donors : ndarray of int64, [P, 3]
        Three distinct individuals other than the one whose trial they make.
    crossed : ndarray of bool, [P, D]
        Coordinates that a trial takes from its donors; at least one per row.
    """

    factor: np.float32
    donors: np.ndarray
    crossed: np.ndarray


def draw(
    rng: np.random.Generator,
    size: int,
    dimensions: int,
    crossover: float,
    dither: tuple[float, float],
) -> Draws:
    """Draw the numbers of one generation of `size` individuals."""
    factor = np.float32(rng.uniform(*dither))
    order = rng.random((size, size))
    np.fill_diagonal(order, 2.0)
    donors = np.argsort(order, axis=1)[:, :3]
    certain = rng.integers(dimensions, size=size)
    crossed = rng.random((size, dimensions)) < crossover
    crossed[np.arange(size), certain] = True
    return Draws(factor, donors, crossed)


class DifferentialEvolution:
    """Differential evolution rand/1/bin with one F per generation (dither).

    In the asynchronous update a winning trial replaces its individual at once, and later trials of
    the same generation already use it. All random numbers of a generation are drawn first, so the
    trials can be evaluated in batches that assume that no earlier donor was replaced; a trial whose
    donors turn out otherwise is asked for again. Every decision rests on the trial that the
    sequential loop would have made: the populations are bit-identical to that loop's, with about 4
    batches per generation in place of P calls.

    Parameters
    ----------
    population : ndarray, [P, D]
        Initial individuals, P >= 4; computed with in float32.
    low, high : ndarray, [D]
        Bounds of the trials; the initial individuals may lie outside.
    rng : numpy.random.Generator
    generations : int
        After how many the search is finished.
    patience : int, optional
        Finished too when the best fitness, compared in float32, was the same in more than this
        many consecutive generations; default never.
    target : float
        Finished too when the best fitness reaches it.
    crossover : float
        Probability in [0, 1] that a coordinate comes from the donors.
    dither : tuple of float
        Range of F.
    synchronous : bool
        Make all trials of a generation from the individuals at its start.

    Attributes
    ----------
    population : ndarray of float32, [P, D]
    fitness : ndarray of float64, [P]
        ``-inf`` until the first `tell`.
    generation : int
        Finished generations.
    evaluations : int
        Trials asked for so far, the initial individuals and repeated trials included.
    """

    def __init__(
        self,
        population: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        rng: np.random.Generator,
        *,
        generations: int = 100,
        patience: int | None = None,
        target: float = np.inf,
        crossover: float = 0.7,
        dither: tuple[float, float] = (0.5, 1.0),
        synchronous: bool = False,
    ) -> None:
        if len(population) < 4:
            raise ValueError(f"differential evolution needs 4 individuals, got {len(population)}")
        self.population = np.array(population, dtype=np.float32)
        self.low = np.asarray(low, dtype=np.float32)
        self.high = np.asarray(high, dtype=np.float32)
        self.fitness = np.full(len(population), -np.inf)
        self.generation = 0
        self.evaluations = 0
        self._rng = rng
        self._generations = generations
        self._patience = patience
        self._target = target
        self._crossover = crossover
        self._dither = dither
        self._synchronous = synchronous
        self._same = 0
        self._initial = True
        self._decided = np.ones(len(population), dtype=bool)

    @property
    def best(self) -> np.ndarray:
        """The fittest individual (the first on ties), [D]."""
        return self.population[self.fitness.argmax()]

    @property
    def best_fitness(self) -> float:
        """Fitness of the fittest individual."""
        return float(self.fitness.max())

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be asked."""
        stagnant = self._patience is not None and self._same > self._patience
        enough = self.generation >= self._generations or self.best_fitness >= self._target
        return not self._initial and self._between and (stagnant or enough)

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the trials to evaluate next, [p, D], and the fitness each has to reach, [p]."""
        if self._initial:
            asked, values = np.arange(len(self.population)), self.population.copy()
        else:
            if self._between:
                self._begin()
            asked = np.flatnonzero(~self._decided & ~self._valid)
            values = self._trials_of(asked)
        self._asked, self._values = asked, values
        self.evaluations += len(asked)
        return values, self.fitness[asked]

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness, [p], of the trials last asked for, in their order."""
        if self._initial:
            self.fitness[:] = fitness
            self._initial = False
            return
        self._trials[self._asked], self._scores[self._asked] = self._values, fitness
        self._valid[self._asked] = True
        self._decide()
        if self._between:
            self._end()

    @property
    def _between(self) -> bool:
        return bool(self._decided.all())

    def _begin(self) -> None:
        size, dimensions = self.population.shape
        self._draws = draw(self._rng, size, dimensions, self._crossover, self._dither)
        # Whether a donor comes before its user, so that the user sees its replacement.
        self._earlier = self._draws.donors < np.arange(size)[:, None]
        if self._synchronous:
            self._earlier[:] = False
        self._start = self.population.copy()
        self._before = self.best_fitness
        self._decided = np.zeros(size, dtype=bool)
        self._valid = np.zeros(size, dtype=bool)
        self._trials = np.empty_like(self.population)
        self._scores = np.empty(size)

    def _trials_of(self, rows: np.ndarray) -> np.ndarray:
        """Make the trials of `rows` from what is known of their donors now."""
        donors, earlier = self._draws.donors[rows], self._earlier[rows]
        values = np.where(earlier[..., None], self.population[donors], self._start[donors])
        mutant = values[:, 0] + self._draws.factor * (values[:, 1] - values[:, 2])
        mutant = np.clip(mutant, self.low, self.high)
        return np.where(self._draws.crossed[rows], mutant, self._start[rows])

    def _decide(self) -> None:
        """Settle every individual whose trial was made from the donors' final values."""
        donors, earlier = self._draws.donors, self._earlier
        while True:
            known = (self._decided[donors] | ~earlier).all(axis=1)
            ready = ~self._decided & self._valid & known
            if not ready.any():
                return
            won = ready & (self._scores >= self.fitness)
            self.population[won], self.fitness[won] = self._trials[won], self._scores[won]
            self._decided |= ready
            self._valid &= ~(won[donors] & earlier).any(axis=1)

    def _end(self) -> None:
        self.generation += 1
        unchanged = np.float32(self.best_fitness) == np.float32(self._before)
        self._same = self._same + 1 if unchanged else 0
