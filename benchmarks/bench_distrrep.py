# environment: distrrep
"""DISTRREP's two searches against setting the weights and predicting, particle by particle.

Both sides work on a prepared subject's repair split with the default options and the same seeds.
The baseline writes a particle's weights into the network and predicts: for a patch its failing and
its passing inputs, for the merge all inputs of the repair split, of which it then needs some.
Particles outside of the unit box are not evaluated, as in the reference code. The merge is run to
its end by both sides and must give the same model. The patches' baseline runs for a few iterations
of each search, after which both must have the same patches; its time for the whole searches follows
from its time per particle. Preparing the engines (cached activations, compilation) counts as ours.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix_arachne.first_version import fitness
from modelfix_core.approach import Candidate, Task
from modelfix_core.dataset import Split
from modelfix_core.keras import load, predict
from modelfix_core.seeds import generator
from modelfix_core.subject import Subject
from modelfix_distrrep import DistrRep, merge, patches
from modelfix_distrrep.approach import classifier
from modelfix_distrrep.blend import Blend
from modelfix_distrrep.risks import Score, from_classes

SUBJECT = Path(__file__).resolve().parents[1] / "results" / "subjects" / "fashion-mini-lenet5"

CONFIG = DistrRep(selection="swarm").config
BASELINE_ITERATIONS = 2


class Setting:
    """What both stages start from, as the approach makes it."""

    def __init__(self, folder: Path) -> None:
        subject = Subject.load(folder)
        dataset = subject.dataset(["repair", "validation"])
        repair, validation = dataset["repair"], dataset["validation"]
        self.task = Task(subject.model, repair, validation, risks=dataset.risks)
        self.net = load(subject.model)
        logits = predict(self.net, self.task.repair)
        self.predicted = logits.argmax(axis=1)
        uniform = dict.fromkeys(range(subject.model.num_classes), 1.0)
        risks = self.task.risks or uniform
        self.risks = from_classes(risks, self.predicted, self.task.repair.y)
        entries = self.risks.misclassifications
        self.found = patches.blame(self.net, self.task, logits, entries, CONFIG.candidates)
        self.layer = classifier(subject.model)
        self.weight = subject.model.weights[self.layer.weight]

    def predict(self, index: np.ndarray, values: np.ndarray, inputs: Split) -> np.ndarray:
        """Write a particle's weights into the network, and predict."""
        kernel = self.weight.copy()
        kernel.flat[index] = values
        self.net.set_weights({self.layer.weight: kernel})
        return predict(self.net, inputs)


class Count:
    """Counts the iterations that are reported."""

    def __init__(self) -> None:
        self.iterations = 0

    def __call__(self, *_) -> None:
        """Take the report of one iteration."""
        self.iterations += 1


def our_patches(setting: Setting, iterations: int, count: Count) -> list[patches.Repair]:
    config = CONFIG.model_copy(update={"iterations": iterations})
    net, task = setting.net, setting.task
    return patches.repair(net, task, config, setting.found, setting.predicted, count)


def baseline_patches(setting: Setting, iterations: int) -> list[np.ndarray]:
    config = CONFIG.model_copy(update={"iterations": iterations})
    task, best = setting.task, []
    passing = patches.keep(setting.predicted, task, config)
    for one in setting.found:
        rows = np.concatenate([one.failing, passing])
        inputs, is_failing = task.repair.select(rows), np.arange(len(rows)) < len(one.failing)
        search = patches.start(setting.weight, one, task.seed, config)
        while not search.finished:
            worth = []
            for values in search.ask()[0]:
                z = setting.predict(one.index, values, inputs).astype(np.float64)
                right = z.argmax(axis=1) == inputs.y
                loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), inputs.y]
                worth.append(fitness(right[None], loss[None], is_failing)[0])
            search.tell(np.array(worth))
        best.append(search.best.astype(np.float32))
    setting.net.reset()
    return best


def our_merge(setting: Setting, repairs: list[patches.Repair]) -> np.ndarray:
    found = merge.merge(setting.net, setting.task, CONFIG, setting.risks, repairs, Count())
    last = [proposal for proposal in found if isinstance(proposal, Candidate)][-1]
    return last.weights[setting.layer.weight]


def baseline_merge(setting: Setting, repairs: list[patches.Repair]) -> tuple[np.ndarray, int]:
    blend = Blend(setting.weight, [(r.blame.index, r.values) for r in repairs], CONFIG.blend)
    repair = setting.task.repair
    score, evaluations = Score(setting.risks, repair.y), 0

    def judge(population: np.ndarray) -> merge.Verdict:
        nonlocal evaluations
        evaluations += len(population)
        predicted = np.stack(
            [setting.predict(blend.index, row, repair).argmax(axis=1) for row in population]
        )
        errors = score.errors(predicted)
        return merge.Verdict(errors, score(errors), (predicted == repair.y).mean(axis=1))

    search = merge.start(blend.dimensions, CONFIG, generator(setting.task.seed, stage="merge"))
    while not search.finished:
        search.tell(merge.fitness(judge, blend, search.ask()[0]))
    setting.net.reset()
    return blend.weight(blend.values(search.best[None])[0]), evaluations


def timed(function, *arguments):
    begin = perf_counter()
    result = function(*arguments)
    return perf_counter() - begin, result


def measure_patches(setting: Setting) -> dict:
    predict(setting.net, setting.task.repair)  # compiled once, not part of the baseline
    slow, expected = timed(baseline_patches, setting, BASELINE_ITERATIONS)
    short = our_patches(setting, BASELINE_ITERATIONS, Count())
    for ours, values in zip(short, expected, strict=True):
        np.testing.assert_array_equal(ours.values, values)
    count = Count()
    seconds, repairs = timed(our_patches, setting, CONFIG.iterations, count)
    whole = slow / (BASELINE_ITERATIONS * len(expected)) * count.iterations
    return {
        "name": f"distrrep patches, {len(repairs)} misclassifications",
        "ratio": whole / seconds,
        "baseline_seconds": whole,
        "seconds": seconds,
        "evaluations": count.iterations * CONFIG.particles,
        "baseline_measured_iterations": BASELINE_ITERATIONS,
    }


def measure_merge(setting: Setting) -> dict:
    repairs = our_patches(setting, CONFIG.iterations, Count())
    slow, (expected, evaluations) = timed(baseline_merge, setting, repairs)
    seconds, weight = timed(our_merge, setting, repairs)
    np.testing.assert_array_equal(weight, expected)
    return {
        "name": f"distrrep merge, {len(setting.task.repair)} inputs",
        "ratio": slow / seconds,
        "baseline_seconds": slow,
        "seconds": seconds,
        "evaluations": evaluations,
    }


def main() -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", type=Path, default=SUBJECT, help="its folder")
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    options = parser.parse_args()
    setting = Setting(options.subject)
    results = []
    for measure in (measure_patches, measure_merge):
        result = measure(setting)
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
