"""Whitening and colouring: give features the mean and covariance of others.

Features are [..., C, n]: C channels at n positions. The transform of X is

    (A_s + e I)^(1/2) (A_c + e I)^(-1/2) (X - m_c) + m_s

with means m and covariances A of content and style. Where there are fewer positions than channels,
both roots are taken of matrices of n x n instead of C x C, which gives the same.
Source: Yoo et al., "Photorealistic Style Transfer via Wavelet Transforms", ICCV 2019.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """What is taken of a style.

    Attributes
    ----------
    mean : Tensor, [..., C, 1]
    basis : Tensor, [..., C, r]
        With r the smaller of C and n.
    gain : Tensor, [..., 1, r]
        The root of the covariance is ``e^(1/2) I + basis diag(gain) basis^T``.
    """

    mean: Tensor
    basis: Tensor
    gain: Tensor

    def at(self, index: Tensor, dim: int = 0) -> "Statistics":
        """Return the statistics at positions of a dimension."""
        return Statistics(*(part.index_select(dim, index) for part in self))


def statistics_of(features: Tensor, e: float) -> Statistics:
    """Take the statistics of styles.

    Parameters
    ----------
    features : Tensor, [..., C, n]
    e : float
        Added to each eigenvalue of the covariance.
    """
    mean = features.mean(dim=-1, keepdim=True)
    centred = features - mean
    values, vectors = _eigen(centred)
    root = (values + e).sqrt()
    if _is_wide(features):
        return Statistics(mean, vectors, (root - e**0.5)[..., None, :])
    # sqrt(v + e) - sqrt(e) over v, in a form that a vanishing eigenvalue does not hurt.
    gain = 1 / (_freedom(features) * (root + e**0.5))
    return Statistics(mean, centred @ vectors, gain[..., None, :])


def transfer(content: Tensor, style: Statistics, e: float) -> Tensor:
    """Give features the mean and, up to `e`, the covariance of a style.

    Parameters
    ----------
    content : Tensor, [..., C, n]
    style : Statistics
        Of the same leading dimensions.
    e : float
        As it was for the style.

    Returns
    -------
    Tensor, [..., C, n]
    """
    white = whiten(content - content.mean(dim=-1, keepdim=True), e)
    coloured = (style.basis * style.gain) @ (style.basis.mT @ white)
    return coloured + white * e**0.5 + style.mean


def whiten(centred: Tensor, e: float) -> Tensor:
    """Multiply features of mean zero by the inverse root of their covariance plus `e`."""
    values, vectors = _eigen(centred)
    inverse = (vectors * (values + e).rsqrt()[..., None, :]) @ vectors.mT
    return inverse @ centred if _is_wide(centred) else centred @ inverse


def _eigen(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose the covariance, [C, C], or where that is smaller the Gram matrix, [n, n]."""
    product = centred @ centred.mT if _is_wide(centred) else centred.mT @ centred
    product = product / _freedom(centred)
    if product.shape[-1] == 1:  # grey images: nothing to decompose, many times over
        return product[..., 0].clamp(min=0), torch.ones_like(product)
    values, vectors = torch.linalg.eigh(product)
    return values.clamp(min=0), vectors


def _is_wide(features: Tensor) -> bool:
    return features.shape[-1] >= features.shape[-2]


def _freedom(features: Tensor) -> int:
    return max(features.shape[-1] - 1, 1)
