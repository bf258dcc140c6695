# environment: care
"""CARE: versions of one cached vector against a pass of the whole network for each version.

The baseline does what the algorithm's description says: every forced value of every neuron, and
every particle of every iteration, is a pass of all images through the network. Ours are
`modelfix_care.localisation` and `modelfix_care.repair`, preparation of the cache included. Both
have the same images, the same swarm and the same seed, and must find the same effects and factors.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from modelfix_care.hidden import find_hidden
from modelfix_care.localisation import average_causal_effects, objective, select
from modelfix_care.repair import repair
from modelfix_care.tail import Tail
from modelfix_core.dataset import Split
from modelfix_core.search import InertiaSwarm
from modelfix_core.torch import export, load
from torch import nn

IMAGES, BATCH = 1000, 500
HIDDEN = 9  # position of the last hidden layer
VALUES, SHARE, PARTICLES, ITERATIONS, SEED = 4, 0.1, 10, 12, 0


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


def passes(
    module: nn.Sequential, x: torch.Tensor, y: torch.Tensor, edit: Callable[[torch.Tensor], None]
) -> int:
    """Count the right images when the hidden layer's output is edited in place."""
    hook = module[HIDDEN].register_forward_hook(lambda _module, _inputs, output: edit(output))
    with torch.inference_mode():
        parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
        right = sum(int((module(a).argmax(dim=1) == b).sum()) for a, b in parts)
    hook.remove()
    return right


def baseline_effects(module: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    seen: list[torch.Tensor] = []
    before = passes(module, x, y, lambda output: seen.append(output.clone()))
    z = torch.cat(seen)
    effects = np.zeros(z.shape[1])
    for j in range(z.shape[1]):
        low, high = float(z[:, j].min()), float(z[:, j].max())
        if low == high:
            continue
        for value in np.linspace(low, high, VALUES):

            def force(output: torch.Tensor, j: int = j, value: float = float(value)) -> None:
                output[:, j] = value

            effects[j] += before - passes(module, x, y, force)
    return effects / (VALUES * len(y))


def baseline_factors(
    module: nn.Sequential, x: torch.Tensor, y: torch.Tensor, neurons: np.ndarray
) -> np.ndarray:
    def right(position: np.ndarray) -> int:
        factors = torch.tensor(1 + position, dtype=torch.float32)

        def scale(output: torch.Tensor) -> None:
            output[:, neurons] *= factors

        return passes(module, x, y, scale)

    before = right(np.zeros(len(neurons)))
    swarm = InertiaSwarm(
        np.zeros((PARTICLES, len(neurons))),
        -1.0,
        1.0,
        np.random.default_rng(SEED),
        iterations=ITERATIONS,
    )
    while not swarm.finished:
        positions, _ = swarm.ask()
        swarm.tell(np.array([(right(p) - before) / len(y) for p in positions]))
    return 1 + swarm.best


def problem() -> tuple[nn.Sequential, Split]:
    """Return a random network and images labelled by it after some neurons were scaled."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = lenet5()
    x = torch.rand((IMAGES, 1, 28, 28), generator=generator)
    with torch.inference_mode():
        module[-1].bias -= module(x).mean(dim=0)  # so that no class wins everywhere
        z = module[: HIDDEN + 1](x)
        factors = 2 * torch.rand(z.shape[1], generator=generator)
        y = module[HIDDEN + 1 :](z * factors).argmax(dim=1)
    return module, Split(x.numpy(), y.numpy())


def timed(work: Callable) -> tuple[np.ndarray, float]:
    start = perf_counter()
    result = work()
    return result, perf_counter() - start


def report(name: str, slow: float, fast: float, versions: int) -> dict:
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    return {
        "name": name,
        "ratio": slow / fast,
        "baseline_seconds": slow,
        "ours_seconds": fast,
        "images": IMAGES,
        "versions": versions,
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    options = parser.parse_args(arguments)
    module, split = problem()
    x, y = torch.from_numpy(split.images()), torch.tensor(split.y)
    model = export(module, (1, 28, 28))
    net, hidden = load(model), find_hidden(model)

    def localised() -> np.ndarray:
        tail = Tail(net, hidden, split)
        aim = objective(tail.right)
        return average_causal_effects(tail, aim, np.arange(hidden.size), VALUES)

    def repaired(neurons: np.ndarray) -> np.ndarray:
        tail = Tail(net, hidden, split)
        rng = np.random.default_rng(SEED)
        aim = objective(tail.right)
        options = {"particles": PARTICLES, "iterations": ITERATIONS}
        return list(repair(tail, aim, neurons, rng, **options))[-1].factors

    localised()  # the first call sets up kernels
    expected, slow = timed(lambda: baseline_effects(module, x, y))
    effects, fast = timed(localised)
    np.testing.assert_allclose(effects, expected, rtol=0, atol=1e-12)
    results = [report("care-localisation", slow, fast, hidden.size * VALUES)]
    neurons = select(effects, SHARE)
    expected, slow = timed(lambda: baseline_factors(module, x, y, neurons))
    factors, fast = timed(lambda: repaired(neurons))
    np.testing.assert_array_equal(factors, expected)
    assert not np.array_equal(factors, np.ones(len(neurons))), "the swarm found nothing"
    results.append(report("care-repair", slow, fast, PARTICLES * ITERATIONS))
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
