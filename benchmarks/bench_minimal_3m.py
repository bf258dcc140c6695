# environment: minimal-3m
"""3M-DNN's hot loops against straightforward implementations: `python bench_minimal_3m.py`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import highspy
import numpy as np
from modelfix_minimal_3m.chain import Dense, find_chain
from modelfix_minimal_3m.highs import Solver
from modelfix_minimal_3m.last_layer import LastLayer, Points, Program
from modelfix_minimal_3m.separation import Rows
from modelfix_testing import mlp

MARGIN, LIMIT = 1e-3, 5.0
COUNTS = (1, 2, 5, 10, 20, 50)


def last_layer(features: int, classes: int, points: int) -> tuple[Dense, np.ndarray, np.ndarray]:
    """Return a random last layer, inputs of it, and labels: the second largest logit."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(classes, features)) / features**0.5
    model = mlp([weight], [np.zeros(classes)], (features, 1, 1))
    (dense,) = find_chain(model).layers
    h = np.maximum(rng.normal(size=(points, features)), 0)
    return dense, h, np.argsort(dense(h), axis=1)[:, -2]


def best_of(times: int, function: Callable) -> tuple[float, object]:
    """Return the shortest processor time, since all runs on one thread, and the result."""
    seconds = []
    for _ in range(times):
        start = process_time()
        result = function()
        seconds.append(process_time() - start)
    return min(seconds), result


def solver() -> Solver:
    """Return a solver that reports to nobody."""
    return Solver(600.0, lambda: None)


def one_by_one(points: Points, norm: str, rivals: np.ndarray) -> highspy.Highs:
    """Write the program column by column and row by row, entry after entry."""
    highs = solver().start()
    classes, width = points.z.shape[1], points.h.shape[1]
    infinite = highspy.kHighsInf
    if norm == "linf":
        highs.addCol(1.0, 0.0, LIMIT, 0, [], [])
        top = {}
        for c in range(classes):
            for d in range(width):
                top[c, d] = highs.getNumCol()
                highs.addCol(0.0, 0.0, 2 * LIMIT, 0, [], [])
        for column in top.values():
            highs.addRow(-infinite, 0.0, 2, [column, 0], [1.0, -2.0])
        signs = {(c, d): [(column, 1.0)] for (c, d), column in top.items()}
    else:
        signs = {}
        for c in range(classes):
            for d in range(width):
                column = highs.getNumCol()
                highs.addCol(1.0, 0.0, LIMIT, 0, [], [])
                highs.addCol(1.0, 0.0, LIMIT, 0, [], [])
                signs[c, d] = [(column, 1.0), (column + 1, -1.0)]
    for i, j in zip(*np.nonzero(rivals), strict=True):
        y = points.y[i]
        columns, values = [], []
        for d in range(width):
            if points.h[i, d] == 0:
                continue
            for column, sign in signs[y, d]:
                columns.append(column)
                values.append(sign * points.h[i, d])
            for column, sign in signs[j, d]:
                columns.append(column)
                values.append(-sign * points.h[i, d])
        needed = points.z[i, j] - points.z[i, y] + points.margin
        highs.addRow(needed, infinite, len(columns), columns, values)
    return highs


def main() -> list[dict]:
    """Measure, print one line each, and return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write JSON lines to this file")
    arguments = parser.parse_args()
    measurements: list[dict] = []

    def report(name: str, baseline: float, ours: float) -> None:
        measurements.append({"name": name, "baseline": baseline, "ours": ours})
        print(f"{name}: {baseline / ours:.2f} x ({baseline:.3f} s, {ours:.3f} s)", flush=True)

    dense, h, y = last_layer(512, 10, 100)
    points = Points(h, dense(h), y, MARGIN)
    rivals = np.arange(10) != y[:, None]
    for norm in ("l1", "linf"):
        grown = Program(points, norm, LIMIT, solver())
        _, cost = grown.minimise(len(y))
        on_demand = grown.required

        def assembled(pairs: np.ndarray, norm: str = norm) -> Program:
            program = Program(points, norm, LIMIT, solver())
            program.require(pairs)
            return program

        slow, naive = best_of(2, lambda norm=norm: one_by_one(points, norm, rivals))
        fast, program = best_of(5, lambda pairs=rivals, make=assembled: make(pairs))
        ours, theirs = program.highs.getLp(), naive.getLp()
        assert (ours.num_row_, len(ours.a_matrix_.value_)) == (
            theirs.num_row_,
            len(theirs.a_matrix_.value_),
        )
        title = f"assembly, 512x10, 100 faults, {norm}, against entry by entry"
        report(f"{title}: the same rows", slow, fast)
        np.testing.assert_allclose(solver().run(naive)[1], cost, rtol=1e-6)
        fast, _ = best_of(5, lambda pairs=on_demand, make=assembled: make(pairs))
        report(f"{title}: the {on_demand.sum()} of {rivals.sum()} rows that decide", slow, fast)

    dense, h, y = last_layer(84, 10, COUNTS[-1])
    points = Points(h, dense(h), y, MARGIN)
    rivals = np.arange(10) != y[:, None]
    for norm in ("l1", "linf"):

        def straightforward(norm: str = norm) -> list[float]:
            costs = []
            for count in COUNTS:
                first = points.first(count)
                highs = one_by_one(first, norm, rivals[:count])
                costs.append(solver().run(highs)[1])
            return costs

        def sweep(norm: str = norm) -> list[float]:
            layer = LastLayer(dense, h, y, norm, MARGIN, LIMIT, solver())
            return [layer.solve(count).cost for count in COUNTS]

        slow, expected = best_of(1, straightforward)
        fast, found = best_of(3, sweep)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        report(f"sweep up to {COUNTS[-1]} faults, 84x10, {norm}", slow, fast)

    dense, h, y = last_layer(512, 200, 20)
    points = Points(h, dense(h), y, MARGIN)

    def solved(lazy: bool) -> float:
        return Program(points, "l1", LIMIT, solver(), lazy).minimise(len(y))[1]

    slow, expected = best_of(1, lambda: solved(lazy=False))
    fast, found = best_of(1, lambda: solved(lazy=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    report("rows on demand against all rows, 512x200, 20 faults, l1", slow, fast)

    rng = np.random.default_rng(0)
    inputs = np.maximum(rng.normal(size=(5, 120)), 0)
    shifts = rng.choice([-0.2, -0.1, 0.1, 0.2], size=84)
    targets = np.tile(shifts[:, None], (1, 5))
    slow, expected = best_of(
        1, lambda: [Rows(inputs, "linf", LIMIT, solver()).solve(t[None])[0] for t in targets]
    )
    fast, found = best_of(3, lambda: Rows(inputs, "linf", LIMIT, solver()).solve(targets))
    np.testing.assert_allclose(np.abs(found).max(axis=1), np.abs(expected).max(axis=1), rtol=1e-6)
    report("rows of a proposal, 120x84, 5 faults, by direction against one by one", slow, fast)

    if arguments.json:
        arguments.json.write_text("".join(json.dumps(m) + "\n" for m in measurements))
    return measurements


if __name__ == "__main__":
    main()
