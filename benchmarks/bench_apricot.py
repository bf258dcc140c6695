# environment: apricot
"""Apricot: the adaptation to a batch in closed form against the update sample by sample.

The baseline does what the algorithm's description says, and what its re-implementations do: for
each failing sample it averages the weights of the submodels that are right and of those that are
wrong, and moves all weights of the model. Ours is `modelfix_apricot.adaptation`. Both have the same
weights and votes in float64, and must give the same result.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from modelfix_apricot.adaptation import move
from torch import Tensor

SUBMODELS, PARAMETERS, ETA, SEED = 20, 29_450, 1e-3, 0  # the parameters of LeNet5
FAILING = (64, 1242)  # of a batch; of a pass over MNIST's training images


def sample_by_sample(theta: Tensor, weights: Tensor, right: np.ndarray) -> Tensor:
    for row in torch.from_numpy(right):
        votes = int(row.sum())
        if votes in (0, len(row)):
            continue
        share = votes / len(row)
        to_right = theta - weights[row].mean(dim=0)
        to_wrong = theta - weights[~row].mean(dim=0)
        theta = theta - ETA * (share * to_right - (1 - share) * to_wrong)
    return theta


def closed_form(theta: Tensor, weights: Tensor, right: np.ndarray) -> Tensor:
    return move(right, ETA).apply(theta, weights)


def timed(work: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    times = []
    for _ in range(repeats):
        start = perf_counter()
        result = work()
        times.append(perf_counter() - start)
    return result, min(times)


def measure(failing: int, repeats: int) -> dict:
    rng = np.random.default_rng(SEED)
    theta = torch.from_numpy(rng.normal(size=PARAMETERS))
    weights = torch.from_numpy(rng.normal(size=(SUBMODELS, PARAMETERS)))
    right = rng.random((failing, SUBMODELS)) < rng.random((failing, 1))
    expected, slow = timed(lambda: sample_by_sample(theta, weights, right), repeats)
    found, fast = timed(lambda: closed_form(theta, weights, right), repeats)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    return {
        "name": f"apricot-adaptation-{failing}",
        "ratio": slow / fast,
        "baseline_seconds": slow,
        "ours_seconds": fast,
        "submodels": SUBMODELS,
        "parameters": PARAMETERS,
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    results = [measure(failing, options.repeats) for failing in FAILING]
    for r in results:
        print(
            f"{r['name']}: ratio {r['ratio']:.0f} x (baseline {1e3 * r['baseline_seconds']:.1f} ms,"
            f" ours {1e3 * r['ours_seconds']:.2f} ms)"
        )
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
