# environment: core-torch
"""Population evaluation in PyTorch against one forward pass of the network per patched model.

100 patches of LeNet5's dense layers on 1,000 images; the same logits both ways.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from modelfix_core.model import Model
from modelfix_core.population import Patch
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import Population, TorchModel, export, load, predict

CANDIDATES, IMAGES, WEIGHTS = 100, 1000, 8


def straightforward(net: TorchModel, patch: Patch, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Set each candidate's weights and run the whole network."""
    layer = net.model.layer(patch.layer)
    weight = net.model.weights[layer.weight].copy()
    logits = []
    for candidate in values:
        weight.reshape(-1)[patch.index] = candidate
        net.set_weights({layer.weight: weight})
        logits.append(predict(net, x, batch_size=len(x)))
    net.reset()
    return np.stack(logits)


def measure(model: Model, layer: str) -> dict[str, float | str]:
    rng = np.random.default_rng(0)
    net = load(model)
    x = rng.random((IMAGES, *model.input_shape), dtype=np.float32)
    y = rng.integers(0, model.num_classes, IMAGES)
    size = model.weights[model.layer(layer).weight].size
    patch = Patch(layer, rng.choice(size, WEIGHTS, replace=False))
    values = rng.normal(0, 0.3, (CANDIDATES, WEIGHTS)).astype(np.float32)

    start = perf_counter()
    population = Population(net, [patch], x, y)
    prepared = perf_counter() - start
    seconds = []
    for _ in range(5):
        start = perf_counter()
        scores = population.evaluate(values)
        seconds.append(perf_counter() - start)
    ours = float(np.median(seconds))
    start = perf_counter()
    expected = straightforward(net, patch, values, x)
    baseline = perf_counter() - start

    np.testing.assert_allclose(population.logits(values), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(scores.right, expected.argmax(axis=2) == y)
    return {
        "name": f"population-torch-{layer}",
        "ratio": baseline / ours,
        "baseline_seconds": baseline,
        "seconds": ours,
        "cache_seconds": prepared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for one JSON line per measurement")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = export(build("lenet5", 10, 1).eval(), (1, 28, 28))
    results = [measure(model, layer) for layer in ("fc3", "fc2", "fc1", "conv2")]
    for r in results:
        print(
            f"{r['name']}: {r['ratio']:.1f} x "
            f"(baseline {r['baseline_seconds']:.3f} s, ours {r['seconds']:.4f} s)"
        )
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
