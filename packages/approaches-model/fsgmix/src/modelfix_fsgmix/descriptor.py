"""What is compared of images: brightness, contrast, sharpness and the geometry of their strokes."""

import torch
from modelfix_core.torch.augment import luma
from modelfix_core.torch.wavelets import decompose
from torch import Tensor
from torch.nn import functional

ENERGY_FLOOR = 1e-6  # far below that of 8-bit rounding, so that flat images have finite logarithms


def reduced(images: Tensor, side: int) -> Tensor:
    """Shrink images to at most `side` pixels in height and width, [N, C, h, w]."""
    height, width = images.shape[2:]
    if max(height, width) <= side:
        return images
    return functional.interpolate(images, (min(height, side), min(width, side)), mode="area")


def describe(images: Tensor) -> Tensor:
    """Describe images by a few numbers each.

    Parameters
    ----------
    images : Tensor of float, [N, C, H, W]
        In [0, 1], with C 1 or 3 and sides of at least 2.

    Returns
    -------
    Tensor of float, [N, D]
        Mean and standard deviation of each channel; log energies of the three Haar detail bands of
        the grey image at scale 1 and, where 4 divides both sides, at scale 2; centroid and central
        second moments of the grey image. D is 2C + 6 + 5 or 2C + 3 + 5.
    """
    grey = luma(images)[:, 0]
    bands, low = _haar(grey)
    details = [bands]
    if grey.shape[1] % 4 == 0 and grey.shape[2] % 4 == 0:
        details.append(_haar(low)[0])
    channels = [images.mean(dim=(2, 3)), images.std(dim=(2, 3), correction=0)]
    return torch.cat([*channels, *details, _moments(grey)], dim=1)


def _haar(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return log energies of the detail bands, [N, 3], and the low band, [N, H // 2, W // 2]."""
    height, width = (size // 2 * 2 for size in grey.shape[1:])
    low, details = decompose(grey[:, :height, :width])
    energies = torch.stack([band.square().mean(dim=(1, 2)) for band in details], dim=1)
    return (energies + ENERGY_FLOOR).log(), low


def _moments(grey: Tensor) -> Tensor:
    """Return centroid and central second moments of the brightness, [N, 5]."""
    y = torch.linspace(-1, 1, grey.shape[1], device=grey.device)
    x = torch.linspace(-1, 1, grey.shape[2], device=grey.device)
    share = grey / grey.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    rows, columns = share.sum(dim=2), share.sum(dim=1)
    mean_y, mean_x = rows @ y, columns @ x
    from_y, from_x = y - mean_y[:, None], x - mean_x[:, None]
    var_y = (rows * from_y.square()).sum(dim=1)
    var_x = (columns * from_x.square()).sum(dim=1)
    cross = torch.einsum("nhw,nh,nw->n", share, from_y, from_x)
    return torch.stack([mean_y, mean_x, var_y, var_x, cross], dim=1)
