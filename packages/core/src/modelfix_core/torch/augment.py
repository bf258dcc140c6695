"""Batched augmentation on tensors: AugMix's operations, chains and mixed views.

Every operation acts on a whole batch with one strength per image; images of a batch may get
different operations. Results are those of Pillow up to its rounding to 8 bits.
Source: Hendrycks et al., "AugMix", ICLR 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
)
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
WITHOUT_LEVEL = ("autocontrast", "equalize")
COPY = "copy"  # a chain in which it is drawn starts from the copy of the image that is given
NUMBER = {name: number for number, name in enumerate((*OPERATIONS, COPY))}
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Variant:
    """An operation at a level and, where it has a direction, with a sign.

    Attributes
    ----------
    operation : str
        One of `OPERATIONS`, or `COPY`.
    level : float
        In [0, 10].
    sign : int
        1 or -1.
    """

    operation: str
    level: float = 3.0
    sign: int = 1

    def __str__(self) -> str:
        if self.operation in WITHOUT_LEVEL:
            return self.operation
        return f"{self.operation} {'-' if self.sign < 0 else ''}{self.level:g}"


def variants(shape: Sequence[int], levels: Sequence[float] = (1, 2, 3)) -> tuple[Variant, ...]:
    """List all variants that can change an image.

    Parameters
    ----------
    shape : sequence of int
        Channels, height and width. Grey images have no ``colour``, and a shift of less than a
        pixel is none.
    levels : sequence of float

    Returns
    -------
    tuple of Variant
    """
    found = []
    for operation in OPERATIONS:
        if operation == "colour" and shape[0] == 1:
            continue
        for level in levels[-1:] if operation in WITHOUT_LEVEL else levels:
            signs = (1, -1) if operation in SIGNED else (1,)
            found += [Variant(operation, level, sign) for sign in signs]
    strength = strengths(found, np.array([v.level for v in found]), shape)
    moves = [
        not v.operation.startswith("translate") or s for v, s in zip(found, strength, strict=True)
    ]
    return tuple(variant for variant, keep in zip(found, moves, strict=True) if keep)


def strengths(chosen: Sequence[Variant], level: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return what the operations take: degrees, shear, pixels, threshold, bits or factor.

    Parameters
    ----------
    chosen : sequence of Variant, [N]
        Only operation and sign are read.
    level : ndarray of float, [N]
        In [0, 10]; AugMix's scaling applies.
    shape : sequence of int
        Channels, height and width, which bound shifts.

    Returns
    -------
    ndarray of float, [N]
    """
    number = np.array([NUMBER[v.operation] for v in chosen], dtype=np.int64)
    sign = np.array([v.sign for v in chosen], dtype=float)
    return _strength(number, sign, np.asarray(level, dtype=float), shape)


def _strength(number, sign, level, shape) -> np.ndarray:
    share = level / 10
    scale = np.ones(len(NUMBER))
    offset = np.zeros(len(NUMBER))
    for name, size, start in (
        ("posterize", -4, 4),
        ("rotate", 30, 0),
        ("solarize", -256, 256),
        ("shear_x", 0.3, 0),
        ("shear_y", 0.3, 0),
        ("translate_x", shape[2] / 3, 0),
        ("translate_y", shape[1] / 3, 0),
        *((name, 1.8, 0.1) for name in ("colour", "contrast", "brightness", "sharpness")),
    ):
        scale[NUMBER[name]], offset[NUMBER[name]] = size, start
    amount = share * scale[number]
    whole = [NUMBER[n] for n in ("posterize", "solarize", "translate_x", "translate_y")]
    # A tiny surplus keeps 10 * 0.3 from becoming 2 pixels.
    amount = np.where(np.isin(number, whole), np.trunc(amount + np.copysign(1e-9, amount)), amount)
    return sign * amount + offset[number]


def apply(images: Tensor, operation: np.ndarray, strength: np.ndarray) -> Tensor:
    """Apply one operation to each image.

    Parameters
    ----------
    images : Tensor of float, [N, C, H, W]
        In [0, 1].
    operation : ndarray of int, [N]
        Positions in `OPERATIONS`.
    strength : ndarray of float, [N]
        As from `strengths`.

    Returns
    -------
    Tensor of float, [N, C, H, W]
        In [0, 1].
    """
    result = images.clone()
    _apply(result, np.arange(len(images)), operation, strength)
    return result


