"""Localisation: the neuron whose movement alone promises most for the faulty inputs together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modelfix_vere.relaxation import lower_lines
from modelfix_vere.suffix import Suffix

ROUNDING = 1e-5  # of a margin in float32, relative to its size if above 1


@dataclass(frozen=True)
class Faults:
    """The faulty inputs of a round.

    Attributes
    ----------
    hidden : Tensor of float32, [I, D]
        The hidden vector h.
    rows : Tensor of float32, [I, C]
        c: 1 at the label, -1 at the predicted class.
    margins : Tensor of float32, [I]
        c . g(h), not positive.
    """

    hidden: Tensor
    rows: Tensor
    margins: Tensor


def faults(suffix: Suffix, hidden: Tensor, labels: Tensor) -> Faults:
    """Describe faulty inputs.

    Parameters
    ----------
    suffix : Suffix
    hidden : Tensor of float32, [I, D]
    labels : Tensor of int64, [I]
    """
    logits = suffix(hidden)
    predicted = logits.argmax(dim=1)
    one = torch.eye(logits.shape[1], device=logits.device)
    rows = one[labels] - one[predicted]
    return Faults(hidden, rows, (rows * logits).sum(dim=1))


def intervals(
    hidden: Tensor, pieces: int, times: float = 2.0, limits: tuple[float, float] | None = None
) -> Tensor:
    """Divide the interval in which each neuron is tried.

    Parameters
    ----------
    hidden : Tensor of float32, [N, D]
        The neurons' values on all inputs.
    pieces : int
        K.
    times : float
        Length of the interval, as a multiple of the range d = max - min of the neuron's values. It
        starts at min - d: with 1 it holds only values below those seen, with 2 it ends at max.
    limits : (float, float), optional
        One interval for all neurons instead.

    Returns
    -------
    Tensor of float32, [D, K + 1]
        Edges of K contiguous pieces.
    """
    if limits is None:
        low, high = hidden.amin(dim=0), hidden.amax(dim=0)
        start, length = low - (high - low), times * (high - low)
    else:
        start = hidden.new_full((hidden.shape[1],), limits[0])
        length = torch.full_like(start, limits[1] - limits[0])
    steps = torch.arange(pieces + 1, device=hidden.device) / pieces
    return start[:, None] + length[:, None] * steps


def significance(
    suffix: Suffix,
    found: Faults,
    edges: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return by how much moving each neuron surely raises each margin, at the best end of a piece.

    Parameters
    ----------
    suffix : Suffix
    found : Faults
    edges : Tensor of float32, [D, K + 1]
    progress : callable
        Gets how many neurons are done, and D.

    Returns
    -------
    Tensor of float32, [D, I]
        S; 0 where the effect is negative or within rounding.
    """
    neurons = torch.arange(len(edges), device=edges.device)
    result = edges.new_empty(len(edges), len(found.margins))
    rounding = ROUNDING * found.margins.abs().clamp(min=1)
    for part, lines in lower_lines(suffix, found.hidden, found.rows, neurons, edges):
        effects = lines.amax(dim=(2, 3)) - found.margins
        result[part] = torch.where(effects > rounding, effects, 0)
        progress(part.stop, len(edges))
    return result


def scores(significance: Tensor) -> Tensor:
    """Sum the significance, scaled to [0, 1] among the neurons for each input.

    Parameters
    ----------
    significance : Tensor, [D, I]

    Returns
    -------
    Tensor, [D]
        RS. An input to which all neurons mean the same counts 0.
    """
    low, high = significance.amin(dim=0), significance.amax(dim=0)
    span = high - low
    return ((significance - low) / torch.where(span > 0, span, 1)).sum(dim=1)
