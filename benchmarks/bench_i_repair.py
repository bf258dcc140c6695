# environment: i-repair
"""I-REPAIR: one merged pass per iteration against a pass for every gradient and for the accuracy.

The baseline does what the algorithm's description says step by step: margins on the specific set,
general influence, specific influence, step gradient, each from a pass of its own, and one pass over
the evaluation data per iteration to report an accuracy. Ours is `modelfix_i_repair.repair.repair`
with one evaluation in 20 iterations. Both start from the same weights and the same sets.
"""

import argparse
import copy
import json
from pathlib import Path
from time import perf_counter

import torch
from modelfix_i_repair.repair import Samples, repair
from torch import nn
from torch.nn.functional import cross_entropy

GENERAL, SPECIFIC, EVALUATED = 100, 105, 5000
GAMMA, LEARNING_RATE, EPSILON = 2.0, 1e-4, 1e-8
# The approach evaluates every 50 steps. Here it is charged more often, because after more steps
# rounding flips single bits of the masks and the two results are no longer comparable.
ITERATIONS = EVALUATE_EVERY = 20
TOLERANCE = 1e-5


def lenet5() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(6, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    ).eval()


def evaluate(module: nn.Module, data: Samples) -> float:
    with torch.inference_mode():
        parts = [module(x).argmax(dim=1) for x in data.x.split(500)]
    return float((torch.cat(parts) == data.y).float().mean())


def baseline(module, general, specific, evaluated: Samples | None) -> None:
    parameters = list(module.parameters())
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE)
    x, y = torch.cat([general.x, specific.x]), torch.cat([general.y, specific.y])
    for _ in range(ITERATIONS):
        with torch.no_grad():
            wrong = module(specific.x).argmax(dim=1) != specific.y
        kept = torch.autograd.grad(module(general.x).abs().sum() / len(general.y), parameters)
        loss = cross_entropy(module(specific.x[wrong]), specific.y[wrong])
        blamed = torch.autograd.grad(loss, parameters)
        optimiser.zero_grad()
        cross_entropy(module(x), y).backward()
        for parameter, k, b in zip(parameters, kept, blamed, strict=True):
            parameter.grad *= (b.abs() + EPSILON) / (GAMMA * k.abs() + EPSILON) >= 1
        optimiser.step()
        if evaluated is not None:
            evaluate(module, evaluated)


def ours(module, general, specific, evaluated: Samples | None) -> None:
    steps = repair(
        module,
        list(module.parameters()),
        general,
        specific,
        gamma=GAMMA,
        learning_rate=LEARNING_RATE,
        iterations=ITERATIONS,
    )
    for step in steps:
        if evaluated is not None and step.number % EVALUATE_EVERY == 0:
            evaluate(module, evaluated)


def data() -> tuple[nn.Module, Samples, Samples, Samples]:
    """Return a random network, a set it gets right, a set it gets wrong and evaluation data."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = lenet5()
    count = GENERAL + SPECIFIC + EVALUATED
    x = torch.rand((count, 1, 28, 28), generator=generator)
    with torch.no_grad():
        y = module(x).argmax(dim=1)
    shift = torch.randint(1, 10, (SPECIFIC,), generator=generator)
    y[GENERAL : GENERAL + SPECIFIC] = (y[GENERAL : GENERAL + SPECIFIC] + shift) % 10
    parts = zip(
        x.split([GENERAL, SPECIFIC, EVALUATED]),
        y.split([GENERAL, SPECIFIC, EVALUATED]),
        strict=True,
    )
    return module, *(Samples(*part) for part in parts)


def compare(name: str, module, general, specific, evaluated: Samples | None, runs: int) -> dict:
    """Time both in turns, keep each one's fastest run, and require the same weights."""
    seconds = {baseline: [], ours: []}
    results = {}
    for _ in range(runs):
        for arm in seconds:
            results[arm] = copy.deepcopy(module)
            start = perf_counter()
            arm(results[arm], general, specific, evaluated)
            seconds[arm].append(perf_counter() - start)
    pairs = zip(results[baseline].parameters(), results[ours].parameters(), strict=True)
    largest = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert largest <= TOLERANCE, f"{name}: weights differ by {largest:g}"
    slow, fast = min(seconds[baseline]), min(seconds[ours])
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    return {
        "name": name,
        "ratio": slow / fast,
        "baseline_seconds": slow,
        "ours_seconds": fast,
        "largest_difference": largest,
        "iterations": ITERATIONS,
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--runs", type=int, default=2, help="runs of each; the fastest counts")
    options = parser.parse_args(arguments)
    module, general, specific, evaluated = data()
    ours(copy.deepcopy(module), general, specific, None)  # the first pass sets up kernels
    results = [
        compare("i-repair", module, general, specific, evaluated, options.runs),
        compare("i-repair-without-evaluation", module, general, specific, None, options.runs),
    ]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
