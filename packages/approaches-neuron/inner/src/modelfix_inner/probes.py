"""Probes: small classifiers that read the features of one depth as a class distribution."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from modelfix_core.torch import PrefixCache
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WITH_STRIDE = 2  # convolutional probes of the shallowest blocks, whose features are large


def make_probe(shape: Sequence[int], classes: int, shallow: bool) -> nn.Module:
    """Build a probe with fresh weights, drawn from torch's global generator (step 1).

    Parameters
    ----------
    shape : sequence of int
        Of one image's features: (channels, height, width), or a vector's length.
    classes : int
    shallow : bool
        Whether it is one of the two shallowest, which divide height and width by 4.

    Returns
    -------
    nn.Module
        From features [N, *shape] to logits [N, classes].
    """
    if len(shape) != 3:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
    c = shape[0]
    head = [*_convolutions((c, c), 1)]
    if shallow:
        head += _convolutions((c, 2 * c, 2 * c), 3, stride=2)
        head += _convolutions((2 * c, 4 * c, 4 * c), 3)
        c = 4 * c
    else:
        head += [*_convolutions((c, c), 3), *_convolutions((c, c), 3)]
    return nn.Sequential(*head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


def _convolutions(widths: Sequence[int], kernel: int, stride: int = 1) -> list[nn.Module]:
    """Return convolutions one behind the other, then BatchNorm and ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(a, b, kernel, stride, padding=kernel // 2) for a, b in pairwise(widths)
    ]
    return [*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU()]


def train_probes(
    probes: Sequence[nn.Module],
    features: PrefixCache,
    y: Tensor,
    rng: np.random.Generator,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    report: Callable[[int, float], None] = lambda _epoch, _accuracy: None,
) -> list[float]:
    """Train probes on features of a frozen network and keep each one's best state (step 2).

    Parameters
    ----------
    probes : sequence of nn.Module
        Trained in place; left in evaluation mode and frozen.
    features : PrefixCache
        Of the images, one tensor per probe in the order of its names.
    y : Tensor of int64, [n]
    rng : numpy Generator
        Of the order of the images.
    epochs, learning_rate, batch_size
        Of Adam, one per probe.
    report : callable, optional
        Gets the epoch, from 1, and the mean accuracy of the probes.

    Returns
    -------
    list of float
        Each probe's best training accuracy: mean over the batches of an epoch, in [0, 1].
    """
    optimisers = [torch.optim.Adam(probe.parameters(), lr=learning_rate) for probe in probes]
    best = [-1.0] * len(probes)
    states: list[dict[str, Tensor]] = [{} for _ in probes]
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(y))
        # The statistics of a BatchNorm need two images.
        batches = [b for b in _batches(order, batch_size) if len(b) > 1]
        right = torch.zeros(len(probes), device=y.device)
        for batch in batches:
            labels = y[torch.from_numpy(batch).to(y.device)]
            inputs = features[batch].values()
            for i, (probe, optimiser, x) in enumerate(zip(probes, optimisers, inputs, strict=True)):
                probe.train()
                logits = probe(x)
                optimiser.zero_grad()
                cross_entropy(logits, labels).backward()
                optimiser.step()
                right[i] += (logits.argmax(dim=1) == labels).float().mean() / len(batches)
        for i, accuracy in enumerate(right.tolist()):
            if accuracy > best[i]:
                best[i] = accuracy
                states[i] = {k: v.clone() for k, v in probes[i].state_dict().items()}
        report(epoch, float(right.mean()))
    for probe, state in zip(probes, states, strict=True):
        probe.load_state_dict(state)
        probe.eval().requires_grad_(False)
    return best


def _batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
