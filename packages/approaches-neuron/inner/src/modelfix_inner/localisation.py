"""Localisation: which blocks read faults unlike clean inputs, and which weights keep that alive.

The authors' code routes one input at a time: two whole networks and all probes per step, gradients
of all parameters, and every parameter restored. Here the network below the layer runs once per
input, only what lies between the layer and its probe runs per step, and inputs are routed together,
each with weights of its own (``torch.func``).
"""

from collections.abc import Callable, Sequence

import torch
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.torch import PrefixCache, TorchModel
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from modelfix_inner.blocks import Block

MOST_TOGETHER = 32  # inputs routed in one call; more gain nothing
# Rough peaks in numbers: routing, product, gradient and their temporaries for each weight; values
# and gradients for each activation; a convolutional probe's activations for each feature.
PER_WEIGHT, PER_ACTIVATION, PER_FEATURE = 6, 4, 32
EPSILON = 1e-7  # in the logarithm of a block's score, as in the authors' code
MARGIN = 1e-7  # above the mean; equal values lie on neither side of it


def block_scores(clean: Sequence[Tensor], faulty: Sequence[Tensor]) -> list[float]:
    """Score blocks by the cross-entropy between mean probe outputs (step 3).

    Parameters
    ----------
    clean, faulty : sequence of Tensor, [n, K] each
        Logits of every block's probe.

    Returns
    -------
    list of float
        ``-sum_c q[c] log(p[c] + 1e-7)``, p and q being the mean softmax over clean and faulty
        inputs. Where clean inputs of all classes are mixed it is about log K for every block: a
        choice, not a measure of faults.
    """
    scores = []
    for of_clean, of_faulty in zip(clean, faulty, strict=True):
        p, q = (logits.double().softmax(dim=1).mean(dim=0) for logits in (of_clean, of_faulty))
        scores.append(float(-(q * (p + EPSILON).log()).sum()))
    return scores


class Reading(nn.Module):
    """What a block's probe reads from the values before the block's layer.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    block : Block
    probe : nn.Module

    Attributes
    ----------
    frontier : list of str
        Tensors from which the tap is computed once the layer's weights vary: the layer's input, and
        what else the nodes up to the tap need, such as a shortcut.
    """

    def __init__(self, net: TorchModel, block: Block, probe: nn.Module) -> None:
        super().__init__()
        self.net, self.block, self.probe = net, block, probe
        between = net.between([net.model.input_name], [block.tap])
        made = {net.model.input_name, *(name for step in between for name in step.outputs)}
        varied, frontier = {block.layer.output}, {block.layer.input}
        for step in between:
            if varied.intersection(step.inputs):
                varied.update(step.outputs)
                frontier.update(made.intersection(step.inputs))
        self.frontier = sorted(frontier - varied)

    @property
    def weight(self) -> Tensor:
        """The layer's weight."""
        return self.net.tensor(self.block.layer.weight)

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """Compute the probe's logits [N, K] from the tensors of the frontier, [N, ...] each."""
        known = dict(zip(self.frontier, values, strict=True))
        return self.probe(self.net.run(known, [self.block.tap])[self.block.tap])


def route(
    reading: Reading, values: Sequence[Tensor], *, steps: int, rate: float, decay: float
) -> Tensor:
    """Route inputs, each on its own (step 4).

    Parameters
    ----------
    reading : Reading
    values : sequence of Tensor, [n, ...] each
        Of its frontier.
    steps : int
    rate, decay : float
        Size of a gradient step, and what every step takes off.

    Returns
    -------
    Tensor, [n, *weight shape]
        In [0, 1]: how much of each weight is left where the probe is to read what it read before.
    """
    weight = reading.weight.detach()
    name = f"net.{reading.net.parameter_names[reading.block.layer.weight]}"
    with torch.no_grad():
        # The model's own reading, right or wrong; only the original weights decide it.
        target = reading(values).argmax(dim=1)

    def loss(effective: Tensor, values: Sequence[Tensor], target: Tensor) -> Tensor:
        logits = functional_call(reading, {name: effective}, ([v[None] for v in values],))
        return cross_entropy(logits, target[None])

    gradient = vmap(grad(loss))
    routing = weight.new_ones((len(target), *weight.shape))
    for _ in range(steps):
        slope = gradient(routing * weight, list(values), target)
        sign = routing.sign()
        routing.sub_(slope, alpha=rate).sub_(sign, alpha=decay).clamp_(0, 1)
    return routing


def hits(routing: Tensor) -> Tensor:
    """Return which weights each input marks: those above the mean (step 5).

    Parameters
    ----------
    routing : Tensor, [n, *weight shape]

    Returns
    -------
    Tensor of bool, [n, *weight shape]
        None where all are equal: a mean in float32 may fall just below its equal summands.
    """
    mean = routing.flatten(1).mean(dim=1, dtype=torch.float64)
    return routing > (mean + MARGIN).view(-1, *[1] * (routing.ndim - 1))


def count_hits(
    reading: Reading,
    x: Tensor,
    *,
    steps: int,
    rate: float,
    decay: float,
    until_full: bool = False,
    memory: int = DEFAULT_MEMORY,
    report: Callable[[int], None] = lambda _count: None,
) -> tuple[Tensor, int]:
    """Count how many inputs mark each weight.

    Parameters
    ----------
    reading : Reading
    x : Tensor, [n, C, H, W]
    steps, rate, decay
        As in `route`.
    until_full : bool
        Stop once every weight is marked: the union cannot grow any more.
    memory : int
        Bytes for the cached values and the routings in work.
    report : callable, optional
        Gets the number of inputs that were just routed.

    Returns
    -------
    counts : Tensor of int64, like the layer's weight
    routed : int
        How many inputs were routed.
    """
    cache = PrefixCache(reading.net, reading.frontier, x, memory // 2)
    size = max(1, min(MOST_TOGETHER, memory // 2 // bytes_per_input(reading, x[:1])))
    counts = torch.zeros_like(reading.weight, dtype=torch.int64)
    routed = 0
    for start in range(0, len(x), size):
        values = list(cache[slice(start, start + size)].values())
        marked = hits(route(reading, values, steps=steps, rate=rate, decay=decay))
        counts += marked.sum(dim=0)
        routed += len(marked)
        report(len(marked))
        if until_full and bool((counts > 0).all()):
            break
    return counts, routed


def bytes_per_input(reading: Reading, x: Tensor) -> int:
    """Estimate what routing one input takes at the peak, from one image [1, C, H, W]."""
    net, tap = reading.net, reading.block.tap
    between = net.between(reading.frontier, [tap])
    with torch.no_grad():
        values = net.activations(x, reading.frontier)
        made = net.run(values, [step.outputs[0] for step in between])
    activations = sum(value.numel() for value in [*values.values(), *made.values()])
    numbers = PER_WEIGHT * reading.weight.numel() + PER_ACTIVATION * activations
    return 4 * (numbers + PER_FEATURE * made[tap].numel())


def make_mask(counts: Tensor, kind: str, neurons: int) -> Tensor:
    """Return which weights are trained (step 6).

    Parameters
    ----------
    counts : Tensor of int64, any shape
        How many inputs mark each weight.
    kind : {"reference", "topk"}
        All that one input or more marks, or the `neurons` that most mark, the earlier on ties.
    neurons : int

    Returns
    -------
    Tensor of bool, same shape
    """
    if kind == "reference":
        return counts > 0
    order = counts.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros_like(counts.flatten(), dtype=torch.bool)
    mask[order[:neurons]] = True
    return mask.view_as(counts)
