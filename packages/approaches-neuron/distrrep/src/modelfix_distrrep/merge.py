"""Blend the patches into one model by searching one coefficient for each of them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.dataset import Split
from modelfix_core.keras import KerasModel, Population
from modelfix_core.population import Patch
from modelfix_core.search import ParticleSwarm
from modelfix_core.seeds import generator

from modelfix_distrrep import evidence
from modelfix_distrrep.approach import DistrRepConfig, Selection, class_names, classifier
from modelfix_distrrep.blend import Blend
from modelfix_distrrep.patches import Repair
from modelfix_distrrep.risks import RiskSetting, Score

logger = logging.getLogger(__name__)

CENTRE, DEVIATION = 0.5, 0.125  # of the particles' first coordinates (code)
SLOWEST, FASTEST = 0.2, 5.0  # speed limits of a coordinate (code)
OUTSIDE = -1.0  # score of a particle outside of the unit box, below every score inside (code)


@dataclass(frozen=True)
class Verdict:
    """What P models make of some inputs.

    Attributes
    ----------
    errors : ndarray of int64, [P, M]
        Of each misclassification.
    score : ndarray of float64, [P]
    accuracy : ndarray of float64, [P]
    """

    errors: np.ndarray
    score: np.ndarray
    accuracy: np.ndarray


class Judge:
    """Judges many models that differ in the blended weights, on the same inputs.

    Parameters
    ----------
    net : KerasModel
    patch : Patch
        The blended weights.
    inputs : Split
    setting : RiskSetting
    """

    def __init__(self, net: KerasModel, patch: Patch, inputs: Split, setting: RiskSetting) -> None:
        self._population = Population(net, [patch], inputs)
        self._score = Score(setting, inputs.y)
        self._y = inputs.y

    def __call__(self, values: np.ndarray) -> Verdict:
        """Judge the models with weights [P, D]."""
        predicted = self._population.logits(values).argmax(axis=2)
        errors = self._score.errors(predicted)
        return Verdict(errors, self._score(errors), (predicted == self._y).mean(axis=1))


def fitness(judge: Judge, blend: Blend, coefficients: np.ndarray) -> np.ndarray:
    """Return the score of particles [P, M + S], float64 [P]; those outside are not evaluated."""
    inside = ((coefficients >= 0) & (coefficients <= 1)).all(axis=1)
    scores = np.full(len(coefficients), OUTSIDE)
    if inside.any():
        scores[inside] = judge(blend.values(coefficients[inside])).score
    return scores


def start(dimensions: int, config: DistrRepConfig, rng: np.random.Generator) -> ParticleSwarm:
    """Set up the swarm over the coefficients, which begins near the middle of the unit box."""
    return ParticleSwarm(
        rng.normal(CENTRE, DEVIATION, (config.particles, dimensions)),
        SLOWEST,
        FASTEST,
        rng,
        iterations=config.iterations,
        patience=config.patience,
        phi=config.phi,
    )


@dataclass(frozen=True)
class Place:
    """A place of the swarm: coefficients [M + S], weights [D] and the candidate they make."""

    coefficients: np.ndarray
    values: np.ndarray
    candidate: Candidate


def merge(
    net: KerasModel,
    task: Task,
    config: DistrRepConfig,
    setting: RiskSetting,
    repairs: Sequence[Repair],
    progress: Callable[[int, str], None],
) -> Iterator[Candidate | Evidence]:
    """Search the coefficients; propose what is not below the score of the original model.

    Parameters
    ----------
    net : KerasModel
        Holds the original weights.
    task : Task
    config : DistrRepConfig
    setting : RiskSetting
    repairs : sequence of Repair
    progress : callable
        Gets the finished iterations, and a note.
    """
    layer = classifier(task.model)
    weight = task.model.weights[layer.weight]
    blend = Blend(weight, [(r.blame.index, r.values) for r in repairs], config.blend)
    patch = Patch(layer.name, blend.index)
    judge = Judge(net, patch, task.repair.select(setting.counted(task.repair.y)), setting)
    validation = Judge(net, patch, task.validation, setting)
    least = judge(blend.original[None]).score[0]
    search = start(blend.dimensions, config, generator(task.seed, stage="merge"))
    places: list[Place] = []
    best = -np.inf
    while not search.finished:
        coefficients, _ = search.ask()
        search.tell(fitness(judge, blend, coefficients))
        note = f"merging {len(repairs)} patches, score {search.best_fitness:.4f} from {least:.4f}"
        progress(search.iteration, note)
        if search.best_fitness <= best:
            continue
        best = search.best_fitness
        if best < least:
            continue
        values = blend.values(search.best[None])[0]
        verdict = validation(values[None])
        candidate = Candidate(
            weights={layer.weight: blend.weight(values)},
            validation_accuracy=float(verdict.accuracy[0]),
            step=search.iteration,
            values={"score": best, "validation_score": float(verdict.score[0])},
        )
        places.append(Place(search.best, values, candidate))
    if not places:
        logger.warning("No blend of the patches scores as well as the original model.")
        places.append(Place(np.zeros(blend.dimensions), blend.original, Candidate(weights={})))
    chosen = choose(places, config.selection)
    for place in places if config.selection == "accuracy" else [chosen]:
        yield place.candidate
    before_and_after = np.stack([blend.original, chosen.values])
    errors = judge(before_and_after).errors, validation(before_and_after).errors
    labels = class_names(task.model)
    yield evidence.misclassifications(setting, repairs, chosen.coefficients, *errors, labels)
    yield evidence.weights(blend, repairs, chosen.values, labels)


def choose(places: Sequence[Place], selection: Selection) -> Place:
    """Return the place that becomes the fixed model; of equal ones the later."""

    def worth(place: Place) -> tuple[float, ...]:
        candidate = place.candidate
        accuracy = candidate.validation_accuracy or 0.0
        if selection == "score":
            return candidate.values.get("validation_score", 0.0), accuracy
        return (accuracy,) if selection == "accuracy" else (candidate.step,)

    return max(reversed(places), key=worth)
