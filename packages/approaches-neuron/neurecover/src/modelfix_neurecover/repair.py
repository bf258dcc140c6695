"""Search new values for the localised weights with a particle swarm that punishes regressions."""

from collections.abc import Iterator, Sequence

import numpy as np
from modelfix_arachne.first_version import Edited, swarm
from modelfix_arachne.repair import Space
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.keras import KerasModel, Population
from modelfix_core.model import Model
from modelfix_core.population import Patch, Scores
from modelfix_core.search import ParticleSwarm
from modelfix_core.seeds import generator

from modelfix_neurecover.approach import NeuRecoverConfig


def repair(
    net: KerasModel,
    task: Task,
    config: NeuRecoverConfig,
    found: Localisation,
    failing: np.ndarray,
    passing: np.ndarray,
) -> Iterator[Candidate]:
    """Search values of the localised weights; yield the best place whenever a better one is found.

    Parameters
    ----------
    net : KerasModel
    task : Task
    config : NeuRecoverConfig
    found : Localisation
    failing, passing : ndarray of int64
        Positions in the repair split.
    """
    space = Space(task.model, found)
    inputs = task.repair.select(np.concatenate([failing, passing]))
    fitness = Fitness(net, space.patches, inputs, len(failing), config.alpha)
    validation = Population(net, space.patches, task.validation)
    search = start(task.model, space.patches, config, generator(task.seed, stage="search"))
    best = -np.inf
    while not search.finished:
        values, _ = search.ask()
        search.tell(fitness(values))
        note = f"{len(found)} weights, fitness {search.best_fitness:.3f}"
        task.progress(search.iteration, config.iterations, note)
        if search.best_fitness <= best:
            continue
        best = search.best_fitness
        yield Candidate(
            weights=space.weights(search.best),
            validation_accuracy=float(validation.evaluate(search.best[None]).right.mean()),
            step=search.iteration,
            values={"fitness": best},
        )


def start(
    model: Model, patches: Sequence[Patch], config: NeuRecoverConfig, rng: np.random.Generator
) -> ParticleSwarm:
    """Set up the swarm over the patched weights of one or several dense layers."""
    kernels = [model.weights[model.layer(patch.layer).weight] for patch in patches]
    edited = [Edited(kernel, patch.index) for kernel, patch in zip(kernels, patches, strict=True)]
    search = swarm(
        edited,
        rng,
        particles=config.particles,
        iterations=config.iterations,
        patience=config.patience,
        phi=config.phi,
    )
    if config.include_original:
        original = np.concatenate([e.weight.ravel()[e.index] for e in edited])
        search.positions[0] = search.own[0] = original
    return search


class Fitness:
    """What a patched model is worth: repaired and intact shares, each over its mean loss.

    Parameters
    ----------
    net : KerasModel
    patches : sequence of Patch
    inputs : Split
        The failing inputs, then the passing ones.
    failing : int
        How many of `inputs` are failing.
    alpha : float
        Weight of the passing inputs.
    """

    def __init__(
        self,
        net: KerasModel,
        patches: Sequence[Patch],
        inputs: Split,
        failing: int,
        alpha: float,
    ) -> None:
        self._population = Population(net, patches, inputs)
        self._failing = failing
        self._alpha = alpha

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the fitness of particles [P, D], float64 [P]."""
        return fitness(self._population.evaluate(values), self._failing, self._alpha)


def fitness(scores: Scores, failing: int, alpha: float) -> np.ndarray:
    """Weigh repairs against regressions; both sets count by their shares, whatever their sizes.

    Parameters
    ----------
    scores : Scores
        Of the failing inputs, then of the passing ones.
    failing : int
        How many are failing.
    alpha : float
        Weight of the passing inputs.

    Returns
    -------
    ndarray of float64, [P]
        In (0, 2 + 2 alpha].
    """
    repaired, intact = slice(None, failing), slice(failing, None)

    def worth(part: slice) -> np.ndarray:
        loss = scores.loss[:, part].mean(axis=1, dtype=np.float64)
        return (scores.right[:, part].mean(axis=1) + 1) / (loss + 1)

    return worth(repaired) + alpha * worth(intact)
