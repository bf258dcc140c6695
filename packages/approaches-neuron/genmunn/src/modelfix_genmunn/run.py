"""One run on a task: the fitness data, the blamed weights, and the search over their values."""

from collections.abc import Iterator, Sequence

import numpy as np
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.population import DEFAULT_MEMORY, Patch
from modelfix_core.search import GeneticAlgorithm
from modelfix_core.seeds import generator
from modelfix_core.torch import Population, TorchModel, load, predict

from modelfix_genmunn.approach import GenMuNNConfig, mutable_layers
from modelfix_genmunn.fitness import Fitness, patched
from modelfix_genmunn.mutation import Mutation
from modelfix_genmunn.samples import FEWEST_FAILURES, fitness_samples, joined
from modelfix_genmunn.spectrum import blame, spectra

BATCH = 500


def propose(task: Task, config: GenMuNNConfig) -> Iterator[Candidate | Localisation]:
    """Yield the blamed weights, the original model and each variant that beats all before it.

    Where nothing fails or nothing passes, only the original model is proposed.
    """
    task.progress(0, config.generations, "predicting the training data")
    with task.timing("conversion"):
        net = load(task.model, task.device)
    data, failing = fitness_data(task, net, config)
    original = Candidate(weights={}, validation_accuracy=task.model.accuracy(task.validation))
    if not failing.any() or failing.all():
        yield original
        return
    layers = mutable_layers(task.model)
    found = spectra(
        net,
        layers,
        data,
        failing,
        config.threshold,
        memory_of(task),
        lambda done: task.progress(0, config.generations, f"spectrum of {done} samples"),
    )
    patches, localisation = blame(
        task.model, layers, found, config.share, config.formula, config.score
    )
    yield localisation
    yield original
    yield from search(task, config, net, patches, data, original)


def memory_of(task: Task) -> int:
    """Return the bytes that one tool may use: at most a quarter of the task's limit."""
    limit = task.budget.memory
    return DEFAULT_MEMORY if limit is None else min(DEFAULT_MEMORY, limit // 4)


def fitness_data(task: Task, net: TorchModel, config: GenMuNNConfig) -> tuple[Split, np.ndarray]:
    """Return the fitness data and which of them fail, bool [N] (section 3).

    Misclassified repair samples join where the training data have too few failures.
    """
    assert task.train is not None  # check() refuses such tasks
    right = _right(task, net, task.train, config, "training")
    rng = generator(task.seed, stage="fitness")
    chosen = fitness_samples(right, task.train.y, config.fitness_samples, rng)
    data, failing = task.train.select(chosen), ~right[chosen]
    if failing.sum() < FEWEST_FAILURES:
        faults = np.flatnonzero(~_right(task, net, task.repair, config, "repair"))
        data = joined(data, task.repair.select(faults))
        failing = np.append(failing, np.ones(len(faults), dtype=bool))
    return data, failing


def _right(task, net, split: Split, config, name: str) -> np.ndarray:
    parts = []
    for batch in split.batches(BATCH):
        parts.append(predict(net, split.images(batch)).argmax(axis=1) == split.y[batch])
        note = f"predicting the {name} data: {batch.stop} of {len(split)}"
        task.progress(0, config.generations, note)
    return np.concatenate(parts)


def search(
    task: Task,
    config: GenMuNNConfig,
    net: TorchModel,
    patches: Sequence[Patch],
    data: Split,
    original: Candidate,
) -> Iterator[Candidate]:
    """Yield the best variant of a generation whenever it beats all before it on validation.

    The fastest look at the validation data decides whether a variant is worth a proposal; its
    accuracy is then that of the changed model itself.
    """
    mutation = Mutation(task.model, patches, config.mutated_weights, config.noise, config.operators)
    rng = generator(task.seed, stage="search")
    algorithm = GeneticAlgorithm(
        first_generation(mutation, config.population, rng),
        mutation,
        rng,
        elite=config.elite,
        generations=config.generations,
        patience=config.patience,
        target=len(data),
        crossover=config.crossover,
    )

    def progress() -> None:
        right = max(algorithm.best_fitness, 0)
        note = f"{right:.0f} of {len(data)} right with {mutation.original.size} weights"
        task.progress(algorithm.generation, config.generations, note)

    fitness = Fitness(net, patches, data, memory_of(task), progress)
    validation = Population(net, patches, task.validation, memory=memory_of(task))
    best, seen = original.validation_accuracy or 0.0, mutation.original
    while not algorithm.finished:
        variants, _ = algorithm.ask()
        algorithm.tell(fitness(variants))
        progress()
        if np.array_equal(algorithm.best, seen):
            continue
        seen = algorithm.best.copy()
        if validation.evaluate(seen[None]).right.mean() <= best:
            continue
        candidate = propose_variant(task, patches, algorithm, len(data))
        accuracy = candidate.validation_accuracy
        assert accuracy is not None, "every proposal is measured"
        if accuracy > best:
            best = accuracy
            yield candidate


def first_generation(mutation: Mutation, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the original and `size` - 1 mutants of it, [P, K] (step 8)."""
    variants = np.tile(mutation.original, (size, 1))
    variants[1:] = mutation(variants[1:], rng)
    return variants


def propose_variant(
    task: Task, patches: Sequence[Patch], algorithm: GeneticAlgorithm, samples: int
) -> Candidate:
    """Return the algorithm's best variant with the accuracy of the model itself."""
    changed = {
        name: weight
        for name, weight in patched(task.model, patches, algorithm.best).items()
        if not np.array_equal(weight, task.model.weights[name])
    }
    return Candidate(
        weights=changed,
        validation_accuracy=task.model.with_weights(changed).accuracy(task.validation),
        step=algorithm.generation,
        values={"fitness": algorithm.best_fitness / samples},
    )
