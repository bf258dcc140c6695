"""One small repair for each misclassification, all of the same original model."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from modelfix_arachne import inputs
from modelfix_arachne.first_version import (
    Edited,
    cross_entropy_gradient,
    fitness,
    localise,
    swarm,
)
from modelfix_core.approach import Localisation, Task
from modelfix_core.keras import KerasModel, Population
from modelfix_core.model import Model
from modelfix_core.population import Patch
from modelfix_core.search import ParticleSwarm
from modelfix_core.seeds import generator

from modelfix_distrrep.approach import DistrRepConfig, classifier
from modelfix_distrrep.risks import Misclassification

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blame:
    """The weights of the classifier that are blamed for one misclassification.

    Attributes
    ----------
    entry : Misclassification
    failing : ndarray of int64
        Positions in the repair split.
    index : ndarray of int64, [D]
        Positions in the flattened weight, ascending.
    gradient : ndarray of float64, [D]
        Absolute gradient of the mean loss of the failing inputs.
    """

    entry: Misclassification
    failing: np.ndarray
    index: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True)
class Repair:
    """New values of the weights blamed for one misclassification.

    Attributes
    ----------
    blame : Blame
    values : ndarray of float32, [D]
    repaired : int
        How many of the failing inputs the patch alone gets right.
    """

    blame: Blame
    values: np.ndarray
    repaired: int


def blame(
    net: KerasModel,
    task: Task,
    logits: np.ndarray,
    entries: Sequence[Misclassification],
    candidates: int,
) -> list[Blame]:
    """Localise each misclassification on its own, by the first Arachne on the last dense layer.

    Parameters
    ----------
    net : KerasModel
    task : Task
    logits : ndarray, [N, K]
        Of the repair split.
    entries : sequence of Misclassification
        Those that have no failing input are left out, with a warning.
    candidates : int
        Weights with the largest gradient that are looked at, per failing input.
    """
    layer = classifier(net.model)
    y, weight = task.repair.y, net.model.weights[layer.weight]
    predicted = logits.argmax(axis=1)
    failing = [entry.inputs(predicted, y) for entry in entries]
    needed = np.unique(np.concatenate(failing))
    if not len(needed):
        return []
    features = net.prefix(layer.input, task.repair.select(needed))
    found = []
    for entry, rows in zip(entries, failing, strict=True):
        if not len(rows):
            logger.warning("%s: no failing input in the repair split, so no patch.", entry)
            continue
        o, z = features[np.searchsorted(needed, rows)], logits[rows]
        index = np.sort(localise(o, z, y[rows], weight, candidates * len(rows)))
        gradient = np.abs(cross_entropy_gradient(z, y[rows]).T @ o).ravel() / len(rows)
        found.append(Blame(entry, rows, index, gradient[index]))
    return found


def localisation(model: Model, found: Sequence[Blame]) -> Localisation:
    """Return all blamed weights; the score of one that several share is its largest gradient."""
    layer = classifier(model)
    index, place = np.unique(np.concatenate([b.index for b in found]), return_inverse=True)
    score = np.zeros(len(index))
    np.maximum.at(score, place, np.concatenate([b.gradient for b in found]))
    order = np.argsort(-score, kind="stable")
    return Localisation("weight", [layer.name] * len(index), index[order], score[order])


def repair(
    net: KerasModel,
    task: Task,
    config: DistrRepConfig,
    found: Sequence[Blame],
    predicted: np.ndarray,
    progress: Callable[[int, str], None],
) -> list[Repair]:
    """Search new values for each misclassification; none sees what another one found.

    Parameters
    ----------
    net : KerasModel
        Holds the original weights before and after.
    task : Task
    config : DistrRepConfig
    found : sequence of Blame
    predicted : ndarray of int64, [N]
        Of the repair split.
    progress : callable
        Gets the finished iterations of all searches, and a note.
    """
    layer = classifier(net.model)
    passing = keep(predicted, task, config)
    repairs = []
    for number, one in enumerate(found):
        rows = np.concatenate([one.failing, passing])
        is_failing = np.arange(len(rows)) < len(one.failing)
        population = Population(net, [Patch(layer.name, one.index)], task.repair.select(rows))
        search = start(net.model.weights[layer.weight], one, task.seed, config)
        while not search.finished:
            values, _ = search.ask()
            scores = population.evaluate(values)
            search.tell(fitness(scores.right, scores.loss, is_failing))
            note = f"patch {number + 1} of {len(found)}, fitness {search.best_fitness:.2f}"
            progress(number * config.iterations + search.iteration, note)
        best = search.best.astype(np.float32)
        right = population.evaluate(best[None]).right[0]
        repairs.append(Repair(one, best, int(right[is_failing].sum())))
    return repairs


def keep(predicted: np.ndarray, task: Task, config: DistrRepConfig) -> np.ndarray:
    """Draw the passing inputs that every patch is to keep; positions, ascending."""
    every = inputs.passing(predicted, task.repair.y)
    rng = generator(task.seed, stage="passing")
    return np.sort(rng.choice(every, min(config.n_pos, len(every)), replace=False))


def start(weight: np.ndarray, one: Blame, seed: int, config: DistrRepConfig) -> ParticleSwarm:
    """Set up the search of one patch of the kernel [K, I].

    Its seed follows from the misclassification and not from its place, so that their order changes
    nothing.
    """
    true, predicted = one.entry.true, str(one.entry.predicted)
    return swarm(
        [Edited(weight, one.index)],
        generator(seed, stage="patch", true=true, predicted=predicted),
        particles=config.particles,
        iterations=config.iterations,
        patience=config.patience,
        phi=config.phi,
    )
