# environment: hudd
"""HUDD's hot loops against straightforward implementations, and the memory of large clusterings.

The baselines are written as the paper's implementation works: heatmaps image by image with hooks on
every module, distances pair by pair, the weighted intra-cluster distance by loops over all pairs.
"""

import argparse
import json
import math
import multiprocessing
import resource
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from time import process_time

import numpy as np
import torch
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export, load
from modelfix_hudd.clustering import cluster, distances, normalise, replay, ward
from modelfix_hudd.heatmaps import Heatmaps
from modelfix_hudd.places import outline
from scipy.cluster.hierarchy import fcluster
from torch import Tensor, nn
from torch.nn import functional

IMAGES = 256
FAILURES, DIMENSIONS, KMAX = 300, 144, 150
MANY, MEMORY = 10_000, 4 * 1024**3
EPS = 1e-9


def best_of(times: int, function: Callable) -> tuple[float, object]:
    """Return the least CPU seconds and the result."""
    seconds = []
    for _ in range(times):
        start = process_time()
        result = function()
        seconds.append(process_time() - start)
    return min(seconds), result


# -- heatmaps --------------------------------------------------------------------------------------


def relprop(modules: list[nn.Module], image: Tensor) -> list[np.ndarray]:
    """Return the relevance of one image at the inputs of all modules, module by module."""
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[module] = (inputs[0], output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    logits = nn.Sequential(*modules)(image[None])
    for hook in hooks:
        hook.remove()
    relevance = functional.one_hot(logits.argmax(dim=1), logits.shape[1]) * logits
    maps: list[np.ndarray] = []
    following = None
    for module in reversed(modules):
        x, y = kept[module]
        if isinstance(module, nn.Linear):
            positive = module.weight.clamp(min=0)
            relevance = x * ((relevance / (x @ positive.T + EPS)) @ positive)
        elif isinstance(module, nn.Conv2d):
            rectified = kept[following][1] if isinstance(following, nn.ReLU) else y
            share = relevance / (rectified + EPS)
            relevance = x * functional.conv_transpose2d(share, module.weight)
        elif isinstance(module, nn.MaxPool2d):
            size = module.kernel_size
            _, winner = functional.max_pool2d(x, size, return_indices=True)
            share = relevance / (y + EPS)
            relevance = x * functional.max_unpool2d(share, winner, size, size, 0, x.shape)
        elif isinstance(module, nn.Flatten):
            relevance = relevance.view(x.shape)
        maps.insert(0, relevance.flatten().numpy())
        following = module
    return maps


def measure_heatmaps() -> dict:
    torch.manual_seed(0)
    # Without normalisation, so that the rules of the baseline cover every module.
    network = build("lenet5", 10, 1).eval()
    modules = [m for m in network.modules() if not isinstance(m, nn.Sequential)]
    model = export(network, (1, 28, 28))
    coarse = torch.rand(IMAGES, 1, 7, 7)
    images = functional.interpolate(coarse, (28, 28), mode="bilinear")
    found = outline(model, 16)
    heatmaps = Heatmaps(load(model), found, EPS)

    def one_by_one() -> list[list[np.ndarray]]:
        with torch.no_grad():
            return [relprop(modules, image) for image in images]

    heatmaps(images, found.places)
    slow, expected = best_of(2, one_by_one)
    fast, ours = best_of(5, lambda: heatmaps(images, found.places))
    # Dense layers are compared at their inputs; a convolution behind its activation, which is the
    # input of what follows.
    inputs = {
        name: number + (2 if isinstance(module, nn.Conv2d) else 0)
        for number, module in enumerate(modules)
        for name, candidate in network.named_modules()
        if candidate is module
    }
    for layer, maps in ours.items():
        theirs = np.stack([image[inputs[layer]] for image in expected])
        difference = np.abs(maps.numpy() - theirs).max() / np.abs(theirs).max()
        assert difference < 1e-4, f"{layer}: heatmaps differ by {difference:g}"
    return report(f"heatmaps of {IMAGES} images at {len(ours)} layers", slow, fast)


# -- clustering ------------------------------------------------------------------------------------


def maps_of(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Return heatmaps in groups, float32 [n, dimensions]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (12, dimensions)).astype(np.float32)
    return centres[rng.integers(12, size=n)] + rng.normal(size=(n, dimensions)).astype(np.float32)


def distances_by_pairs(maps: np.ndarray) -> np.ndarray:
    result = np.zeros((len(maps), len(maps)))
    for i, j in combinations(range(len(maps)), 2):
        result[i, j] = result[j, i] = math.sqrt(float(np.sum((maps[i] - maps[j]) ** 2)))
    return result


def wicd_by_loops(matrix: np.ndarray, tree: np.ndarray, k: int) -> float:
    labels = fcluster(tree, k, "maxclust")
    total = 0.0
    for name in range(1, k + 1):
        members = np.flatnonzero(labels == name)
        if len(members) > 1:
            inside = [matrix[i, j] for i, j in combinations(members, 2)]
            total += len(members) / len(matrix) * (sum(inside) / len(inside))
    return total / k


def measure_clustering() -> list[dict]:
    maps = maps_of(FAILURES, DIMENSIONS)
    slow, expected = best_of(1, lambda: distances_by_pairs(maps))
    fast, matrix = best_of(5, lambda: distances(maps))
    np.testing.assert_allclose(matrix, expected, atol=1e-4)
    first = report(f"distances of {FAILURES} heatmaps", slow, fast)
    tree = ward(matrix, normalise(matrix))
    slow, expected = best_of(
        1, lambda: [wicd_by_loops(matrix, tree, k) for k in range(2, KMAX + 1)]
    )
    fast, curve = best_of(5, lambda: replay(matrix, tree, KMAX))
    np.testing.assert_allclose(curve, expected, atol=1e-12)
    return [first, report(f"intra-cluster distance of {KMAX - 1} cuts", slow, fast)]


def cluster_many(channel: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    maps = maps_of(MANY, DIMENSIONS)
    start = process_time()
    found = cluster(maps)
    seconds = process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    channel.send((peak, seconds, int(found.labels.max()) + 1))


def measure_memory() -> dict:
    """Cluster many failures in a process of its own and return its peak of memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=cluster_many, args=(there,))
    child.start()
    there.close()
    try:
        peak, seconds, clusters = here.recv()
    except EOFError:
        raise SystemExit(f"clustering {MANY} failures did not come to its end") from None
    finally:
        child.join()
    name = f"memory of clustering {MANY} failures, of 4 GiB"
    print(f"{name}: {peak / MEMORY:.2f} ({seconds:.1f} s, {clusters} clusters)", flush=True)
    assert peak <= MEMORY, f"{peak / 1024**3:.2f} GiB were taken"
    return {"name": name, "ratio": peak / MEMORY, "bytes": peak, "seconds": seconds}


def report(name: str, baseline: float, ours: float) -> dict:
    print(f"{name}: {baseline / ours:.1f} x ({baseline:.4f} s, {ours:.4f} s)", flush=True)
    return {
        "name": name,
        "ratio": baseline / ours,
        "baseline_seconds": baseline,
        "seconds": ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure_heatmaps(), *measure_clustering(), measure_memory()]
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
