"""Style transfer without learned weights: the bands of a Haar pyramid, whitened and coloured."""

import torch
from modelfix_core.torch.wavelets import compose, decompose
from torch import Tensor
from torch.nn import functional

from modelfix_deeprepair.whitening import Statistics, statistics_of, transfer


class HaarStyle:
    """Gives images the colours and details of style images.

    The coarsest band carries brightness, contrast and colour cast, the detail bands noise and blur.

    Parameters
    ----------
    styles : Tensor of float, [S, C, H, W]
        In [0, 1].
    levels : int
        Of the pyramid.
    e : float
        Added to each eigenvalue of the covariances of colour channels.
    alpha : float
        Strength in [0, 1].
    """

    def __init__(self, styles: Tensor, levels: int, e: float, alpha: float) -> None:
        self.levels, self.e, self.alpha = levels, e, alpha
        low, details = self._pyramid(padded(styles, 2**levels))
        self.low = statistics_of(low.flatten(-2), e)
        self.details = [statistics_of(bands.flatten(-2), e) for bands in details]

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        """Stylise images.

        Parameters
        ----------
        images : Tensor of float, [N, C, H, W]
            In [0, 1].
        index : Tensor of int64, [N]
            Position of the style of each.

        Returns
        -------
        Tensor of float, [N, C, H, W]
            In [0, 1].
        """
        low, details = self._pyramid(padded(images, 2**self.levels))
        result = self._changed(low, self.low.at(index))
        for bands, style in zip(reversed(details), reversed(self.details), strict=True):
            result = compose(result, self._changed(bands, style.at(index, dim=1)))
        return cropped(result, images).clamp(0, 1)

    def _pyramid(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        details = []
        for _ in range(self.levels):
            images, bands = decompose(images)
            details.append(bands)
        return images, details

    def _changed(self, band: Tensor, style: Statistics) -> Tensor:
        changed = transfer(band.flatten(-2), style, self.e).view_as(band)
        return torch.lerp(band, changed, self.alpha)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Reflect the borders of images until both sides are multiples of a number."""
    height, width = (-size % multiple for size in images.shape[-2:])
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return functional.pad(images, sides, mode="reflect")


def cropped(images: Tensor, original: Tensor) -> Tensor:
    """Undo `padded`."""
    height, width = original.shape[-2:]
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]
