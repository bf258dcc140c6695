# environment: fsgmix
"""Batched augmentation against AugMix's usual form: Pillow, one image after the other."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from modelfix_core.torch import augment
from modelfix_core.torch.augment import Mixing, Variant
from PIL import Image, ImageEnhance, ImageOps

BATCH = 128
VIEWS = 2
ENHANCERS = {
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def with_pillow(picture: Image.Image, name: str, value: float) -> Image.Image:
    matrices = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
    }
    if name in matrices:
        how = {"resample": Image.Resampling.BILINEAR}
        return picture.transform(picture.size, Image.Transform.AFFINE, matrices[name], **how)
    if name in ENHANCERS:
        return ENHANCERS[name](picture).enhance(value)
    if name == "rotate":
        return picture.rotate(value, resample=Image.Resampling.BILINEAR)
    if name == "posterize":
        return ImageOps.posterize(picture, int(value))
    if name == "solarize":
        return ImageOps.solarize(picture, int(value))
    return getattr(ImageOps, name)(picture)


def value_of(variant: Variant, level: float, shape: tuple[int, int, int]) -> float:
    share = level / 10
    if variant.operation in ENHANCERS:
        return 1.8 * share + 0.1
    if variant.operation == "posterize":
        return 4 - int(4 * share)
    if variant.operation == "solarize":
        return 256 - int(256 * share)
    if variant.operation == "rotate":
        return variant.sign * 30 * share
    if variant.operation.startswith("shear"):
        return variant.sign * 0.3 * share
    return variant.sign * int(shape[2] / 3 * share)


def to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    array = torch.from_numpy(np.array(picture))
    array = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
    return array.to(torch.float32).div(255)


def pillow_views(images: np.ndarray, mixing: Mixing, rng: np.random.Generator) -> torch.Tensor:
    """Draw views as AugMix's data loader does; both views of all images."""
    shape = images.shape[1:]
    views = []
    for image in np.concatenate([images] * VIEWS):
        shares = rng.dirichlet(np.ones(mixing.width)).astype(np.float32)
        m = float(rng.random())
        mixed = torch.zeros(shape)
        for share in shares:
            picture = to_picture(image)
            for _ in range(rng.integers(1, mixing.depth + 1)):
                variant = mixing.variants[rng.integers(len(mixing.variants))]
                level = max(variant.level - rng.random(), 0.0)
                value = value_of(variant, level, shape)
                picture = with_pillow(picture, variant.operation, value)
            mixed += float(share) * to_tensor(picture)
        views.append((1 - m) * to_tensor(to_picture(image)) + m * mixed)
    return torch.stack(views).view(VIEWS, *images.shape)


def agree(images: np.ndarray) -> None:
    """Assert that every operation gives what Pillow gives."""
    shape = images.shape[1:]
    x = torch.from_numpy(images).float() / 255
    for variant in augment.variants(shape):
        [value] = augment.strengths([variant], np.array([variant.level]), shape)
        expected = np.stack(
            [
                to_tensor(with_pillow(to_picture(i), variant.operation, float(value))).numpy()
                for i in images
            ]
        )
        number = np.full(len(x), augment.NUMBER[variant.operation])
        ours = augment.apply(x, number, np.full(len(x), value)).numpy()
        difference = np.abs(ours - expected) * 255
        if variant.operation in augment.SIGNED:
            assert difference.mean() <= 1, variant
        else:
            assert difference.max() <= 2, variant


def best(function, repeats: int, clock: Callable[[], float]) -> float:
    """Return the least seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def measure(shape: tuple[int, int, int], repeats: int, device: str) -> dict:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((BATCH, shape[0], 6, 6), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    images = smooth.mul(255).round().to(torch.uint8).numpy()
    agree(images)
    mixing = Mixing.uniform(shape)
    resident = torch.from_numpy(images).to(device)

    def ours() -> None:
        augment.views(resident.float() / 255, mixing, np.random.default_rng(1), VIEWS)
        if device != "cpu":
            torch.cuda.synchronize()

    ours()
    # One thread each: its own time does not count what other work on the machine delays.
    clock = time.process_time if device == "cpu" else time.perf_counter
    baseline = best(lambda: pillow_views(images, mixing, np.random.default_rng(1)), repeats, clock)
    mine = best(ours, 5 * repeats, clock)
    return {
        "name": f"augment {'x'.join(map(str, shape))} {device}",
        "ratio": baseline / mine,
        "baseline_seconds": baseline,
        "seconds": mine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    shapes = [(1, 28, 28), (3, 32, 32)]
    results = [measure(shape, options.repeats, device) for device in devices for shape in shapes]
    for r in results:
        print(
            f"{r['name']}: {r['ratio']:.1f} x ({r['baseline_seconds']:.3f} s, {r['seconds']:.3f} s)"
        )
    if options.json:
        options.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    main()
