"""Batched augmentation on tensors: AugMix's operations, chains and mixed views.

Every operation acts on a whole batch with one strength per image; images of a batch may get
different operations. Results are those of Pillow up to its rounding to 8 bits.
Source: Hendrycks et al., "AugMix", ICLR 2020.
"""

import itertools
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
    result = torch.empty_like(images)
    rows = _apply(images, np.arange(len(images)), operation, strength, result)
    return result.index_select(0, _index(np.argsort(rows), images))


def _apply(
    images: Tensor, rows: np.ndarray, operation: np.ndarray, strength: np.ndarray, out: Tensor
) -> np.ndarray:
    """Write what operations make of rows of images to `out`, and return their order there."""
    order = np.argsort(KIND[operation], kind="stable")
    operation, strength = operation[order], strength[order]
    source = _index(rows[order], images)
    # Operations of one kind are done by one call, right after its images were fetched.
    edges = np.flatnonzero(np.diff(KIND[operation], prepend=-1, append=-1))
    for first, end in itertools.pairwise(edges):
        part = out[first:end]
        torch.index_select(images, 0, source[first:end], out=part)
        KINDS[KIND[operation[first]]](part, operation[first:end], strength[first:end])
    return order


# Conditions on pixels are arithmetic here, by a ramp as steep as this: on processors, comparisons
# and selections take several times as long as products.
STEEP = 1e30


# -- geometric operations ----------------------------------------------------------------------


def _along_rows(images: Tensor, operation: np.ndarray, strength: np.ndarray) -> None:
    _slide(images, _shifts(operation, strength, images.shape[2]))


def _along_columns(images: Tensor, operation: np.ndarray, strength: np.ndarray) -> None:
    _slide(images.transpose(2, 3), _shifts(operation, strength, images.shape[3]))


def _shifts(operation: np.ndarray, strength: np.ndarray, lines: int) -> np.ndarray:
    """Return by how many pixels shears and translations shift each line of an image, [N, lines]."""
    sheared = np.isin(operation, (NUMBER["shear_x"], NUMBER["shear_y"]))
    # Shears start at the upper left corner, hence also move the image.
    return strength[:, None] * np.where(sheared[:, None], np.arange(lines) + 0.5, 1.0)


def _slide(images: Tensor, shift: np.ndarray) -> None:
    """Let each pixel come from `shift` pixels, [N, H], further right in its row."""
    n, channels, height, width = images.shape
    shift = shift.clip(-width, width)
    whole = np.floor(shift).astype(np.int64)
    # Pillow interpolates up to the border of the image. A moved row is a window on the long line
    # of all rows; what it takes from its neighbours is beyond the border, and black at the end.
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = np.arange(n * channels * (height + 2)).reshape(n, channels, height + 2)[..., 1:-1]
    start = _index(rows * (width + 2) + 1 + whole[:, None], images).flatten()
    windows = padded.as_strided((padded.numel() - width, width + 1), (1, 1))
    found = windows.index_select(0, start).view(n, channels, height, width + 1)
    share = torch.from_numpy(shift - whole).to(images).view(n, 1, height, 1)
    moved = torch.lerp(found[..., :-1], found[..., 1:], share)
    images.copy_(moved.mul_(_inside(np.floor(shift + 0.5), width).to(images)))


def _inside(shift: np.ndarray, width: int) -> Tensor:
    """Return 1 where rows shifted by whole pixels, [N, H], show the image, else 0: [N, 1, H, W]."""
    line = torch.zeros(3 * width)
    line[width:-width] = 1
    start = torch.from_numpy(shift.astype(np.int64) + width).flatten()
    found = line.as_strided((2 * width + 1, width), (1, 1)).index_select(0, start)
    return found.view(len(shift), 1, -1, width)


