# environment: i-repair
"""I-REPAIR: one merged pass per iteration against a pass for every gradient and for the accuracy.

The baseline does what the algorithm's description says step by step, in plain PyTorch: margins on
the specific set, general influence, specific influence, step gradient, each from a pass of its own,
and one pass over the evaluation data per iteration to report an accuracy. Ours is
`modelfix_i_repair.repair.repair` on the network as modelfix loads it, evaluated as often as the
approach does by default. Both start from the same weights and the same sets, and must end with the
same weights. Those are compared in float64: in float32 rounding flips single bits of the masks
after some 50 steps. The times are the processor's, of one thread, in float32.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from modelfix_core.torch import export, load
from modelfix_i_repair import IRepair
from modelfix_i_repair.repair import Samples, repair
from torch import nn
from torch.nn.functional import cross_entropy

GENERAL, SPECIFIC, EVALUATED = 100, 105, 5000
GAMMA, LEARNING_RATE, EPSILON = 2.0, 1e-4, 1e-8
ITERATIONS = EVALUATE_EVERY = IRepair().config.evaluate_every
TOLERANCE = 1e-8
Arm = Callable[[nn.Module, Samples, Samples, Samples | None], None]


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


def difference(networks: dict[Arm, nn.Module], general: Samples, specific: Samples) -> float:
    """Run both in float64 and return the largest difference of their weights."""
    general, specific = (Samples(part.x.double(), part.y) for part in (general, specific))
    results = []
    for arm, network in networks.items():
        module = copy.deepcopy(network).double()
        arm(module, general, specific, None)
        results.append(module.parameters())
    return max(float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True))


def compare(
    name: str,
    networks: dict[Arm, nn.Module],
    general: Samples,
    specific: Samples,
    evaluated: Samples | None,
    runs: int,
) -> dict:
    """Time both in turns; each one's fastest run counts."""
    seconds: dict[Arm, list[float]] = {arm: [] for arm in networks}
    for _ in range(runs):
        for arm, network in networks.items():
            module = copy.deepcopy(network)
            start = process_time()
            arm(module, general, specific, evaluated)
            seconds[arm].append(process_time() - start)
    slow, fast = min(seconds[baseline]), min(seconds[ours])
    ratios = [a / b for a, b in zip(seconds[baseline], seconds[ours], strict=True)]
    print(
        f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s; "
        f"{min(ratios):.1f} to {max(ratios):.1f} in {runs} runs)"
    )
    return {
        "name": name,
        "ratio": slow / fast,
        "baseline_seconds": slow,
        "ours_seconds": fast,
        "ratios": ratios,
        "iterations": ITERATIONS,
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the fastest counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    module, general, specific, evaluated = data()
    networks: dict[Arm, nn.Module] = {
        baseline: module,
        ours: load(export(module, (1, 28, 28))),
    }
    largest = difference(networks, general, specific)
    assert largest <= TOLERANCE, f"weights differ by {largest:g}"
    print(f"largest difference of weights after {ITERATIONS} iterations: {largest:.1e}")
    results = [
        compare(name, networks, general, specific, x, options.runs)
        for name, x in (("i-repair", evaluated), ("i-repair-without-evaluation", None))
    ]
    if options.json is not None:
        lines = (json.dumps({**result, "largest_difference": largest}) for result in results)
        options.json.write_text("".join(line + "\n" for line in lines))
    return results


if __name__ == "__main__":
    main()
