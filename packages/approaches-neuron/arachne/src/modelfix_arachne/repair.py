"""Search new values for the localised weights by differential evolution."""

from collections.abc import Iterator, Sequence

import numpy as np
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.keras import KerasModel, Population
from modelfix_core.model import Model
from modelfix_core.population import Patch, Scores
from modelfix_core.search import DifferentialEvolution, race
from modelfix_core.seeds import generator

from modelfix_arachne.approach import ArachneConfig

BLOCK = 256  # at most so many inputs between two looks at whether a trial can still win


def repair(
    net: KerasModel,
    task: Task,
    config: ArachneConfig,
    front: Localisation,
    failing: np.ndarray,
    passing: np.ndarray,
) -> Iterator[Candidate]:
    """Search values of the weights on `front`; yield the best of a generation if it is a new best.

    Parameters
    ----------
    net : KerasModel
    task : Task
    config : ArachneConfig
    front : Localisation
    failing, passing : ndarray of int64
        Positions in the repair split; passing inputs that break easily come first.
    """
    space = Space(task.model, front)
    order = np.concatenate([failing, passing])
    fitness = Fitness(net, space.patches, task.repair.select(order), len(failing), config.alpha)
    validation = Population(net, space.patches, task.validation)
    rng = generator(task.seed, stage="search")
    search = DifferentialEvolution(
        space.draw(config.population, rng),
        space.low,
        space.high,
        rng,
        generations=config.generations,
        patience=config.patience or max(10, config.generations // 10),
        target=fitness.largest if config.stop_when_perfect else np.inf,
        crossover=config.crossover,
        dither=config.factor,
        synchronous=config.update == "sync",
    )
    flop = work(task.model, space.patches, len(order), config)
    note = f"{len(front)} weights, at most {flop:.1e} FLOP"
    task.progress(0, config.generations, note)
    known, best = -1, -np.inf
    while not search.finished:
        search.tell(fitness(*search.ask()))
        note = f"fitness {search.best_fitness:.1f} of {fitness.largest:.1f}"
        task.progress(search.generation, config.generations, note)
        if search.generation == known or search.best_fitness <= best:
            continue
        known, best = search.generation, search.best_fitness
        scores = validation.evaluate(search.best[None])
        yield Candidate(
            weights=space.weights(search.best),
            validation_accuracy=float(scores.right.mean()),
            step=search.generation,
            values={"fitness": best, "fitness_share": best / fitness.largest},
        )


class Space:
    """The values that the localised weights may take.

    Parameters
    ----------
    model : Model
    front : Localisation

    Attributes
    ----------
    patches : list of Patch
        The weights layer by layer in graph order: the coordinates of the search.
    low, high : ndarray of float64, [D]
        Bounds: twice the smallest and largest weight of the layer, or half where its sign would
        make twice the narrower bound.
    """

    def __init__(self, model: Model, front: Localisation) -> None:
        self.model = model
        names, index = np.asarray(front.layer), np.asarray(front.index)
        self.patches = [
            Patch(layer.name, np.sort(index[names == layer.name]))
            for layer in model.layers()
            if (names == layer.name).any()
        ]
        self.low = self._each(lambda w: 2 * w.min() if w.min() < 0 else w.min() / 2)
        self.high = self._each(lambda w: 2 * w.max() if w.max() > 0 else w.max() / 2)

    def _each(self, statistic) -> np.ndarray:
        kernels = [self._weight(patch).astype(np.float64) for patch in self.patches]
        sizes = [len(patch.index) for patch in self.patches]
        return np.repeat([statistic(kernel) for kernel in kernels], sizes)

    def _weight(self, patch: Patch) -> np.ndarray:
        return self.model.weights[self.model.layer(patch.layer).weight]

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw individuals [size, D] from the normal distribution of each layer's weights."""
        mean, deviation = self._each(np.mean), self._each(np.std)
        return rng.normal(mean, deviation, (size, len(mean))).astype(np.float32)

    def weights(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the edited weights of the model, given one value for each coordinate."""
        changed = {}
        ends = np.cumsum([len(patch.index) for patch in self.patches])
        for patch, part in zip(self.patches, np.split(values, ends[:-1]), strict=True):
            weight = self._weight(patch).copy()
            weight.flat[patch.index] = part
            changed[self.model.layer(patch.layer).weight] = weight
        return changed


class Fitness:
    """What a patched model is worth: credit 1 for a right input, 1 / (1 + loss) for a wrong one.

    The failing inputs count `alpha` times. Trials race: see `modelfix_core.search.race`.

    Parameters
    ----------
    net : KerasModel
    patches : sequence of Patch
    inputs : Split
        The failing inputs, then the passing ones.
    failing : int
        How many of `inputs` are failing.
    alpha : float

    Attributes
    ----------
    largest : float
        Fitness of a model that is right on all inputs.
    """

    def __init__(
        self,
        net: KerasModel,
        patches: Sequence[Patch],
        inputs: Split,
        failing: int,
        alpha: float,
    ) -> None:
        self._population = Population(net, patches, inputs, chunk=BLOCK)
        self._weights = np.where(np.arange(len(inputs)) < failing, alpha, 1.0)
        self._blocks = list(inputs.batches(self._population.chunk))
        self._most = [float(self._weights[block].sum()) for block in self._blocks]
        self.largest = sum(self._most)

    def __call__(self, values: np.ndarray, bars: np.ndarray) -> np.ndarray:
        """Return the fitness of trials [P, D], float64 [P]; ``-inf`` for some below their bar."""
        return race(self._gain, self._most, values, bars)

    def _gain(self, block: int, values: np.ndarray) -> np.ndarray:
        part = self._blocks[block]
        scores = self._population.evaluate(values, part)
        return (credit(scores) * self._weights[part]).sum(axis=1)


def credit(scores: Scores) -> np.ndarray:
    """Return each input's credit in [0, 1], float64 [P, n]."""
    return np.where(scores.right, 1.0, 1 / (1 + scores.loss.astype(np.float64)))


def work(model: Model, patches: Sequence[Patch], inputs: int, config: ArachneConfig) -> float:
    """Estimate the floating-point operations of the search without racing and early stop."""
    layers = model.layers()
    lowest = min(i for i, layer in enumerate(layers) if layer.name == patches[0].layer)
    products = sum(
        model.weights[layer.weight].size * np.prod(layer.output_shape[1:], dtype=np.float64)
        for layer in layers[lowest:]
        if layer.kind != "batchnorm"
    )
    return 2.0 * products * inputs * config.population * (config.generations + 1)
