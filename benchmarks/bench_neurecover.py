# environment: neurecover
"""NeuRecover's whole search against setting the weights and predicting, particle by particle.

The search has the default population and iterations on a prepared subject's repair split, and runs
to its end (no early stop), so that both sides do the same work. The baseline writes a particle's
values into the network, predicts the failing and the passing inputs, and goes on. It runs for a few
iterations only, after which both must have the same swarm; its time for the whole search follows
from its time per particle. Preparing the engine (cached activations, compilation) counts as ours.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix_arachne.repair import Space
from modelfix_core.keras import load, predict
from modelfix_core.population import Scores
from modelfix_core.search import ParticleSwarm
from modelfix_core.seeds import generator
from modelfix_core.subject import Subject
from modelfix_neurecover import NeuRecover, inputs
from modelfix_neurecover.history import compare
from modelfix_neurecover.localisation import localise
from modelfix_neurecover.repair import Fitness, fitness, start

SUBJECT = Path(__file__).resolve().parents[1] / "results" / "subjects" / "fashion-mini-lenet5"

CONFIG = NeuRecover().config
BASELINE_ITERATIONS = 3
SEED = 0


class Setting:
    """The search's inputs and weights, as the approach chooses them."""

    def __init__(self, folder: Path, max_weights: int | None) -> None:
        subject = Subject.load(folder)
        repair = subject.dataset(["repair"])["repair"]
        self.model, self.net = subject.model, load(subject.model)
        past = compare(self.net, subject.history, repair, CONFIG.prev)
        failing = inputs.failing(past, CONFIG.target)
        passing = inputs.passing(past, CONFIG.n_pos, generator(SEED, stage="passing"))
        self.found = localise(self.net, past, repair, CONFIG.rho, max_weights)
        self.space = Space(subject.model, self.found)
        self.inputs = repair.select(np.concatenate([failing, passing]))
        self.failing = len(failing)

    def swarm(self, iterations: int) -> ParticleSwarm:
        """Return the approach's swarm before its first iteration; it never stops early."""
        changed = {"iterations": iterations, "patience": CONFIG.iterations}
        config = CONFIG.model_copy(update=changed)
        return start(self.model, self.space.patches, config, generator(SEED, stage="search"))


def run(search: ParticleSwarm, evaluate) -> ParticleSwarm:
    while not search.finished:
        values, _ = search.ask()
        search.tell(evaluate(values))
    return search


def ours(setting: Setting, iterations: int) -> ParticleSwarm:
    patches = setting.space.patches
    evaluate = Fitness(setting.net, patches, setting.inputs, setting.failing, CONFIG.alpha)
    return run(setting.swarm(iterations), evaluate)


def baseline(setting: Setting, iterations: int) -> ParticleSwarm:
    net, space = setting.net, setting.space
    parts = [
        setting.inputs.select(slice(0, setting.failing)),
        setting.inputs.select(slice(setting.failing, None)),
    ]

    def one(values: np.ndarray) -> float:
        net.set_weights(space.weights(values))
        logits = np.concatenate([predict(net, part) for part in parts]).astype(np.float64)
        y = setting.inputs.y
        top = logits.max(axis=1)
        loss = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        loss -= logits[np.arange(len(y)), y]
        scores = Scores((logits.argmax(axis=1) == y)[None], loss[None].astype(np.float32))
        return fitness(scores, setting.failing, CONFIG.alpha)[0]

    search = run(setting.swarm(iterations), lambda values: np.array([one(row) for row in values]))
    net.reset()
    return search


def timed(function, *arguments):
    begin = perf_counter()
    result = function(*arguments)
    return perf_counter() - begin, result


def measure(folder: Path, max_weights: int | None) -> dict:
    setting = Setting(folder, max_weights)
    predict(setting.net, setting.inputs)  # compiled once, not part of the baseline
    slow, expected = timed(baseline, setting, BASELINE_ITERATIONS)
    short = ours(setting, BASELINE_ITERATIONS)
    np.testing.assert_allclose(short.own_fitness, expected.own_fitness, rtol=1e-5)
    np.testing.assert_array_equal(short.own, expected.own)
    np.testing.assert_array_equal(short.best, expected.best)
    seconds, search = timed(ours, setting, CONFIG.iterations)
    whole = slow / expected.evaluations * search.evaluations
    edited = sorted(set(setting.found.layer))
    return {
        "name": f"neurecover search, {len(setting.found)} weights of {' and '.join(edited)}",
        "ratio": whole / seconds,
        "baseline_seconds": whole,
        "seconds": seconds,
        "evaluations": search.evaluations,
        "inputs": len(setting.inputs),
        "baseline_measured_iterations": BASELINE_ITERATIONS,
    }


def main() -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", type=Path, default=SUBJECT, help="its folder")
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    options = parser.parse_args()
    results = []
    for max_weights in (10, None):
        result = measure(options.subject, max_weights)
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
