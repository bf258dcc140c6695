# environment: reassure
"""REASSURE's hot loops against straightforward implementations: `python bench_reassure.py`.

Regions, faults and inputs are those of a prepared subject with LeNet5.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from modelfix_core.approach import Task
from modelfix_core.fixing import run
from modelfix_core.model import Model
from modelfix_core.subject import Subject
from modelfix_reassure import Reassure
from modelfix_reassure.block import Block, find_block
from modelfix_reassure.graph import extend
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import Region, Solver, build_region
from onnx import helper, numpy_helper
from scipy.optimize import linprog

SUBJECT = Path(__file__).resolve().parents[1] / "results" / "subjects" / "fashion-mini-lenet5"
REGIONS = 10
PATCHES = 100
BATCHES = (500, 1000)


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


def one_chain_each(model: Model, network: PatchNetwork, box: tuple) -> Model:
    """Write the patch network as the formulas read: a chain of nodes for each patch."""
    proto = model.proto()
    graph, block = proto.graph, network.block
    for node in graph.node:
        node.output[:] = ["base" if name == model.output_name else name for name in node.output]

    def constant(name: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(array, float), name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    one, zero = constant("one", 1.0), constant("zero", 0.0)
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    h = add("Cast", [block.features], "h", to=onnx.TensorProto.DOUBLE)
    supports = []
    for i, pattern in enumerate(network.patterns):
        region = build_region(block, pattern, *box)
        product = add("MatMul", [h, constant(f"a{i}", network.n * region.a.T)], f"ah{i}")
        beyond = add("Sub", [product, constant(f"b{i}", network.n * region.b)], f"beyond{i}")
        clipped = add("Clip", [beyond, zero, one], f"clip{i}")
        total = add("ReduceSum", [clipped, "axis"], f"total{i}")
        supports.append(add("Relu", [add("Sub", [one, total], f"rest{i}")], f"g{i}"))
    added = []
    gamma = supports[-1]
    for i in reversed(range(len(supports))):
        gamma = add("Max", [supports[i], gamma], f"gamma{i}")
        away = add("Sub", [one, gamma], f"away{i}")
        fall = add("Mul", [away, constant(f"k{i}", network.bounds[i])], f"fall{i}")
        for sign in (1.0, -1.0):
            name = f"{i}{'up' if sign > 0 else 'down'}"
            step = constant(f"p{name}", sign * network.steps[i : i + 1])
            part = add("Relu", [add("Sub", [step, fall], f"left{name}")], f"part{name}")
            added.append(add("Mul", [part, constant(f"s{name}", sign)], f"signed{name}"))
    summed = add("Cast", [add("Sum", added, "sum")], "sum32", to=onnx.TensorProto.FLOAT)
    add("Add", ["base", summed], model.output_name)
    return Model(proto)


def main() -> list[dict]:
    """Measure, print one line each, and return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", type=Path, default=SUBJECT, help="its folder")
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    arguments = parser.parse_args()
    measurements: list[dict] = []

    def report(name: str, baseline: float, ours: float) -> None:
        measurements.append({"name": name, "baseline": baseline, "ours": ours})
        print(f"{name}: {baseline / ours:.2f} x ({baseline:.3f} s, {ours:.3f} s)", flush=True)

    subject = Subject.load(arguments.subject)
    model, data = subject.model, subject.dataset(("train", "validation", "repair"))
    block, repair, images = find_block(model), data["repair"], data["validation"]
    wrong = np.flatnonzero(model.predict(repair).argmax(axis=1) != repair.y)[:PATCHES]
    features = {
        name: model.activations(split, [block.features])[block.features].astype(float)
        for name, split in (("faults", repair.select(wrong)), ("train", data["train"]))
    }
    h, labels = features["faults"], repair.y[wrong]
    box = (
        np.min([f.min(axis=0) for f in features.values()], axis=0),
        np.max([f.max(axis=0) for f in features.values()], axis=0),
    )
    patterns = block.patterns(h)

    def build() -> list[Region]:
        return [build_region(block, pattern, *box) for pattern in patterns[:REGIONS]]

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
    np.testing.assert_allclose(found, expected, atol=1e-5)
    report(f"programs of {REGIONS} regions, warm start against scipy", slow, fast)
    early = Solver()
    fast, found = best_of(1, lambda: programs(lambda r, y, p: early.excesses(r, int(y), p)))
    np.testing.assert_allclose(found.max(axis=1), expected.max(axis=1), atol=1e-5)
    report(f"programs of {REGIONS} regions, early exit against scipy", slow, fast)

    distinct = np.unique(patterns, axis=0)
    patches = np.random.default_rng(0).normal(size=(len(distinct), model.num_classes))
    network = PatchNetwork(block, distinct, patches, 10.0)
    fixed, chained = extend(model, network), one_chain_each(model, network, box)
    x = images.images()
    np.testing.assert_allclose(fixed.predict(x), chained.predict(x), atol=1e-3)
    for batch in BATCHES:

        def seconds(m: Model, times: int, batch: int = batch) -> float:
            m.predict(x, batch)
            return best_of(times, lambda: m.predict(x, batch))[0]

        base, patched = seconds(model, 7), seconds(fixed, 7)
        what = f"{len(distinct)} patches, batches of {batch}"
        report(f"prediction with {what}, one chain each against ours", seconds(chained, 1), patched)
        report(f"prediction with {what}, the original's time against ours", base, patched)

    task = Task(model, repair=repair, validation=images, train=data["train"])
    approach = Reassure(faults=(PATCHES,), n=(1000.0,))
    seconds_taken, result = best_of(1, lambda: run(approach, task))
    entry = result.candidates[0]
    assert entry["repaired"] == entry["covered"]
    name = f"repair of {len(wrong)} faults of {subject.card.name}"
    measurements.append({"name": name, "ours": seconds_taken})
    print(f"{name}: {seconds_taken:.1f} s in {entry['patches']:.0f} regions")

    if arguments.json:
        arguments.json.write_text("".join(json.dumps(m) + "\n" for m in measurements))
    return measurements


if __name__ == "__main__":
    main()
