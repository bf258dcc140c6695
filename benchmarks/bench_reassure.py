# environment: reassure
"""REASSURE's hot loops against straightforward implementations: `python bench_reassure.py`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix_core.approach import Task
from modelfix_core.dataset import Split
from modelfix_core.fixing import run
from modelfix_core.model import Model
from modelfix_core.torch import export
from modelfix_reassure import Reassure
from modelfix_reassure.block import Block, find_block
from modelfix_reassure.graph import extend
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import Region, Solver, build_region
from scipy.optimize import linprog

REGIONS = 10
PATCHES = 100


def lenet5_with_data(seed: int = 0) -> tuple[Model, np.ndarray]:
    """Return LeNet5 with random weights and images of smooth noise."""
    import torch
    from modelfix_core.subjects.architectures import lenet5

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    coarse = rng.random((4000, 1, 7, 7))
    images = np.kron(coarse, np.ones((4, 4))).astype(np.float32)
    return export(lenet5().eval(), (1, 28, 28)), images


def best_of(times: int, function: Callable) -> tuple[float, object]:
    """Return the shortest wall time and the result."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        result = function()
        seconds.append(perf_counter() - start)
    return min(seconds), result


def rows_one_by_one(block: Block, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Build a region's rows neuron by neuron, as by one backward pass for each."""
    rows, bounds = [], []
    previous: list[tuple[np.ndarray, float]] = []
    for depth, active in enumerate(block.layers_of(pattern)):
        affine, current = block.maps[depth], []
        for i, on in enumerate(active):
            if depth == 0:
                m, c = affine.weight[i], affine.bias[i]
            else:
                m, c = np.zeros_like(previous[0][0]), affine.bias[i]
                for j, (row, offset) in enumerate(previous):
                    m = m + affine.weight[i, j] * row
                    c = c + affine.weight[i, j] * offset
            sign = -1.0 if on else 1.0
            rows.append(sign * m)
            bounds.append(-sign * c)
            current.append((m, c) if on else (0 * m, 0.0))
        previous = current
    return np.array(rows), np.array(bounds)


def excesses_one_by_one(region: Region, label: int) -> np.ndarray:
    """Solve one scipy program for each other class, with the box as bounds."""
    result = np.full(len(region.g), -np.inf)
    box = np.stack([region.lower, region.upper], axis=1)
    for j in range(len(result)):
        if j != label:
            slope = region.f[j] - region.f[label]
            program = linprog(-slope, region.a, region.b, bounds=box)
            result[j] = -program.fun + region.g[j] - region.g[label]
    return result


def main() -> list[dict]:
    """Measure, print one line each, and return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    arguments = parser.parse_args()
    measurements: list[dict] = []

    def report(name: str, baseline: float, ours: float) -> None:
        measurements.append({"name": name, "baseline": baseline, "ours": ours})
        print(f"{name}: {baseline / ours:.2f} x ({baseline:.3f} s, {ours:.3f} s)", flush=True)

    model, images = lenet5_with_data()
    block = find_block(model)
    h = model.activations(images, [block.features])[block.features].astype(float)
    lower, upper = h.min(axis=0), h.max(axis=0)
    patterns = block.patterns(h)
    labels = np.argsort(block.preactivations(h)[-1], axis=1)[:, -2]

    def build() -> list[Region]:
        return [build_region(block, p, lower, upper) for p in patterns[:REGIONS]]

    slow, (a, b) = best_of(1, lambda: rows_one_by_one(block, patterns[0]))
    fast, regions = best_of(3, build)
    np.testing.assert_allclose(regions[0].a, a, atol=1e-9)
    np.testing.assert_allclose(regions[0].b, b, atol=1e-9)
    report("rows of a region, products against one by one", slow, fast / REGIONS)

    def programs(solve: Callable) -> np.ndarray:
        return np.array([solve(*case) for case in zip(regions, labels, h, strict=False)])

    slow, expected = best_of(1, lambda: programs(lambda r, y, _: excesses_one_by_one(r, int(y))))
    warm = Solver(early_exit=False)
    fast, found = best_of(1, lambda: programs(lambda r, y, p: warm.excesses(r, int(y), p)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    report(f"programs of {REGIONS} regions, warm start against scipy", slow, fast)
    early = Solver()
    fast, found = best_of(1, lambda: programs(lambda r, y, p: early.excesses(r, int(y), p)))
    np.testing.assert_allclose(found.max(axis=1), expected.max(axis=1), atol=1e-6)
    report(f"programs of {REGIONS} regions, early exit against scipy", slow, fast)

    distinct = np.unique(patterns, axis=0)[:PATCHES]
    patches = np.random.default_rng(0).normal(size=(len(distinct), len(expected[0])))
    fixed = extend(model, PatchNetwork(block, distinct, patches, 10.0))
    model.predict(images), fixed.predict(images)
    base, _ = best_of(5, lambda: model.predict(images))
    patched, _ = best_of(5, lambda: fixed.predict(images))
    report(f"prediction with {len(distinct)} patches, original against patched", base, patched)

    wrong = Split(images[:PATCHES], labels[:PATCHES])
    task = Task(model, repair=wrong, validation=wrong, train=Split(images, labels))
    seconds, result = best_of(1, lambda: run(Reassure(patches=("all",), n=(1000.0,)), task))
    assert result.candidates[0]["repaired"] == result.candidates[0]["targets"]
    measurements.append({"name": f"repair of {PATCHES} faults", "ours": seconds})
    print(f"repair of {PATCHES} faults: {seconds:.1f} s in {result.candidates[0]['step']} regions")

    if arguments.json:
        arguments.json.write_text("".join(json.dumps(m) + "\n" for m in measurements))
    return measurements


if __name__ == "__main__":
    main()
