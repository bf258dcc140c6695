"""The orthonormal Haar wavelet in the plane."""

import torch
from torch import Tensor


def decompose(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split images into a low and three detail bands of half the size.

    Parameters
    ----------
    x : Tensor of float, [..., H, W]
        With even sides.

    Returns
    -------
    low : Tensor, [..., H / 2, W / 2]
    details : Tensor, [3, ..., H / 2, W / 2]
        Differences of columns, of rows and of both.
    """
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    sums, differences = even + odd, even - odd
    low = (sums[..., 0::2] + sums[..., 1::2]) / 2
    details = (
        (sums[..., 0::2] - sums[..., 1::2]) / 2,
        (differences[..., 0::2] + differences[..., 1::2]) / 2,
        (differences[..., 0::2] - differences[..., 1::2]) / 2,
    )
    return low, torch.stack(details)


def compose(low: Tensor, details: Tensor) -> Tensor:
    """Return the images, [..., H, W], that `decompose` splits into these bands."""
    columns, rows, both = details
    height, width = low.shape[-2:]
    x = low.new_empty(*low.shape[:-2], height, 2, width, 2)
    x[..., 0, :, 0] = low + columns + rows + both
    x[..., 0, :, 1] = low - columns + rows - both
    x[..., 1, :, 0] = low + columns - rows - both
    x[..., 1, :, 1] = low - columns - rows + both
    return (x / 2).view(*low.shape[:-2], 2 * height, 2 * width)
