# environment: arachne
"""Arachne's whole search against setting the weights and predicting all inputs, trial by trial.

The search has the default population and generations on a prepared subject's repair split. The
baseline is the sequential loop: write a trial's values into the network, predict every input of
the fitness, compare, go on. It runs for a few generations only, after which both must have the
same population and the same patch; its time for the whole search follows from its time per trial.
Preparing the engine (cached activations, compilation) counts as ours.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix_arachne import Arachne, inputs
from modelfix_arachne.localisation import localise
from modelfix_arachne.repair import Fitness, Space, credit
from modelfix_core.dataset import Split
from modelfix_core.keras import KerasModel, load, predict
from modelfix_core.population import Scores
from modelfix_core.search import DifferentialEvolution
from modelfix_core.search.differential_evolution import draw
from modelfix_core.seeds import generator
from modelfix_core.subject import Subject

SUBJECT = Path(__file__).resolve().parents[1] / "results" / "subjects" / "fashion-mini-lenet5"

CONFIG = Arachne().config
PATIENCE = max(10, CONFIG.generations // 10)
BASELINE_GENERATIONS = 2
SEED = 0


class Setting:
    """The search's inputs and weights, as the approach chooses them."""

    def __init__(self, folder: Path, layers: str, conv_fi: str) -> None:
        subject = Subject.load(folder)
        self.net, repair = load(subject.model), subject.dataset(["repair"])["repair"]
        logits = predict(self.net, repair)
        predicted = logits.argmax(axis=1)
        rng = generator(SEED, stage="target")
        failing = inputs.failing(predicted, repair.y, CONFIG.target, rng)
        passing = inputs.passing(predicted, repair.y)
        rng = generator(SEED, stage="passing")
        contrast = inputs.balanced(passing, repair.y, len(failing), rng)
        editable = Arachne(layers=layers).layers(subject.model)
        parts = repair.select(failing), repair.select(contrast)
        self.front = localise(self.net, editable, *parts, conv_fi)
        self.space = Space(subject.model, self.front)
        order = np.concatenate([failing, inputs.by_margin(passing, logits)])
        self.inputs, self.failing = repair.select(order), len(failing)


def ours(setting: Setting, generations: int) -> DifferentialEvolution:
    space = setting.space
    fitness = Fitness(setting.net, space.patches, setting.inputs, setting.failing, CONFIG.alpha)
    rng = generator(SEED, stage="search")
    initial = space.draw(CONFIG.population, rng)
    search = DifferentialEvolution(
        initial, space.low, space.high, rng, generations=generations, patience=PATIENCE
    )
    while not search.finished:
        search.tell(fitness(*search.ask()))
    return search


def fitness_of(net: KerasModel, space: Space, values: np.ndarray, x: Split, weights) -> float:
    net.set_weights(space.weights(values))
    logits = predict(net, x).astype(np.float64)
    top = logits.max(axis=1)
    loss = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    loss -= logits[np.arange(len(x)), x.y]
    scores = Scores(logits.argmax(axis=1) == x.y, loss.astype(np.float32))
    return float((credit(scores) * weights).sum())


def baseline(setting: Setting, generations: int) -> tuple[np.ndarray, np.ndarray]:
    net, space, x = setting.net, setting.space, setting.inputs
    weights = np.where(np.arange(len(x)) < setting.failing, CONFIG.alpha, 1.0)
    low, high = np.float32(space.low), np.float32(space.high)
    rng = generator(SEED, stage="search")
    population = space.draw(CONFIG.population, rng)
    fitness = [fitness_of(net, space, values, x, weights) for values in population]
    for _ in range(generations):
        factor, donors, crossed = draw(rng, *population.shape, CONFIG.crossover, CONFIG.factor)
        for p in range(len(population)):
            a, b, c = population[donors[p]]
            mutant = np.clip(a + factor * (b - c), low, high)
            trial = np.where(crossed[p], mutant, population[p])
            found = fitness_of(net, space, trial, x, weights)
            if found >= fitness[p]:
                population[p], fitness[p] = trial, found
    net.reset()
    return population, np.array(fitness)


def timed(function, *arguments):
    start = perf_counter()
    result = function(*arguments)
    return perf_counter() - start, result


def measure(folder: Path, layers: str, conv_fi: str) -> dict:
    setting = Setting(folder, layers, conv_fi)
    slow, (population, fitness) = timed(baseline, setting, BASELINE_GENERATIONS)
    short = ours(setting, BASELINE_GENERATIONS)
    np.testing.assert_allclose(short.fitness, fitness, rtol=1e-6)
    np.testing.assert_array_equal(short.population, population)
    np.testing.assert_array_equal(short.best, population[fitness.argmax()])
    seconds, search = timed(ours, setting, CONFIG.generations)
    trials = CONFIG.population * (search.generation + 1)
    whole = slow / (CONFIG.population * (BASELINE_GENERATIONS + 1)) * trials
    edited = sorted(set(setting.front.layer))
    return {
        "name": f"arachne search, {len(setting.front)} weights of {' and '.join(edited)}",
        "ratio": whole / seconds,
        "baseline_seconds": whole,
        "seconds": seconds,
        "generations": search.generation,
        "trials": trials,
        "inputs": len(setting.inputs),
        "baseline_measured_generations": BASELINE_GENERATIONS,
    }


def main() -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", type=Path, default=SUBJECT, help="its folder")
    parser.add_argument("--all", action="store_true", help="also a front with convolutions")
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    options = parser.parse_args()
    cases = [("all", "reference")] + ([("all", "abs")] if options.all else [])
    results = []
    for layers, conv_fi in cases:
        result = measure(options.subject, layers, conv_fi)
        results.append(result)
        print(
            f"{result['name']}: {result['ratio']:.1f} x (baseline "
            f"{result['baseline_seconds']:.1f} s, ours {result['seconds']:.1f} s)",
            flush=True,
        )
    if options.json:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
