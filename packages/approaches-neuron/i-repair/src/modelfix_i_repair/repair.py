"""Repair: masked RMSprop steps on the cross-entropy of both sets, from one forward pass each.

A straightforward implementation runs the general set, the remaining faults and both sets together
through the network, forward and backward, in every iteration. All three gradients are linear in a
seed at the logits, so one forward pass is enough: each row is given the seeds that concern it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelfix_i_repair.localisation import cross_entropy_seed, general_seed, masks

# torch's own constants; other frameworks' RMSprop differs, and with it the algorithm.
ALPHA = 0.99
EPSILON = 1e-8


class Samples(NamedTuple):
    """Inputs and labels on the device of the module.

    Attributes
    ----------
    x : Tensor, [n, C, H, W]
    y : Tensor of int64, [n]
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Gradients:
    """What one iteration needs, one tensor per parameter.

    Attributes
    ----------
    general : list of Tensor
        Influence on the general set: gradient of the mean of ``sum |z|`` (step 4).
    specific : list of Tensor
        Influence on the remaining faults: gradient of their mean cross-entropy (step 5).
    step : list of Tensor
        Gradient of the mean cross-entropy over both sets, whole (step 7).
    wrong : Tensor of bool, [|S|]
        Which samples of the specific set remain to be repaired.
    """

    general: list[Tensor]
    specific: list[Tensor]
    step: list[Tensor]
    wrong: Tensor


@dataclass(frozen=True)
class Step:
    """One iteration of the repair.

    Attributes
    ----------
    number : int
        From 1.
    remaining : int
        Specific samples that were still wrong before the step.
    unlocked : float
        Share of the parameters that the step could move.
    """

    number: int
    remaining: int
    unlocked: float


class _Sum:
    """A running sum of vector-Jacobian products over micro-batches."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.total = [torch.zeros_like(parameter) for parameter in parameters]

    def add(self, logits: Tensor, seed: Tensor, keep: bool = False) -> None:
        products = torch.autograd.grad(
            logits, self.parameters, seed, retain_graph=keep, allow_unused=True
        )
        for total, product in zip(self.total, products, strict=True):
            if product is not None:
                total += product


def gradients(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    general: Samples,
    specific: Samples,
    batch_size: int,
    expected: Tensor | None = None,
) -> Gradients:
    """Compute both influences and the step's gradient from one forward pass over both sets.

    Parameters
    ----------
    module : nn.Module
        Maps images to logits; in eval mode, so that no BatchNorm statistic moves.
    parameters : sequence of nn.Parameter
        Those that may be unlocked.
    general, specific : Samples
        Neither is empty.
    batch_size : int
        Largest number of inputs in one pass; the sums are exact whatever it is.
    expected : Tensor of bool, [|S|], optional
        Which specific samples were wrong last time. A micro-batch whose samples are all wrong or
        all right needs one product instead of two, so they are passed through apart; the result
        does not depend on it.

    Returns
    -------
    Gradients
    """
    influence, faults, others = (_Sum(parameters) for _ in range(3))
    wrong = torch.empty_like(specific.y, dtype=torch.bool)
    expected = torch.ones_like(wrong) if expected is None else expected
    for rows in [*_batches(expected, batch_size), *_batches(~expected, batch_size)]:
        y = specific.y[rows]
        logits = module(specific.x[rows])
        seed = cross_entropy_seed(logits, y)
        wrong[rows] = still = logits.argmax(dim=1) != y
        some = int(still.sum())
        if some:
            faults.add(logits, seed * still[:, None], keep=some < len(y))
        if some < len(y):
            others.add(logits, seed * ~still[:, None])
    for x, y in _in_batches(general, batch_size):
        logits = module(x)
        influence.add(logits, general_seed(logits), keep=True)
        others.add(logits, cross_entropy_seed(logits, y))
    return _means(influence, faults, others, wrong, len(general.y))


def _batches(chosen: Tensor, size: int) -> Iterator[Tensor]:
    positions = chosen.nonzero()[:, 0]
    return (positions[start : start + size] for start in range(0, len(positions), size))


def _means(influence: _Sum, faults: _Sum, others: _Sum, wrong: Tensor, general: int) -> Gradients:
    remaining = max(int(wrong.sum()), 1)
    both = general + len(wrong)
    return Gradients(
        [total / general for total in influence.total],
        [total / remaining for total in faults.total],
        [(f + o) / both for f, o in zip(faults.total, others.total, strict=True)],
        wrong,
    )


def dropped_out_step(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    general: Samples,
    specific: Samples,
    batch_size: int,
    seed: int,
) -> list[Tensor]:
    """Compute the step's gradient with dropout at work, in a pass of its own (step 7).

    Parameters
    ----------
    module : nn.Module
        In eval mode, also afterwards; only its dropout layers are switched for the pass.
    parameters, general, specific, batch_size
        As in `gradients`.
    seed : int
        Of the dropped units; torch's global generator is left as it was.

    Returns
    -------
    list of Tensor
        Gradient of the mean cross-entropy over both sets.
    """
    both = _Sum(parameters)
    device = general.x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for dropout in _dropouts(module):
            dropout.train()
        try:
            for x, y in [*_in_batches(general, batch_size), *_in_batches(specific, batch_size)]:
                logits = module(x)
                both.add(logits, cross_entropy_seed(logits, y))
        finally:
            for dropout in _dropouts(module):
                dropout.eval()
    return [total / (len(general.y) + len(specific.y)) for total in both.total]


def _dropouts(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Dropout) and part.p > 0]


def _in_batches(samples: Samples, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(samples.x.split(size), samples.y.split(size), strict=True)


def repair(
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    general: Samples,
    specific: Samples,
    *,
    gamma: float,
    learning_rate: float,
    iterations: int,
    batch_size: int = 256,
    seed: int = 0,
) -> Iterator[Step]:
    """Repair in place until all specific samples are right or the iterations end (steps 3 to 9).

    Parameters
    ----------
    module : nn.Module
        Maps images to logits; in eval mode.
    parameters : sequence of nn.Parameter
        Weights and biases that may move; everything else in the module stays as it is.
    general, specific : Samples
    gamma : float
        Weight of the general influence, 0 or more.
    learning_rate : float
    iterations : int
        Largest number of steps.
    batch_size : int
        Largest number of inputs in one pass.
    seed : int
        Of dropout, where the module has any.

    Yields
    ------
    Step
        After each step, with the module changed.
    """
    if not len(specific.y):
        return
    optimiser = torch.optim.RMSprop(
        parameters, lr=learning_rate, alpha=ALPHA, eps=EPSILON, foreach=True
    )
    count = sum(parameter.numel() for parameter in parameters)
    dropout = bool(_dropouts(module))
    wrong = None
    for number in range(1, iterations + 1):
        found = gradients(module, parameters, general, specific, batch_size, wrong)
        wrong = found.wrong
        remaining = int(wrong.sum())
        if not remaining:
            return
        unlocked = masks(found.specific, found.general, gamma)
        step = found.step
        if dropout:
            sets = (general, specific)
            step = dropped_out_step(module, parameters, *sets, batch_size, seed + number)
        for parameter, gradient, mask in zip(parameters, step, unlocked, strict=True):
            parameter.grad = gradient * mask
        optimiser.step()
        yield Step(number, remaining, sum(int(mask.sum()) for mask in unlocked) / count)