def _apply(images: Tensor, rows: np.ndarray, operation: np.ndarray, strength: np.ndarray) -> None:
    """Apply operations in place to `rows`, with one call for each kind that is present."""
    order = np.argsort(KIND[operation], kind="stable")
    kinds, starts = np.unique(KIND[operation][order], return_index=True)
    for kind, members in zip(kinds, np.split(order, starts[1:]), strict=True):
        where = torch.from_numpy(rows[members]).to(images.device)
        part = images.index_select(0, where)
        if kind == GEOMETRIC:
            changed = _warp(part, operation[members], strength[members])
        else:
            value = torch.as_tensor(strength[members], dtype=images.dtype, device=images.device)
            changed = PHOTOMETRIC[OPERATIONS[kind]](part, value.view(-1, 1, 1, 1))
        images.index_copy_(0, where, changed)


# -- geometric operations ----------------------------------------------------------------------


def _warp(images: Tensor, operation: np.ndarray, strength: np.ndarray) -> Tensor:
    height, width = images.shape[2:]
    theta = torch.from_numpy(_matrices(operation, strength, height, width)).to(images)
    x = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=images.device) * 2 + 1) / height - 1
    # Sums of rows and columns are several times faster than affine_grid's product for each pixel,
    # and complex numbers are the fastest way to lay two coordinates side by side.
    rows = theta[:, :, 1:2] * y + theta[:, :, 2:]
    columns = theta[:, :, 0:1] * x
    from_x, from_y = (rows[:, i, :, None] + columns[:, i, None, :] for i in (0, 1))
    grid = torch.view_as_real(torch.complex(from_x, from_y))
    warped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # Pillow interpolates up to the border of the image and is black beyond it.
    inside = torch.maximum(from_x.abs_(), from_y.abs_()) < 1
    return warped.mul_(inside.unsqueeze(1))


def _matrices(operation, strength, height, width) -> np.ndarray:
    """Return the maps from output to input positions in coordinates from -1 to 1, [N, 2, 3]."""
    ratio = height / width
    amount = {name: np.where(operation == NUMBER[name], strength, 0.0) for name in SIGNED}
    angle = np.deg2rad(amount["rotate"])
    theta = np.empty((len(operation), 2, 3))
    theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle)
    # Shears start at the upper left corner, hence also move the image.
    theta[:, 0, 1] = (amount["shear_x"] - np.sin(angle)) * ratio
    theta[:, 0, 2] = amount["shear_x"] * ratio + 2 * amount["translate_x"] / width
    theta[:, 1, 0] = (amount["shear_y"] + np.sin(angle)) / ratio
    theta[:, 1, 2] = amount["shear_y"] / ratio + 2 * amount["translate_y"] / height
    return theta


# -- photometric operations --------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """Return the grey image, [N, 1, H, W], of grey or RGB images [N, C, H, W]."""
    if images.shape[1] == 1:
        return images
    weight = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weight.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _autocontrast(images: Tensor, _strength: Tensor) -> Tensor:
    low = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    flat = span < 1 / 512
    return torch.where(flat, images, (images - low) / span.masked_fill(flat, 1.0))


def _equalize(images: Tensor, _strength: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    level = _levels(images).view(n * channels, height * width)
    counts = torch.zeros(n * channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, level, torch.ones_like(level))
    highest = level.amax(dim=1, keepdim=True)
    step = (height * width - counts.gather(1, highest)) // 255
    before = counts.cumsum(dim=1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255).to(images.dtype) / 255
    equal = table.gather(1, level).view_as(images)
    return torch.where((step == 0).view(n, channels, 1, 1), images, equal)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    block = 2.0 ** (8 - bits)
    return (images.mul(255).round_().div_(block).floor_()) * (block / 255)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images < (threshold - 0.5) / 255, images, 1 - images)