def _rotate(images: Tensor, _operation: np.ndarray, degrees: np.ndarray) -> None:
    height, width = images.shape[2:]
    angle = torch.from_numpy(np.deg2rad(degrees)).to(images).view(-1, 1, 1)
    cos, sin = angle.cos(), angle.sin()
    x = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
    y = ((torch.arange(height, device=images.device) * 2 + 1) / height - 1).view(-1, 1)
    # Sums of rows and columns are several times faster than affine_grid's product for each pixel,
    # and complex numbers are the fastest way to lay two coordinates side by side.
    from_x = cos * x - sin * (height / width) * y
    from_y = sin * (width / height) * x + cos * y
    grid = torch.view_as_real(torch.complex(from_x, from_y))
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # Pillow interpolates up to the border of the image and is black beyond it.
    beyond = torch.maximum(from_x.abs_(), from_y.abs_()).sub_(1)
    torch.mul(turned, beyond.mul_(-STEEP).clamp_(0, 1).unsqueeze(1), out=images)


# -- photometric operations --------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """Return the grey image, [N, 1, H, W], of grey or RGB images [N, C, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _autocontrast(images: Tensor, _strength: Tensor) -> None:
    low = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    flat = span < 1 / 512
    images.sub_(low.masked_fill(flat, 0.0)).div_(span.masked_fill(flat, 1.0))


def _equalize(images: Tensor, _strength: Tensor) -> None:
    n, channels, height, width = images.shape
    level = images.mul(255).round_().to(torch.int64).view(n * channels, height * width)
    counts = images.new_zeros(n * channels, 256)
    counts.scatter_add_(1, level, images.new_ones(1, 1).expand_as(level))
    step = (height * width - counts.gather(1, level.amax(dim=1, keepdim=True))).div_(255).floor_()
    table = (counts.cumsum(dim=1) - counts).add_((step / 2).floor_()).div_(step.clamp(min=1))
    table.floor_().clamp_(max=255).div_(255)
    equal = table.gather(1, level).view_as(images)
    images.lerp_(equal, step.clamp(max=1).view(n, channels, 1, 1))


def _posterize(images: Tensor, bits: Tensor) -> None:
    block = 2.0 ** (8 - bits)
    images.mul_(255).round_().div_(block).floor_().mul_(block / 255)


def _solarize(images: Tensor, threshold: Tensor) -> None:
    bright = images.sub((threshold - 0.5) / 255).mul_(STEEP).clamp_(0, 1)
    images.lerp_(1 - images, bright)


def _colour(images: Tensor, factor: Tensor) -> None:
    _blend(images, luma(images), factor)


def _contrast(images: Tensor, factor: Tensor) -> None:
    _blend(images, luma(images.mean(dim=(2, 3), keepdim=True)), factor)


def _brightness(images: Tensor, factor: Tensor) -> None:
    images.mul_(factor).clamp_(0, 1)


def _sharpness(images: Tensor, factor: Tensor) -> None:
    # The mean of the 3x3 neighbourhood in which the centre counts five times; borders stay.
    columns = (images[:, :, :-2] + images[:, :, 1:-1]).add_(images[:, :, 2:])
    nine = (columns[..., :-2] + columns[..., 1:-1]).add_(columns[..., 2:])
    centre = images[:, :, 1:-1, 1:-1]
    _blend(centre, nine.add_(centre, alpha=4).div_(13), factor)


def _blend(images: Tensor, start: Tensor, factor: Tensor) -> None:
    images.mul_(factor).add_(start * (1 - factor)).clamp_(0, 1)


# -- kinds: operations that are done together --------------------------------------------------

Kind = Callable[[Tensor, np.ndarray, np.ndarray], None]


def _photometric(function: Callable[[Tensor, Tensor], None]) -> Kind:
    def kind(images: Tensor, _operation: np.ndarray, strength: np.ndarray) -> None:
        value = torch.as_tensor(strength, dtype=images.dtype, device=images.device)
        function(images, value.view(-1, 1, 1, 1))

    return kind


def _nothing(_images: Tensor, _operation: np.ndarray, _strength: np.ndarray) -> None:
    """Leave the images: a copy is where a chain starts."""


