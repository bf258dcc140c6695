# environment: hybridrepair
"""HybridRepair's hot loops against straightforward implementations.

The baselines are written as the paper's implementation works: augmentations by Pillow, one image
after the other, and densities by all cosine distances and a full sort.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from modelfix_core import Split
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import TorchModel, export, load
from modelfix_core.torch.training import Feed
from modelfix_hybridrepair.smoothness import (
    HIGHEST_LEVEL,
    LOWEST_LEVEL,
    OPERATIONS,
    mean_predictions,
    sparsity,
    unsmoothness,
)
from PIL import Image, ImageOps

IMAGES, AUGMENTATIONS = 128, 8
POINTS, REFERENCE, CLASSES, NEIGHBOURS = 400, 54_000, 10, 100
SHAPES = [(1, 28, 28), (3, 32, 32)]
# Two draws of eight augmentations differ; so may their means over all images, by that many
# standard errors.
STANDARD_ERRORS = 4


def best_of(times: int, function: Callable) -> tuple[float, np.ndarray]:
    """Return the least CPU seconds and the result."""
    seconds = []
    for _ in range(times):
        start = process_time()
        result = function()
        seconds.append(process_time() - start)
    return min(seconds), result


# -- smoothness ------------------------------------------------------------------------------------


def changed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply one random operation, as AugMix does."""
    name = OPERATIONS[rng.integers(len(OPERATIONS))]
    share = rng.uniform(LOWEST_LEVEL, HIGHEST_LEVEL) / 10
    sign = 1 if rng.random() < 0.5 else -1
    width, height = picture.size
    how = {"resample": Image.Resampling.BILINEAR}
    matrices = {
        "shear_x": (1, sign * 0.3 * share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * share, 1, 0),
        "translate_x": (1, 0, sign * int(width / 3 * share), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * int(height / 3 * share)),
    }
    if name in matrices:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrices[name], **how)
    if name == "rotate":
        return picture.rotate(sign * 30 * share, **how)
    if name == "posterize":
        return ImageOps.posterize(picture, 4 - int(4 * share))
    if name == "solarize":
        return ImageOps.solarize(picture, 256 - int(256 * share))
    return getattr(ImageOps, name)(picture)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    array = torch.from_numpy(np.array(picture))
    array = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
    return array.to(torch.float32).div(255)


def one_by_one(net: TorchModel, images: np.ndarray) -> np.ndarray:
    """Return mean predictions over the versions of each image, made one after the other."""
    rng = np.random.default_rng(1)
    result = []
    for image in images:
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        plain = to_tensor(picture)
        versions = [plain]
        for _ in range(AUGMENTATIONS):
            chained = picture
            for _ in range(rng.integers(1, 4)):
                chained = changed(chained, rng)
            m = float(rng.beta(1, 1))
            versions.append((1 - m) * plain + m * to_tensor(chained))
        with torch.inference_mode():
            result.append(net(torch.stack(versions)).softmax(dim=1).mean(dim=0).double().numpy())
    return np.stack(result)


def measure_smoothness(shape: tuple[int, int, int], repeats: int) -> dict:
    torch.manual_seed(0)
    name = "lenet5" if shape[0] == 1 else "resnet8"
    model = export(build(name, CLASSES, shape[0]).eval(), shape)
    # Logits of random weights hardly differ; a steeper last layer makes predictions.
    last = model.layers("dense")[-1]
    model = model.with_weights({last.weight: model.weights[last.weight] * 20})
    coarse = torch.rand(IMAGES, shape[0], 6, 6)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    images = smooth.mul(255).round().to(torch.uint8).numpy()
    net, feed = load(model), Feed(Split(images, np.zeros(IMAGES, np.int64)), "cpu")

    def ours() -> np.ndarray:
        return mean_predictions(net, feed, AUGMENTATIONS, np.random.default_rng(1))

    ours()
    slow, theirs = best_of(repeats, lambda: one_by_one(net, images))
    fast, mine = best_of(3 * repeats, ours)
    entropies = [e * top for e, top in (unsmoothness(q) for q in (theirs, mine))]
    difference = entropies[1] - entropies[0]
    error = difference.std() / np.sqrt(IMAGES)
    assert abs(difference.mean()) < STANDARD_ERRORS * error, difference.mean()
    assert np.corrcoef(entropies)[0, 1] > 0.5
    what = f"smoothness of {IMAGES} images {'x'.join(map(str, shape))} with {name}"
    return report(what, slow, fast)


# -- density ---------------------------------------------------------------------------------------


def by_sorting(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return mean cosine distances to the nearest points, by sorting all of them."""
    reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    result = np.empty(len(points))
    for i, point in enumerate(points):
        distance = 1 - reference @ (point / np.linalg.norm(point))
        result[i] = np.sort(distance)[:NEIGHBOURS].mean()
    return result


def measure_density(repeats: int) -> dict:
    rng = np.random.default_rng(0)
    points, reference = (
        rng.normal(size=(n, CLASSES)).astype(np.float32) for n in (POINTS, REFERENCE)
    )
    slow, expected = best_of(repeats, lambda: by_sorting(points, reference))
    fast, found = best_of(
        3 * repeats,
        lambda: sparsity(torch.from_numpy(points), torch.from_numpy(reference), NEIGHBOURS),
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    return report(f"density of {POINTS} points among {REFERENCE}", slow, fast)


def report(name: str, baseline: float, ours: float) -> dict:
    print(f"{name}: {baseline / ours:.1f} x ({baseline:.3f} s, {ours:.3f} s)", flush=True)
    return {
        "name": name,
        "ratio": baseline / ours,
        "baseline_seconds": baseline,
        "seconds": ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure_smoothness(shape, options.repeats) for shape in SHAPES]
    results.append(measure_density(options.repeats))
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