def _colour(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(luma(images), images, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(luma(images).mean(dim=(2, 3), keepdim=True), images, factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    # The mean of the 3x3 neighbourhood in which the centre counts five times; borders stay.
    columns = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    nine = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (nine + images[:, :, 1:-1, 1:-1] * 4) / 13
    return _blend(smooth, images, factor)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    return (start + factor * (end - start)).clamp_(0, 1)


def _levels(images: Tensor) -> Tensor:
    return images.mul(255).round_().to(torch.int64)


PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
GEOMETRIC = -1
# Number of the kernel of each operation: its own, or one for all geometric operations.
KIND = np.array([NUMBER[name] if name in PHOTOMETRIC else GEOMETRIC for name in OPERATIONS])


# -- chains and views --------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixing:
    """How views are drawn.

    Attributes
    ----------
    variants : tuple of Variant
        Out of which operations are drawn; the level of a draw is uniform in [level - span, level].
    probabilities : tuple of float
        Of the variants.
    width : int
        Chains of each view.
    depth : int
        Longest chain; the length is uniform from 1.
    weight : float or None
        Centre of the weight of the chains against the image; None draws it from Beta(1, 1).
    spread : float
        Standard deviation of the weight's normal distribution, which is truncated to [0, 1].
    span : float
        Width of the interval of levels.
    """

    variants: tuple[Variant, ...]
    probabilities: tuple[float, ...]
    width: int = 3
    depth: int = 3
    weight: float | None = None
    spread: float = 0.15
    span: float = 1.0

    @classmethod
    def uniform(cls, shape: Sequence[int], **options: Any) -> "Mixing":
        """Return plain AugMix on images of `shape`: all variants alike."""
        found = variants(shape)
        return cls(found, (1 / len(found),) * len(found), **options)


def views(
    images: Tensor,
    mixing: Mixing,
    rng: np.random.Generator,
    count: int = 2,
    companions: Tensor | None = None,
    copies: Tensor | None = None,
) -> Tensor:
    """Draw augmented views of each image.

    A view is ``(1 - m) * image + m * sum_j w_j * chain_j(image)`` with weights from a flat
    Dirichlet distribution.

    Parameters
    ----------
    images : Tensor of float, [N, C, H, W]
        In [0, 1].
    mixing : Mixing
    rng : numpy.random.Generator
    count : int
        Views of each image.
    companions : Tensor of float, [N, C, H, W], optional
        One more chain blends each image with its companion, with a weight drawn as m is.
    copies : Tensor of float, [N, C, H, W], optional
        From these start the chains in which the operation `COPY` is drawn; needed where `mixing`
        has it.

    Returns
    -------
    Tensor of float, [count, N, C, H, W]
        In [0, 1].
    """
    m = _per_image(draw_weights(mixing, rng, (count, len(images))), images)
    mixed = mixtures(images, mixing, rng, count, companions, copies)
    return torch.lerp(images.expand_as(mixed), mixed, m)


def mixtures(
    images: Tensor,
    mixing: Mixing,
    rng: np.random.Generator,
    count: int = 1,
    companions: Tensor | None = None,
    copies: Tensor | None = None,
) -> Tensor:
    """Draw what `views` blends each image with: the weighted sums of its chains.

    Returns
    -------
    Tensor of float, [count, N, C, H, W]
    """
    width = mixing.width + (companions is not None)
    shares = rng.dirichlet(np.ones(width), size=(count, len(images)))
    mixed = mix(chains(images, mixing, rng, count, copies), shares[..., : mixing.width])
    if companions is not None:
        weight = _per_image(draw_weights(mixing, rng, (count, len(images))), images)
        blended = torch.lerp(images.expand_as(mixed), companions.expand_as(mixed), weight)
        mixed += _per_image(shares[..., -1], images) * blended
    return mixed


def chains(
    images: Tensor,
    mixing: Mixing,
    rng: np.random.Generator,
    count: int = 1,
    copies: Tensor | None = None,
) -> Tensor:
    """Apply chains of random operations.

    Parameters
    ----------
    images, mixing, rng, count, copies
        As for `views`.

    Returns
    -------
    Tensor of float, [count, width, N, C, H, W]
    """
    drawn = draw_chains(mixing, rng, count * mixing.width * len(images), images.shape[1:])
    result = images.repeat(count * mixing.width, 1, 1, 1)
    if copies is not None:
        starts = np.unique(np.concatenate([d.rows[d.operation == NUMBER[COPY]] for d in drawn]))
        result[torch.from_numpy(starts)] = copies[torch.from_numpy(starts % len(images))]
    for draw in drawn:
        changes = draw.operation != NUMBER[COPY]
        _apply(result, draw.rows[changes], draw.operation[changes], draw.strength[changes])
    return result.view(count, mixing.width, *images.shape)


class Drawn(NamedTuple):
    """Operations at one position of many chains.

    Attributes
    ----------
    rows : ndarray of int, [M]
        The chains that are as long.
    operation : ndarray of int, [M]
        As in `NUMBER`.
    strength : ndarray of float, [M]
        As from `strengths`.
    """

    rows: np.ndarray
    operation: np.ndarray
    strength: np.ndarray


def draw_chains(
    mixing: Mixing, rng: np.random.Generator, chains: int, shape: Sequence[int]
) -> list[Drawn]:
    """Draw the operations of chains for images of `shape`, one entry for each position."""
    length = rng.integers(1, mixing.depth + 1, size=chains)
    number = np.array([NUMBER[v.operation] for v in mixing.variants])
    sign = np.array([v.sign for v in mixing.variants], dtype=float)
    top = np.array([v.level for v in mixing.variants], dtype=float)
    result = []
    for position in range(mixing.depth):
        rows = np.flatnonzero(length > position)
        drawn = rng.choice(len(number), size=len(rows), p=mixing.probabilities)
        level = np.maximum(top[drawn] - mixing.span * rng.random(len(rows)), 0.0)
        result.append(
            Drawn(rows, number[drawn], _strength(number[drawn], sign[drawn], level, shape))
        )
    return result


def mix(chained: Tensor, shares: np.ndarray) -> Tensor:
    """Return the weighted sum of chains.

    Parameters
    ----------
    chained : Tensor, [count, width, N, C, H, W]
    shares : ndarray of float, [count, N, width]

    Returns
    -------
    Tensor, [count, N, C, H, W]
    """
    weight = torch.as_tensor(shares, dtype=chained.dtype, device=chained.device)
    return torch.einsum("vwnchx,vnw->vnchx", chained, weight)


def draw_weights(
    mixing: Mixing, rng: np.random.Generator, size: int | tuple[int, ...]
) -> np.ndarray:
    """Draw weights of the chains against the image, in [0, 1]."""
    u = rng.random(size)
    if mixing.weight is None:
        return u
    if mixing.spread == 0:
        return np.full(size, mixing.weight)
    bounds = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = torch.special.ndtr((bounds - mixing.weight) / mixing.spread)
    drawn = torch.special.ndtri(low + torch.from_numpy(u) * (high - low))
    return (mixing.weight + mixing.spread * drawn).clamp(0, 1).numpy()


def _per_image(values: np.ndarray, images: Tensor) -> Tensor:
    """Shape one value per view and image, [count, N], so that it multiplies [count, N, C, H, W]."""
    tensor = torch.as_tensor(values, dtype=images.dtype, device=images.device)
    return tensor.view(*values.shape, 1, 1, 1)


def crop_and_flip(
    images: Tensor, rng: np.random.Generator, padding: int = 0, flip: bool = False
) -> Tensor:
    """Shift each image by up to `padding` pixels (black comes in) and mirror every second one.

    Parameters
    ----------
    images : Tensor, [N, C, H, W]
    rng : numpy.random.Generator
    padding : int
    flip : bool

    Returns
    -------
    Tensor, [N, C, H, W]
    """
    if not padding and not flip:
        return images
    n, _, height, width = images.shape
    shift = rng.integers(0, 2 * padding + 1, size=(2, n, 1))
    row = torch.from_numpy(shift[0] + np.arange(height)).to(images.device)
    column = shift[1] + np.arange(width)
    mirrored = rng.random((n, 1)) < 0.5 if flip else np.zeros((n, 1), dtype=bool)
    column = torch.from_numpy(np.where(mirrored, column[:, ::-1], column)).to(images.device)
    padded = functional.pad(images, (padding,) * 4)
    image = torch.arange(n, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None, :]].permute(
        0, 3, 1, 2
    )