OF_KIND: dict[Kind, tuple[str, ...]] = {
    _along_rows: ("shear_x", "translate_x"),
    _along_columns: ("shear_y", "translate_y"),
    _rotate: ("rotate",),
    _photometric(_autocontrast): ("autocontrast",),
    _photometric(_equalize): ("equalize",),
    _photometric(_posterize): ("posterize",),
    _photometric(_solarize): ("solarize",),
    _photometric(_colour): ("colour",),
    _photometric(_contrast): ("contrast",),
    _photometric(_brightness): ("brightness",),
    _photometric(_sharpness): ("sharpness",),
    _nothing: (COPY,),
}
KINDS = tuple(OF_KIND)
# Position in `KINDS` of each operation.
KIND = np.empty(len(NUMBER), dtype=np.int64)
for _kind, _names in enumerate(OF_KIND.values()):
    KIND[[NUMBER[name] for name in _names]] = _kind


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
    m = draw_weights(mixing, rng, (count, len(images)))
    return _blended(images, m, mixing, rng, companions, copies)


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
    m = np.ones((count, len(images)))
    return _blended(images, m, mixing, rng, companions, copies)


def _blended(
    images: Tensor,
    m: np.ndarray,
    mixing: Mixing,
    rng: np.random.Generator,
    companions: Tensor | None,
    copies: Tensor | None,
) -> Tensor:
    """Blend images with mixtures of their chains; these have the weights m, [count, N]."""
    width = mixing.width
    shares = m[..., None] * rng.dirichlet(np.ones(width + (companions is not None)), size=m.shape)
    given = [part for part in (images, copies, companions) if part is not None]
    table, ends = _chained(given, mixing, rng, len(m), copies is not None)
    own = np.broadcast_to(np.arange(len(images)), m.shape)
    places = np.concatenate([own[..., None], ends.transpose(0, 2, 1)], axis=-1)
    weights = np.concatenate([1 - m[..., None], shares[..., :width]], axis=-1)
    if companions is not None:
        # The chain that blends an image with its companion.
        weight = draw_weights(mixing, rng, m.shape)
        weights[..., 0] += shares[..., -1] * (1 - weight)
        weights = np.concatenate([weights, (shares[..., -1] * weight)[..., None]], axis=-1)
        places = np.concatenate([places, own[..., None] + len(images) * (len(given) - 1)], axis=-1)
    return _weighted(table, places, weights)


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
    given = [images] if copies is None else [images, copies]
    table, ends = _chained(given, mixing, rng, count, copies is not None)
    return table[_index(ends, images)]


def _chained(
    given: Sequence[Tensor], mixing: Mixing, rng: np.random.Generator, count: int, copied: bool
) -> tuple[Tensor, np.ndarray]:
    """Carry out chains for the first of `given`, whose copies come next if there are some.

    Returns
    -------
    table : Tensor, [M, C, H, W]
        What is given, then what every operation of every chain made.
    ends : ndarray of int, [count, width, N]
        Rows of the table with which the chains end.
    """
    n, shape = len(given[0]), given[0].shape[1:]
    drawn = draw_chains(mixing, rng, count * mixing.width * n, shape)
    place = np.tile(np.arange(n), count * mixing.width)
    if copied:
        place[np.concatenate([d.rows[d.operation == NUMBER[COPY]] for d in drawn])] += n
    filled = sum(map(len, given))
    table = given[0].new_empty(filled + sum(len(draw.rows) for draw in drawn), *shape)
    torch.cat(list(given), out=table[:filled])
    for draw in drawn:
        end = filled + len(draw.rows)
        source, made = table[:filled], table[filled:end]
        order = _apply(source, place[draw.rows], draw.operation, draw.strength, made)
        place[draw.rows[order]] = np.arange(filled, end)
        filled = end
    return table, place.reshape(count, mixing.width, n)


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
    places = np.arange(chained.shape[:3].numel()).reshape(chained.shape[:3])
    return _weighted(chained.flatten(0, 2), places.transpose(0, 2, 1), shares)


def _weighted(table: Tensor, places: np.ndarray, weights: np.ndarray) -> Tensor:
    """Sum rows of the table, [M, C, H, W], that have places and weights, [count, N, S]."""
    index = _index(places, table).flatten(0, 1)
    weight = torch.from_numpy(weights).to(table).flatten(0, 1)
    total = functional.embedding_bag(index, table.flatten(1), mode="sum", per_sample_weights=weight)
    return total.view(*places.shape[:2], *table.shape[1:])


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


def _index(rows: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(images.device)


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
