"""Localisation: which weights matter more to the faults than to what is already right."""

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-8  # added above and below in the score, as in the authors' code


def general_seed(logits: Tensor) -> Tensor:
    """Return the gradient of ``sum |z|`` at the logits (step 4, before dividing by ``|G|``).

    Parameters
    ----------
    logits : Tensor, [n, K]
        Raw: adding a constant to them changes the influence.

    Returns
    -------
    Tensor, [n, K]
    """
    return logits.detach().sign()


def cross_entropy_seed(logits: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy at the logits (step 5).

    Parameters
    ----------
    logits : Tensor, [n, K]
    y : Tensor of int64, [n]

    Returns
    -------
    Tensor, [n, K]
        Softmax minus one-hot label.
    """
    seed = logits.detach().softmax(dim=1)
    return seed.scatter_add(1, y[:, None], -torch.ones_like(seed[:, :1]))


def scores(specific: Sequence[Tensor], general: Sequence[Tensor], gamma: float) -> list[Tensor]:
    """Compare the influences of every weight (step 6).

    Parameters
    ----------
    specific, general : sequence of Tensor
        Influence on the remaining faults and on the general set, one tensor per parameter.
    gamma : float
        Weight of the general influence; larger unlocks fewer weights, 0 unlocks all.

    Returns
    -------
    list of Tensor
        Same shapes; a weight is unlocked where its score is 1 or more.
    """
    return [
        (s.abs() + EPSILON) / (gamma * g.abs() + EPSILON)
        for s, g in zip(specific, general, strict=True)
    ]


def masks(specific: Sequence[Tensor], general: Sequence[Tensor], gamma: float) -> list[Tensor]:
    """Return which weights are unlocked, one bool tensor per parameter; arguments as `scores`."""
    return [score >= 1 for score in scores(specific, general, gamma)]
