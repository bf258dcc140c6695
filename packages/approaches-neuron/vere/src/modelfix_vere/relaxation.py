"""Lower bounds of a margin when one hidden neuron moves through an interval: CROWN, exactly.

A hidden vector h has one free coordinate, so a line over an interval is known by its two ends, and
so are the exact bounds of what the first affine map gives. Three ways lead to the same lines: one
for a suffix of a single affine map, where the line is the margin; one for a single layer of
piecewise linear units, whose cost does not depend on the number of pieces; and the backward pass
of CROWN for every other chain.
Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
Functions", NeurIPS 2018; the adaptive lower slope is auto_LiRPA's.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from modelfix_vere.suffix import Activation, Suffix

BLOCK = 2**19  # elements of the largest tensor of a block: the processor's caches
SMALLEST, LARGEST = 1e-12, 1e30  # divisors and quotients without overflow


@torch.no_grad()
def lower_lines(
    suffix: Suffix, hidden: Tensor, rows: Tensor, neurons: Tensor, edges: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Bound ``rows . g(h)`` from below by a line on each piece of each neuron's interval.

    Parameters
    ----------
    suffix : Suffix
        g, from D hidden values to C logits.
    hidden : Tensor of float32, [I, D]
        Values that the other neurons keep.
    rows : Tensor of float32, [I, C]
        What of the logits is bounded.
    neurons : Tensor of int64, [n]
    edges : Tensor of float32, [n, K + 1]
        Ends of K contiguous pieces of equal width for each of the neurons.

    Yields
    ------
    part : slice
        Of `neurons`; in order.
    values : Tensor of float32, [part, I, K, 2]
        The lines at both ends of each piece.
    """
    ways = {(): exact, ("Relu",): bucketed, ("LeakyRelu",): bucketed}
    way = ways.get(tuple(a.operator for a in suffix.activations), crown)
    pair = _elements(suffix, edges.shape[1] - 1) if way is crown else len(suffix.affine[0][0])
    inputs = max(1, min(len(hidden), BLOCK // pair))
    step = max(1, BLOCK // (inputs * pair))
    for start in range(0, len(neurons), step):
        part = slice(start, min(start + step, len(neurons)))
        chosen = neurons[part], edges[part]
        blocks = zip(hidden.split(inputs), rows.split(inputs), strict=True)
        yield part, torch.cat([way(suffix, h, c, *chosen) for h, c in blocks], dim=1)


def _elements(suffix: Suffix, pieces: int) -> int:
    """Return the size of the largest tensor of `crown` for one neuron and one input."""
    widths = [len(weight) for weight, _ in suffix.affine[:-1]]
    # From the third layer on, the backward pass has a matrix of its own for each piece.
    matrix = max([a * b for a, b in pairwise(widths[1:])], default=0)
    return pieces * max(2 * max(widths), matrix, matrix and widths[0] * max(widths[2:]))


def exact(suffix: Suffix, hidden: Tensor, rows: Tensor, neurons: Tensor, edges: Tensor) -> Tensor:
    """Return the margin itself at the ends of the pieces: the suffix is one affine map.

    Parameters and result are those of `lower_lines`.
    """
    slope = (rows @ suffix.affine[0][0]).T[neurons]
    moved = edges[:, None] - hidden.T[neurons][..., None]
    margin = (rows * suffix(hidden)).sum(dim=1)
    return _pairs(margin[:, None] + slope[..., None] * moved)


def bucketed(
    suffix: Suffix, hidden: Tensor, rows: Tensor, neurons: Tensor, edges: Tensor
) -> Tensor:
    """Return the lines of a suffix affine, Relu or LeakyRelu, affine; free of K.

    Along the neuron's value a unit crosses zero at most once. The piece of that crossing point is
    the only one in which the unit is unstable, and if it counts positively the line differs from
    the margin there, at the nearer end of the piece alone, by the unit's value continued to that
    end. So crossing points are sorted into halves of pieces, where slopes and intercepts add up.

    Parameters and result are those of `lower_lines`.
    """
    (first, bias), (last, offset) = suffix.affine
    leak = suffix.activations[0].leak
    pieces = edges.shape[1] - 1
    z = hidden @ first.T + bias  # [I, H]
    q = rows @ last
    own = hidden.T[neurons]  # [n, I]
    w = first.T[neurons]  # [n, H]
    moved = edges[:, None] - own[..., None]  # [n, I, K + 1]

    # What is linear: the leak, and units that are active below the interval or read nothing.
    kinked = (1 - leak) * q
    falling, still = ((w < 0).to(w.dtype), (w == 0).to(w.dtype))
    slope = leak * w @ q.T + (w * falling) @ kinked.T
    start = falling @ (kinked * z).T + still @ (kinked * z.relu()).T
    start += leak * (q * z).sum(dim=1) + rows @ offset

    # Bins: below the interval, halves of pieces, above it; apart for units that count positively.
    bins = 2 * pieces + 2
    half = ((edges[:, -1] - edges[:, 0]) / (2 * pieces)).clamp(min=SMALLEST)[:, None]
    scale = (-1 / (torch.where(w == 0, 1, w) * half)).clamp_(-LARGEST, LARGEST)
    place = torch.addcmul(((own - edges[:, :1]) / half + 1)[..., None], z, scale[:, None])
    place.floor_().clamp_(0, bins - 1).add_(bins * (kinked > 0))
    index = place.long()
    shape = (*own.shape, 2 * bins)
    slopes = w.new_zeros(shape).scatter_add_(2, index, w.abs()[:, None] * kinked)
    starts = w.new_zeros(shape).scatter_add_(2, index, w.sign()[:, None] * (kinked * z))
    slopes, starts = slopes.unflatten(2, (2, bins)), starts.unflatten(2, (2, bins))

    # At an edge, the units below it are active if they rise, and no more if they fall.
    slope = slope[..., None] + slopes.sum(dim=2).cumsum(dim=2)[..., ::2]
    start = start[..., None] + starts.sum(dim=2).cumsum(dim=2)[..., ::2]
    lacking_slope, lacking_start = (
        s[:, :, 1, 1:-1].unflatten(2, (-1, 2)) for s in (slopes, starts)
    )
    lack = lacking_start + lacking_slope * _pairs(moved)
    lack[..., 0].neg_()
    return _pairs(start + slope * moved) - lack.clamp_(min=0)


def crown(suffix: Suffix, hidden: Tensor, rows: Tensor, neurons: Tensor, edges: Tensor) -> Tensor:
    """Return the lines of any suffix by CROWN's backward pass, intermediate bounds included.

    Parameters and result are those of `lower_lines`.
    """
    first, bias = suffix.affine[0]
    moved = edges[:, None] - hidden.T[neurons][..., None]
    z = (hidden @ first.T + bias)[:, None] + moved[..., None] * first.T[neurons][:, None, None]
    ends = torch.stack([z[:, :, :-1], z[:, :, 1:]], dim=3)  # [n, I, K, 2, H]
    inner = ends.flatten(0, 2)
    relaxed: list[Relaxed] = []
    low, high = inner.amin(dim=1), inner.amax(dim=1)
    for activation, (weight, bias) in zip(suffix.activations, suffix.affine[1:], strict=True):
        relaxed.append(relax(activation, low, high))
        if len(relaxed) < len(suffix.activations):
            low = _backward(suffix, relaxed, inner, weight, bias).amin(dim=1)
            high = -_backward(suffix, relaxed, inner, -weight, -bias).amin(dim=1)
    weight, bias = suffix.affine[-1]
    count, pieces = len(neurons), edges.shape[1] - 1
    repeat = (count, -1, pieces, -1)
    q = (rows @ weight)[None, :, None].expand(repeat).flatten(0, 2)
    constant = (rows @ bias)[None, :, None, None].expand(repeat).flatten(0, 2)
    lines = _backward(suffix, relaxed, inner, q[:, None], constant)
    return lines.reshape(count, len(hidden), pieces, 2)


class Relaxed(NamedTuple):
    """Lines below and above an activation function on an interval of each unit, [B, H] each."""

    low_slope: Tensor
    low_start: Tensor
    high_slope: Tensor
    high_start: Tensor


def relax(activation: Activation, low: Tensor, high: Tensor) -> Relaxed:
    """Bound an activation function by lines on intervals.

    Parameters
    ----------
    activation : Activation
    low, high : Tensor, [B, H]
        Ends of the intervals.

    Returns
    -------
    Relaxed
        For Relu and LeakyRelu the chord above and, below, the steeper side where it is the longer
        one; for Sigmoid the two parallels of the chord that touch it.
    """
    if activation.operator == "Sigmoid":
        return _sigmoid(low, high)
    leak = activation.leak
    up, down = high.clamp(min=0), low.clamp(max=0)
    share = up / (up - down).clamp(min=SMALLEST)
    below = torch.where(share > 0.5, 1.0, leak)
    start = -(1 - leak) * share * down
    return Relaxed(below, torch.zeros_like(start), leak + (1 - leak) * share, start)


def _sigmoid(low: Tensor, high: Tensor) -> Relaxed:
    middle = (low + high) / 2
    steep = middle.sigmoid() * (1 - middle.sigmoid())
    width = high - low
    chord = (high.sigmoid() - low.sigmoid()) / width.clamp(min=SMALLEST)
    slope = torch.where(width > 1e-3, chord, steep).clamp(min=SMALLEST)
    # The curve is parallel to a line of that slope where s(1 - s) equals it.
    touching = torch.logit((1 + (1 - 4 * slope).clamp(min=0).sqrt()) / 2, eps=1e-7)
    places = torch.stack([low, high, *(torch.clamp(t, low, high) for t in (touching, -touching))])
    starts = places.sigmoid() - slope * places
    return Relaxed(slope, starts.amin(dim=0), slope, starts.amax(dim=0))


def _backward(
    suffix: Suffix, relaxed: list[Relaxed], ends: Tensor, rows: Tensor, constant: Tensor
) -> Tensor:
    """Bound ``rows . a + constant`` from below, a being the output of the last relaxed activation.

    Parameters
    ----------
    suffix : Suffix
    relaxed : list of Relaxed
        Of the first activation functions, in order.
    ends : Tensor, [B, 2, H]
        What the first affine map gives at both ends of the interval.
    rows : Tensor, [R, H'] or [B, R, H']
    constant : Tensor, [R] or [B, R]

    Returns
    -------
    Tensor, [B, 2, R]
        The lower line at both ends.
    """
    for position in range(len(relaxed) - 1, 0, -1):
        lines = relaxed[position]
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        constant = constant + _dot(positive, lines.low_start) + _dot(negative, lines.high_start)
        rows = positive * lines.low_slope[:, None] + negative * lines.high_slope[:, None]
        weight, bias = suffix.affine[position]
        constant = constant + rows @ bias
        rows = rows @ weight
    below, low_start, above, high_start = (line[:, None] for line in relaxed[0])
    values = _dot(rows.clamp(min=0), below * ends + low_start)
    values += _dot(rows.clamp(max=0), above * ends + high_start)
    return values + (constant if constant.ndim == 1 else constant[:, None])


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """Multiply rows [R, H] or [B, R, H] with values [B, H] or [B, 2, H]."""
    if rows.ndim == 2:
        return values @ rows.T
    if values.ndim == 2:
        return (rows @ values[..., None])[..., 0]
    return values @ rows.mT


def _pairs(at_edges: Tensor) -> Tensor:
    """Give each piece the values at both of its edges: [..., K + 1] to [..., K, 2]."""
    return torch.stack([at_edges[..., :-1], at_edges[..., 1:]], dim=-1)


def _halves(sums: Tensor) -> Tensor:
    """Give each piece the sums of its halves, of units that count positively: to [..., K, 2]."""
    return sums[:, :, 1, 1:-1].unflatten(2, (-1, 2))
