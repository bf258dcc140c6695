"""Fitness: how many samples each variant gets right, with no layer run more often than needed."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from math import prod

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.population import DEFAULT_MEMORY, Patch
from modelfix_core.torch import PrefixCache, TorchModel, operators
from modelfix_core.torch.bridge import Step
from modelfix_core.torch.population import UNITWISE
from torch import Tensor
from torch.nn import functional

# Losses are compared to what float32 can tell apart, so that batching does not decide ties.
LOSS_DIGITS = 6
SCORED = 2**18  # logits at a time
FEW_CHANNELS = 3  # images, from which oneDNN computes few units slowly


@dataclass(frozen=True)
class Stage:
    """A part of the network with patched layers, between two tensors through which all passes.

    Attributes
    ----------
    patches : sequence of Patch
    columns : slice
        Where the values of these patches stand in a variant.
    source, target : str
        Tensors at its begin and end.
    steps : sequence of Step
        Where the stage is one patched convolution and operators that treat its units apart:
        these, in order. Empty otherwise.
    """

    patches: Sequence[Patch]
    columns: slice
    source: str
    target: str
    steps: Sequence[Step]


def stages(net: TorchModel, patches: Sequence[Patch]) -> list[Stage]:
    """Divide the network before patched layers, wherever one tensor alone leads to the logits.

    Dense layers in a row stay together: they cost too little to be worth remembering.

    Parameters
    ----------
    net : TorchModel
    patches : sequence of Patch
        One for each layer in graph order.
    """
    layers = [net.model.layer(patch.layer) for patch in patches]
    outputs = [layer.output for layer in layers]
    behind_dense = [False, *(layer.kind == "dense" for layer in layers)]
    cuts = [
        k
        for k, layer in enumerate(layers)
        if not behind_dense[k] and _divides(net, layer.input, outputs[:k])
    ]
    cuts = cuts if 0 in cuts else [0, *cuts]
    sources = [layers[k].input for k in cuts]
    if not _divides(net, sources[0], []):
        sources[0] = net.model.input_name
    tensors = [*sources, net.model.output_name]
    ends = np.cumsum([0] + [len(patch.index) for patch in patches])
    found = []
    for (begin, end), (source, target) in zip(
        pairwise([*cuts, len(patches)]), pairwise(tensors), strict=True
    ):
        steps = net.between([source], [target])
        apart = end == begin + 1 and _treats_units_apart(net, steps, layers[begin].output)
        columns = slice(int(ends[begin]), int(ends[end]))
        found.append(Stage(patches[begin:end], columns, source, target, steps if apart else ()))
    return found


def _divides(net: TorchModel, tensor: str, before: Sequence[str]) -> bool:
    """Return whether the logits follow from `tensor` alone, without computing those `before`."""
    try:
        steps = net.between([tensor], [net.model.output_name])
    except ModelfixError:
        return False
    return not {name for step in steps for name in step.outputs}.intersection(before)


def _treats_units_apart(net: TorchModel, steps: Sequence[Step], output: str) -> bool:
    first, *others = steps
    chained = all(b.inputs[0] == a.outputs[0] for a, b in pairwise(steps))
    apart = all(step.kind in UNITWISE or step.kind == "Flatten" for step in others)
    return (
        first.kind == "Conv"
        and first.outputs[0] == output
        and chained
        and apart
        and operators.core(net.operators[first.operator]).groups == 1
    )


class Fitness:
    """Scores variants; those that share the weights of their front layers share their outputs.

    Selection lets few ancestors survive and a mutation changes a few weights only, so that most
    variants of a generation agree up to some layer with each other, and with variants before them.
    What a part of the network makes of the samples is computed once for all that agree up to its
    end, from what the part before it made; and where only some units of its layer differ from the
    original's, for these alone. Variants met before are looked up.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode with the original weights; has them again after each call.
    patches : sequence of Patch
        One for each layer in graph order.
    x : Split
        The fitness data.
    memory : int
        Bytes for what is remembered of the network's parts and for what is computed at a time.
    progress : callable
        Called now and then.
    """

    def __init__(
        self,
        net: TorchModel,
        patches: Sequence[Patch],
        x: Split,
        memory: int = DEFAULT_MEMORY,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._net = net
        self._stages = stages(net, patches)
        self._y = torch.tensor(np.asarray(x.y), dtype=torch.int64, device=net.device)
        self._progress = progress
        self._live: dict[str, tuple[Tensor, Tensor]] = {}
        self._units: dict[str, np.ndarray] = {}
        for patch in patches:
            weight = net.tensor(net.model.layer(patch.layer).weight).detach()
            index = torch.from_numpy(patch.index).to(net.device)
            self._live[patch.layer] = weight.view(-1), index
            self._units[patch.layer] = patch.index // prod(weight.shape[1:])
        self._restored = torch.cat([weight[index] for weight, index in self._live.values()])
        self._original = self._restored.cpu().numpy()
        self._begin = PrefixCache(net, [self._stages[0].source], x, memory // 4)
        # Whatever the network keeps at a time is less than all of its tensors together.
        everything = [name for step in net.steps for name in step.outputs[:1]]
        size = PrefixCache(net, everything, x, memory=0).bytes_per_image
        self._samples = max(1, memory // (4 * size))
        self._memory = memory // 2
        self._known: dict[bytes, np.ndarray] = {}
        self._made: OrderedDict[tuple[int, int, bytes], Tensor] = OrderedDict()
        self._held = 0  # bytes of what was made

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return right answers and negated mean loss, float64 [P, 2], of variants [P, K]."""
        names = [blake2b(row.tobytes(), digest_size=16).digest() for row in values]
        new = {name: row for row, name in enumerate(names) if name not in self._known}
        if new:
            self._known.update(zip(new, self._score(values[list(new.values())]), strict=True))
        return np.stack([self._known[name] for name in names])

    @torch.no_grad()
    def _score(self, values: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(values, dtype=np.float32)
        # Variants that agree in their front layers stand side by side.
        order = sorted(range(len(values)), key=lambda row: values[row].tobytes())
        fitness = np.zeros((len(values), 2))
        for start in range(0, len(self._y), self._samples):
            part = slice(start, min(start + self._samples, len(self._y)))
            together = max(1, SCORED // ((part.stop - part.start) * self._net.model.num_classes))
            for rows in (order[i : i + together] for i in range(0, len(order), together)):
                last = len(self._stages) - 1
                logits = torch.stack([self._output(last, values[row], part) for row in rows])
                fitness[rows] += self._scored(logits, self._y[part])
                self._progress()
        fitness[:, 1] = -np.round(fitness[:, 1] / len(self._y), LOSS_DIGITS)
        return fitness

    def _scored(self, logits: Tensor, y: Tensor) -> np.ndarray:
        """Return right answers and summed loss, [p, 2], of logits [p, m, C]."""
        labels = y.expand(len(logits), -1)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        right = (logits.argmax(dim=2) == labels).sum(dim=1)
        summed = loss.view_as(labels).double().sum(dim=1)
        return torch.stack([right.double(), summed], dim=1).cpu().numpy()

    def _output(self, number: int, variant: np.ndarray, part: slice) -> Tensor:
        """Return what a stage gives for the samples of `part`, computed or remembered."""
        if number < 0:
            return self._begin[part][self._stages[0].source]
        key = number, part.start, variant[: self._stages[number].columns.stop].tobytes()
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        result = self._computed(number, variant, part)
        self._remember(key, result)
        return result

    def _remember(self, key: tuple[int, int, bytes], tensor: Tensor) -> None:
        self._made[key] = tensor
        self._held += tensor.nbytes
        while self._held > self._memory:
            self._held -= self._made.popitem(last=False)[1].nbytes

    def _computed(self, number: int, variant: np.ndarray, part: slice) -> Tensor:
        stage = self._stages[number]
        inputs = self._output(number - 1, variant, part)
        units = self._moved_units(stage, variant)
        base = None
        if len(units):
            unmoved = variant.copy()
            unmoved[stage.columns] = self._original[stage.columns]
            base = self._output(number, unmoved, part)
        self._set(stage, torch.from_numpy(variant).to(self._net.device))
        try:
            if base is None:
                return self._net.run({stage.source: inputs}, [stage.target])[stage.target]
            return self._replaced(stage, inputs, base, units)
        finally:
            self._set(stage, self._restored)

    def _set(self, stage: Stage, variant: Tensor) -> None:
        """Give the stage's patched weights their values of the variant."""
        begin = stage.columns.start
        for patch in stage.patches:
            weight, index = self._live[patch.layer]
            weight[index] = variant[begin : begin + len(index)]
            begin += len(index)

    def _moved_units(self, stage: Stage, variant: np.ndarray) -> np.ndarray:
        """Return the units of the stage's layer that differ, if they are few and stand alone."""
        if not stage.steps:
            return np.empty(0, dtype=np.int64)
        (patch,) = stage.patches
        differs = variant[stage.columns] != self._original[stage.columns]
        units = np.unique(self._units[patch.layer][differs])
        count = self._net.tensor(stage.steps[0].weights[0]).shape[0]
        return units[: len(units) if 2 * len(units) <= count else 0]

    def _replaced(self, stage: Stage, inputs: Tensor, base: Tensor, units: np.ndarray) -> Tensor:
        """Return `base` with the outputs of some units of the stage's layer computed anew."""
        chosen = torch.from_numpy(units).to(inputs.device)
        values = _units_of(self._net, stage.steps[0], inputs, chosen)
        for step in stage.steps[1:]:
            if step.kind != "Flatten":
                known = {step.inputs[0]: values}
                self._net.apply(step, known)
                values = known[step.outputs[0]]
        result = base.clone()
        size = base[0].numel() * len(units) // values[0].numel()
        result.view(len(base), size, -1)[:, chosen] = values.reshape(len(base), len(units), -1)
        return result


def _units_of(net: TorchModel, step: Step, inputs: Tensor, units: Tensor) -> Tensor:
    """Run some units of a convolution."""
    operator = net.operators[step.operator]
    conv = operators.core(operator)
    weight, bias = conv.weight[units], None if conv.bias is None else conv.bias[units]
    padded = inputs if conv is operator else operator[0](inputs)
    with _onednn(conv.in_channels > FEW_CHANNELS):
        return functional.conv2d(padded, weight, bias, conv.stride, conv.padding, conv.dilation)


@contextmanager
def _onednn(use: bool) -> Iterator[None]:
    """Switch oneDNN off where it is several times slower than PyTorch's own convolution."""
    before = torch.backends.mkldnn.set_flags(use and torch.backends.mkldnn.enabled)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before[0])


def patched(model: Model, patches: Sequence[Patch], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the weights of the patched layers with `values`, [D], in place of the original's."""
    changed = {}
    ends = np.cumsum([len(patch.index) for patch in patches])
    for patch, part in zip(patches, np.split(values, ends), strict=False):
        name = model.layer(patch.layer).weight
        weight = model.weights[name].copy()
        weight.flat[patch.index] = part
        changed[name] = weight
    return changed
