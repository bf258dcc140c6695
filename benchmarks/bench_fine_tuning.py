# environment: fsgmix
"""Shared fine-tuning against a bare PyTorch loop over tensors in memory."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from modelfix_core import Model, Split, Task
from modelfix_core.seeds import generator
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import TorchModel, export, load
from modelfix_core.torch.training import FineTuning, fine_tune
from torch import nn

IMAGES = 6000
RECIPE = FineTuning(epochs=1, learning_rate=1e-3, batch_size=128, patience=None)
SEED = 0


def subject(name: str, shape: tuple[int, int, int]) -> tuple[Model, Split]:
    rng = np.random.default_rng(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = build(name, 10, shape[0], mean=[0.4] * shape[0], std=[0.3] * shape[0])
    model = export(net.eval(), shape)
    x = rng.integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    return model, Split(x, rng.integers(0, 10, IMAGES))


def bare_loop(net: TorchModel, x: torch.Tensor, y: torch.Tensor, device: str) -> None:
    """Train one epoch as a script would that holds floating-point images in memory."""
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=RECIPE.learning_rate,
        momentum=RECIPE.momentum,
        nesterov=True,
        weight_decay=RECIPE.weight_decay,
    )
    order = generator(SEED, run="fine-tuning", epoch=1, stage="order").permutation(len(x))
    steps = -(-len(x) // RECIPE.batch_size)
    net.train()
    for step in range(steps):
        part = torch.from_numpy(order[step * 128 : (step + 1) * 128]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.rate(step, steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[part]), y[part]).backward()
        optimizer.step()
    net.eval()
    if device != "cpu":
        torch.cuda.synchronize()


def measure(name: str, shape: tuple[int, int, int], repeats: int, device: str) -> dict:
    model, split = subject(name, shape)
    net = load(model, device)
    x, y = torch.from_numpy(split.images()).to(device), torch.from_numpy(split.y).to(device)
    # Validation is no part of the loop that is compared.
    task = Task(model=model, repair=split, validation=split.select(slice(0, 1)), seed=SEED)
    task.device = device
    # One thread each: its own time does not count what other work on the machine delays.
    clock = time.process_time if device == "cpu" else time.perf_counter
    baseline, ours = [], []
    for _ in range(repeats):
        net.reset()
        start = clock()
        bare_loop(net, x, y, device)
        baseline.append(clock() - start)
        expected = net.weights()
        net.reset()
        start = clock()
        [candidate] = fine_tune(net, task, split, RECIPE)
        ours.append(clock() - start)
    for key, array in expected.items():
        np.testing.assert_allclose(candidate.weights[key], array, rtol=1e-4, atol=1e-6)
    return {
        "name": f"fine-tuning {name} {device}",
        "ratio": min(baseline) / min(ours),
        "baseline_seconds": min(baseline),
        "seconds": min(ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = [("lenet5", (1, 28, 28)), ("resnet8", (3, 16, 16))]
    results = [measure(name, shape, options.repeats, device) for name, shape in cases]
    for r in results:
        print(
            f"{r['name']}: {r['ratio']:.2f} x ({r['baseline_seconds']:.3f} s, {r['seconds']:.3f} s)"
        )
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
