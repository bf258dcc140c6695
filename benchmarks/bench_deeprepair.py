# environment: deeprepair
"""DeepRepair: batched style transfer against one image after the other.

The baseline does what the authors' code does: for every image it takes the covariances of content
and style anew and multiplies by roots of C x C matrices. Ours takes the styles' once, works on
batches, and on n x n matrices where there are fewer positions than channels. Both use the same
images and styles, and must give the same result.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from modelfix_core.torch.wavelets import compose, decompose
from modelfix_deeprepair.haar import HaarStyle
from modelfix_deeprepair.whitening import statistics_of, transfer
from torch import Tensor
from torch.nn import functional

IMAGES, STYLES, LEVELS, E = 512, 20, 3, 1e-5
# Channels and positions of features at the seven places of WCT2 for an image of 32 x 32.
PLACES = ((64, 1024), (128, 256), (256, 64), (512, 16), (256, 64), (128, 256), (64, 1024))
FEATURES = 4


def root(covariance: Tensor, exponent: float, e: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance + e * torch.eye(len(covariance)).to(covariance))
    return (vectors * values.clamp(min=e) ** exponent) @ vectors.mT


def whitened_and_coloured(content: Tensor, style: Tensor, e: float) -> Tensor:
    """Transform features [C, n] with matrices of C x C."""
    centred = content - content.mean(dim=1, keepdim=True)
    other = style - style.mean(dim=1, keepdim=True)
    white = root(centred @ centred.mT / (centred.shape[1] - 1), -0.5, e)
    colour = root(other @ other.mT / (other.shape[1] - 1), 0.5, e)
    return colour @ (white @ centred) + style.mean(dim=1, keepdim=True)


def one_by_one(images: Tensor, styles: Tensor, index: Tensor) -> Tensor:
    def changed(content: Tensor, style: Tensor) -> Tensor:
        pair = content.flatten(1), style.flatten(1)
        return whitened_and_coloured(*pair, E).view_as(content)

    results = []
    for image, number in zip(images, index, strict=True):
        low, style = image, styles[number]
        bands = []
        for _ in range(LEVELS):
            low, details = decompose(low)
            style, others = decompose(style)
            bands.append([changed(a, b) for a, b in zip(details, others, strict=True)])
        result = changed(low, style)
        for details in reversed(bands):
            result = compose(result, torch.stack(details))
        results.append(result.clamp(0, 1))
    return torch.stack(results)


def best(function: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of this process's own time of several calls."""
    times = []
    for _ in range(repeats):
        start = process_time()
        function()
        times.append(process_time() - start)
    return min(times)


def pictures(n: int, channels: int, rng: torch.Generator) -> Tensor:
    coarse = torch.rand(n, channels, 6, 6, generator=rng)
    smooth = functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1)


def stylising(channels: int, repeats: int) -> dict:
    """Haar: images in a batch against images one by one."""
    rng = torch.Generator().manual_seed(0)
    images, styles = pictures(IMAGES, channels, rng), pictures(STYLES, channels, rng)
    index = torch.randint(0, STYLES, (IMAGES,), generator=rng)

    def ours() -> Tensor:
        return HaarStyle(styles, LEVELS, E, 1.0)(images, index)

    difference = (ours() - one_by_one(images, styles, index)).abs().max()
    assert difference < 1e-4, float(difference)
    mine, baseline = (
        best(ours, 5 * repeats),
        best(lambda: one_by_one(images, styles, index), repeats),
    )
    return {
        "name": f"deeprepair haar {channels}x32x32, {IMAGES} images",
        "ratio": baseline / mine,
        "baseline_seconds": baseline,
        "seconds": mine,
    }


def transforming(repeats: int) -> dict:
    """Features of WCT2: the smaller matrices, styles taken once, against C x C matrices."""
    rng = torch.Generator().manual_seed(0)
    pairs = [
        torch.randn(2, FEATURES, *place, generator=rng, dtype=torch.float64) for place in PLACES
    ]
    known = [statistics_of(style[:1], 1.0) for _, style in pairs]
    index = torch.zeros(FEATURES, dtype=torch.long)

    def ours() -> list[Tensor]:
        return [transfer(x, s.at(index), 1.0) for (x, _), s in zip(pairs, known, strict=True)]

    def direct() -> list[Tensor]:
        return [
            torch.stack([whitened_and_coloured(x, style[0], 1.0) for x in content])
            for content, style in pairs
        ]

    for one, other in zip(ours(), direct(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    mine, baseline = best(ours, 2 * repeats), best(direct, repeats)
    return {
        "name": f"deeprepair transform at WCT2's seven places, {FEATURES} images",
        "ratio": baseline / mine,
        "baseline_seconds": baseline,
        "seconds": mine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = options.repeats
    results = [stylising(1, repeats), stylising(3, repeats), transforming(repeats)]
    for r in results:
        print(
            f"{r['name']}: {r['ratio']:.1f} x ({r['baseline_seconds']:.3f} s, {r['seconds']:.3f} s)"
        )
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
