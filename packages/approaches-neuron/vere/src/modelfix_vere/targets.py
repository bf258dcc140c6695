"""Target intervals: which values of the chosen neuron the repair aims at."""

from typing import NamedTuple

import torch
from torch import Tensor

from modelfix_vere.localisation import Faults
from modelfix_vere.relaxation import lower_lines
from modelfix_vere.suffix import Suffix


class Targets(NamedTuple):
    """Where the neuron's value should lie for each faulty input, [I] each.

    Attributes
    ----------
    low, high : Tensor of float32
    ideal : Tensor of bool
        Whether every value from `low` to `high` is proved to make the label win.
    """

    low: Tensor
    high: Tensor
    ideal: Tensor


def targets(
    suffix: Suffix,
    found: Faults,
    labels: Tensor,
    neuron: int,
    edges: Tensor,
    strict: bool = False,
    only_gains: bool = False,
) -> Targets:
    """Choose the target interval of one neuron for each faulty input.

    It is the nearest ideal piece: one on which the label surely beats the predicted class. Where no
    piece is ideal, it is the end of a piece at which the effect is largest.

    Parameters
    ----------
    suffix : Suffix
    found : Faults
    labels : Tensor of int64, [I]
    neuron : int
    edges : Tensor of float32, [K + 1]
        Of the neuron.
    strict : bool
        Whether an ideal piece must make the label beat all other classes.
    only_gains : bool
        Whether the neuron's value is kept where its largest effect is not positive.
    """
    own = found.hidden[:, neuron]
    lines = _lines(suffix, found.hidden, found.rows, neuron, edges)
    proved = _rivals(suffix, found.hidden, labels, neuron, edges) if strict else lines
    low, high = edges[:-1], edges[1:]
    ideal = (proved > 0).all(dim=2)
    distance = torch.minimum((low - own[:, None]).abs(), (high - own[:, None]).abs())
    nearest = torch.where(ideal, distance, torch.inf).argmin(dim=1)
    gain, best = lines.flatten(1).max(dim=1)
    # Piece k has its ends at the edges k and k + 1.
    point = edges[best // 2 + best % 2]
    if only_gains:
        point = torch.where(gain > found.margins, point, own)
    some = ideal.any(dim=1)
    return Targets(
        torch.where(some, low[nearest], point), torch.where(some, high[nearest], point), some
    )


def _lines(suffix: Suffix, hidden: Tensor, rows: Tensor, neuron: int, edges: Tensor) -> Tensor:
    """Return the lines [I, K, 2] of one neuron."""
    chosen = torch.tensor([neuron], device=hidden.device)
    ((_, values),) = lower_lines(suffix, hidden, rows, chosen, edges[None])
    return values[0]


def _rivals(suffix: Suffix, hidden: Tensor, labels: Tensor, neuron: int, edges: Tensor) -> Tensor:
    """Return the lowest of the lines [I, K, 2] against each class that is not the label."""
    classes = len(suffix.affine[-1][1])
    one = torch.eye(classes, device=hidden.device)
    rows = one[labels][:, None] - one
    others = ~one.bool()[labels]
    inputs = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(others)[others]
    lines = _lines(suffix, hidden[inputs], rows[others], neuron, edges)
    return lines.unflatten(0, (len(hidden), classes - 1)).amin(dim=1)
