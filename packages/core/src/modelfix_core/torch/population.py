"""Population evaluation: many weight patches of one or few layers scored from one cache.

Only what a patch changes is computed per candidate. An edited layer's output differs from the
original's in the touched units alone; as long as the operators that follow treat units apart
(activations, pooling, BatchNorm, concatenation, residual addition) only these units are carried
along. The next dense or convolutional layer takes their difference to the original values, and
from there on the candidates are folded into the batch. All of it is exact up to rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.population import DEFAULT_MEMORY, Patch, Scores
from modelfix_core.torch import operators
from modelfix_core.torch.access import Images, PrefixCache, images
from modelfix_core.torch.bridge import Step, TorchModel

# Chunks beyond these sizes gain nothing more: the processor's caches, a GPU's launch overhead.
WORKING_MEMORY = {"cpu": 32 * 1024**2, "cuda": 1024**3}

# Operators that map each unit (axis 1) on its own, whatever the number of units.
UNITWISE = {
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
    *("Gelu", "Softplus", "Softsign", "Mish", "Clip", "Identity", "Dropout", "Neg", "Abs", "Exp"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
}
LINEAR = {"Gemm", "Conv"}


@dataclass(frozen=True)
class Varied:
    """A tensor of which each of P candidates has its own version.

    Attributes
    ----------
    values : Tensor, [P, n, U, ...]
        The units that differ from the original's.
    units : Tensor of int64, [U], or None
        Which units these are; None where all differ.
    """

    values: Tensor
    units: Tensor | None = None

    @property
    def folded(self) -> Tensor:
        """The values with the candidates in the batch, [P * n, U, ...]."""
        return self.values.reshape(-1, *self.values.shape[2:])

    def like(self, folded: Tensor, units: Tensor | None) -> "Varied":
        """Return folded values of the same candidates and images as a varied tensor."""
        return Varied(folded.reshape(*self.values.shape[:2], *folded.shape[1:]), units)


@dataclass(frozen=True)
class Edit:
    """The patched weights of one layer.

    Attributes
    ----------
    step : Step
        The layer.
    rows, units : Tensor of int64, [R] and [U]
        The input and output units that the patched weights join.
    place : tuple of Tensor of int64, [D] each
        Where each weight stands in the block of changes: (row, unit) of a dense layer, (unit, row,
        height, width) of a convolution.
    shape : tuple of int
        Of that block.
    original : Tensor, [D]
        The weights before the patch.
    columns : Tensor of int64, [D]
        Where these weights stand in the candidates' values.
    """

    step: Step
    rows: Tensor
    units: Tensor
    place: tuple[Tensor, ...]
    shape: tuple[int, ...]
    original: Tensor
    columns: Tensor

    def changes(self, values: Tensor) -> Tensor:
        """Return the difference to the original weights, [P, *shape], of values [P, D]."""
        blocks = values.new_zeros(len(values), *self.shape)
        blocks[(slice(None), *self.place)] = values[:, self.columns] - self.original
        return blocks


class Population:
    """Scores candidates that differ in a few weights, without running the whole network for each.

    The network's weights are read when the object is made; change them and make a new one.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    patches : sequence of Patch
        Weights of dense layers and convolutions; a candidate's values follow this order.
    x : Split, ndarray or Tensor, [n, C, H, W]
    y : ndarray of int, [n], optional
        Labels; default those of the split.
    memory : int
        Bytes for the cached tensors and the chunk in work, the operators' own workspace aside.

    Attributes
    ----------
    dimensions : int
        Number D of patched weights.
    bytes_per_pair : int
        What one candidate on one image takes at the peak of a chunk.
    """

    def __init__(
        self,
        net: TorchModel,
        patches: Sequence[Patch],
        x: Images,
        y: np.ndarray | Tensor | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        if net.training:
            raise ModelfixError("population evaluation needs the network in evaluation mode.")
        if y is None:
            if not isinstance(x, Split):
                raise ModelfixError("population evaluation needs labels y beside images.")
            y = x.y
        self.net = net
        self.device = net.device
        # A copy: labels of prepared subjects are memory-mapped, and tensors must be writable.
        self.y = torch.as_tensor(np.array(y), dtype=torch.int64).to(self.device)
        self.dimensions = sum(len(patch.index) for patch in patches)
        self._edits = {edit.step.outputs[0]: edit for edit in _edits(net, patches)}
        with torch.no_grad():
            plan = _Plan(net, self._edits, images(x, slice(0, 1), self.device))
            self._constants = net.run({}, plan.constant) if plan.constant else {}
        self._steps, self._units, self._differences = plan.steps, plan.units, plan.differences
        self.bytes_per_pair = 4 * plan.elements
        self._cache = PrefixCache(net, plan.base, x, memory // 2)
        limit = WORKING_MEMORY.get(self.device.type, WORKING_MEMORY["cuda"])
        self._pairs = max(1, min(memory // 2, limit) // self.bytes_per_pair)
        # Original tensors that are not held are computed for each chunk of images.
        self._images = max(1, memory // 2 // self._cache.bytes_per_pass)

    def evaluate(self, values: np.ndarray | Tensor, part: slice = slice(None)) -> Scores:
        """Score candidates.

        Parameters
        ----------
        values : ndarray or Tensor, [P, D]
            The patched weights of each candidate.
        part : slice, optional
            Only these images.

        Returns
        -------
        Scores
            Of P candidates on the images of `part`.
        """
        start, count = self._range(part)
        right = torch.empty((len(values), count), dtype=torch.bool)
        loss = torch.empty((len(values), count))
        for candidates, chunk, output, base in self._chunks(values, part):
            y = self.y[chunk]
            score = _score if output.units is None else _score_touched
            place = candidates, slice(chunk.start - start, chunk.stop - start)
            right[place], loss[place] = (part.cpu() for part in score(output, base, y))
        return Scores(right.numpy(), loss.numpy())

    def logits(self, values: np.ndarray | Tensor, part: slice = slice(None)) -> np.ndarray:
        """Compute the logits [P, n, K] of candidates [P, D] on the images of `part`."""
        start, count = self._range(part)
        logits = torch.empty((len(values), count, self.net.model.num_classes))
        for candidates, chunk, output, base in self._chunks(values, part):
            place = candidates, slice(chunk.start - start, chunk.stop - start)
            logits[place] = _all_units(output, base).cpu()
        return logits.numpy()

    def _range(self, part: slice) -> tuple[int, int]:
        start, stop, _ = part.indices(len(self.y))
        return start, max(0, stop - start)

    @torch.inference_mode()
    def _chunks(self, values, part):
        values = torch.as_tensor(values, dtype=torch.float32).to(self.device)
        if values.ndim != 2 or values.shape[1] != self.dimensions:
            raise ModelfixError(
                f"candidates have shape {list(values.shape)}; expected [P, {self.dimensions}], one "
                "value per patched weight."
            )
        first, count = self._range(part)
        # Prefer whole populations per chunk of images, but not at the price of tiny batches.
        size = min(max(count, 1), max(self._pairs // max(len(values), 1), min(self._pairs, 32)))
        size = size if self._cache.held else min(size, self._images)
        group = max(1, self._pairs // size)
        changes = {name: edit.changes(values) for name, edit in self._edits.items()}
        output = self.net.model.output_name
        for start in range(first, first + count, size):
            chunk = slice(start, min(start + size, first + count))
            base = self._cache[chunk] | self._constants
            for begin in range(0, len(values), group):
                candidates = slice(begin, min(begin + group, len(values)))
                chosen = {name: block[candidates] for name, block in changes.items()}
                yield candidates, chunk, self._run(base, chosen), base.get(output)

    def _run(self, base: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> Varied:
        varied: dict[str, Varied] = {}
        for step, finished in self._steps:
            self._advance(step, base, varied, changes)
            for name in finished:
                del varied[name]
        return varied[self.net.model.output_name]

    def _advance(self, step, base, varied, changes) -> None:
        """Run one step as the plan says: on a difference, on the units that differ, or on all."""
        name = step.outputs[0]
        edit = self._edits.get(name)
        source = varied.get(step.inputs[0])
        if edit is not None and source is None:
            units = edit.units
            moved = self._moved(edit, base[step.inputs[0]][None], changes[name])
            varied[name] = Varied(moved.add_(base[name][:, units]), units)
            return
        if name in self._differences:
            delta = source.values - base[step.inputs[0]][:, source.units]
            result = self._linear(step, Varied(delta, source.units))
            result.values.add_(base[name])
            varied[name] = result
        elif self._units[name] is not None:
            varied[name] = self._apart(step, base, varied)
        else:
            self._whole(step, base, varied)
        if edit is not None:
            everything = _all_units(source, base.get(step.inputs[0]))
            moved = self._moved(edit, everything, changes[name])
            varied[name].values[:, :, edit.units] += moved

    def _moved(self, edit: Edit, inputs: Tensor, changes: Tensor) -> Tensor:
        """Return by how much the touched units move, [P, n, U, ...].

        `inputs` are [1, n, ...] where all candidates share them, else [P, n, ...].
        """
        rows = inputs[:, :, edit.rows]
        if edit.step.kind == "Gemm":
            return torch.matmul(rows, changes)
        count, units = changes.shape[:2]
        groups = len(rows)
        # The candidates' kernels side by side as output channels of one convolution.
        stacked = rows.transpose(0, 1).flatten(1, 2)
        moved = self._convolve(edit.step, stacked, changes.flatten(0, 1), groups)
        return moved.unflatten(1, (count, units)).transpose(0, 1).contiguous()

    def _linear(self, step: Step, delta: Varied) -> Varied:
        """Apply a layer without its bias to a difference."""
        weight = self.net.tensor(step.weights[0])[:, delta.units]
        if step.kind == "Gemm":
            return delta.like(functional.linear(delta.folded, weight), None)
        return delta.like(self._convolve(step, delta.folded, weight), None)

    def _convolve(self, step: Step, inputs: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        operator = self.net.operators[step.operator]
        conv = operators.core(operator)
        if conv is not operator:
            inputs = operator[0](inputs)
        return functional.conv2d(
            inputs, kernel, None, conv.stride, conv.padding, conv.dilation, groups
        )

    def _apart(self, step, base, varied) -> Varied:
        """Run an operator that treats units apart on the units that differ."""
        name = step.outputs[0]
        units = self._units[name]
        if step.kind == "Concat":
            return Varied(
                torch.cat([varied[n].values for n in step.inputs if n in varied], 2), units
            )
        source = next(varied[n] for n in step.inputs if n in varied)
        if step.kind == "Add":
            (other,) = (n for n in step.inputs if n not in varied)
            return Varied(source.values + base[other][:, units], units)
        if step.kind == "Flatten":
            return Varied(source.values.flatten(2), units)
        if step.kind == "BatchNormalization":
            norm = operators.core(self.net.operators[step.operator])
            mean, variance = norm.running_mean[units], norm.running_var[units]
            result = functional.batch_norm(
                source.folded, mean, variance, norm.weight[units], norm.bias[units], eps=norm.eps
            )
            return source.like(result, units)
        values = {step.inputs[0]: source.folded}
        self.net.apply(step, values)
        return source.like(values[name], units)

    def _whole(self, step, base, varied) -> None:
        """Run any operator with the candidates folded into the batch."""
        reference = next(varied[n] for n in step.inputs if n in varied)
        shape = reference.values.shape[:2]
        values: dict[str, Tensor] = {}
        for name in step.inputs:
            if name in varied:
                values[name] = _all_units(varied[name], base.get(name)).flatten(0, 1)
            elif name in self._constants:
                values[name] = self._constants[name]
            elif name in base:
                values[name] = base[name].expand(shape[0], *base[name].shape).flatten(0, 1)
        self.net.apply(step, values)
        for name in step.outputs:
            if name in values:
                varied[name] = reference.like(values[name], None)


class _Plan:
    """What to compute per candidate, found once from the graph and the shapes for one image.

    Attributes
    ----------
    steps : list of (Step, tuple of str)
        The steps that depend on the patches, and the tensors each is the last to use.
    units : dict of str to Tensor or None
        Which units of each varied tensor differ; None for all.
    differences : set of str
        Outputs of the layers that are applied to a difference and added to the original's.
    base : list of str
        Original tensors that the steps need.
    constant : list of str
        Tensors they need that do not depend on the images.
    elements : int
        Numbers that one candidate on one image takes at the peak.
    """

    def __init__(self, net: TorchModel, edits: Mapping[str, Edit], x: Tensor) -> None:
        self.net, self.edits = net, edits
        source, self.output = net.model.input_name, net.model.output_name
        steps = net.between([source], [self.output])
        imaged, affected = {source}, set(edits)
        for step in steps:
            if imaged.intersection(step.inputs):
                imaged.update(step.outputs)
            if affected.intersection(step.inputs):
                affected.update(step.outputs)
        made = {name for step in steps for name in step.outputs}
        chosen = [step for step in steps if affected.intersection(step.outputs)]
        inputs = {n for step in chosen for n in step.inputs if n in made or n == source}
        wanted = sorted((inputs | {step.outputs[0] for step in chosen}) & imaged)
        values = net.run({source: x}, wanted)
        self.shapes = {name: tuple(value.shape[1:]) for name, value in values.items()}
        self.constant = sorted(inputs - imaged)
        frontier = (inputs & imaged) - affected
        for name in frontier:
            if values[name].ndim == 0 or len(values[name]) != 1:
                raise ModelfixError(
                    f"{net.model.name}: tensor {name!r} does not have one entry per image, which "
                    "population evaluation after the patched layers needs; patch later layers."
                )
        self.units: dict[str, Tensor | None] = {}
        self.differences: set[str] = set()
        needed = set(frontier)
        for step in chosen:
            self._place(step, needed)
        if self.units[self.output] is not None:
            needed.add(self.output)
        self.base = sorted(needed)
        last = {name: i for i, step in enumerate(chosen) for name in step.inputs}
        self.steps = [
            (step, tuple(n for n in set(step.inputs) if n in self.units and last[n] == i))
            for i, step in enumerate(chosen)
        ]
        self.elements = self._peak()

    def _place(self, step: Step, needed: set[str]) -> None:
        """Settle which units of the step's outputs differ and which original tensors that takes."""
        name = step.outputs[0]
        partly = [n for n in step.inputs if self.units.get(n) is not None]
        if name in self.edits and step.inputs[0] not in self.units:
            self.units[name] = self.edits[name].units
            needed.add(name)
            return
        needed.update(partly)
        if partly and step.kind in LINEAR and self._joins_all(step):
            needed.add(name)
            self.differences.add(name)
            self.units[name] = None
            return
        units = self._units_of(step)
        if units is not None:
            needed.add(name)
        self.units.update(dict.fromkeys(step.outputs, None))
        self.units[name] = units

    def _joins_all(self, step: Step) -> bool:
        return step.kind == "Gemm" or operators.core(self.net.operators[step.operator]).groups == 1

    def _units_of(self, step: Step) -> Tensor | None:
        """Return the units of an operator's output that differ, None where it joins units."""
        varied = [n for n in step.inputs if n in self.units]
        if step.kind == "Concat":
            return self._concatenated(step)
        units = self.units[varied[0]]
        if units is None or len(varied) > 1:
            return None
        shape = self.shapes[varied[0]]
        if step.kind in UNITWISE or step.kind == "BatchNormalization":
            return units
        if step.kind == "Add":
            others = [n for n in step.inputs if n not in self.units]
            same = all(self.shapes.get(n) == shape for n in others)
            return units if len(others) == 1 and same else None
        if step.kind == "Flatten" and self.shapes[step.outputs[0]] == (prod(shape),):
            inside = prod(shape[1:])
            positions = torch.arange(inside, device=units.device)
            return (units[:, None] * inside + positions).flatten()
        return None

    def _concatenated(self, step: Step) -> Tensor | None:
        device = next(iter(self.edits.values())).units.device
        if self.net.operators[step.operator].axis != 1 or any(
            n not in self.shapes for n in step.inputs
        ):
            return None
        parts, offset = [], 0
        for name in step.inputs:
            width = self.shapes[name][0]
            if name in self.units:
                units = self.units[name]
                own = torch.arange(width, device=device) if units is None else units
                parts.append(own + offset)
            offset += width
        return torch.cat(parts)

    def _size(self, name: str) -> int:
        shape = self.shapes[name]
        units = self.units.get(name)
        return prod(shape) if units is None else len(units) * prod(shape[1:])

    def _peak(self) -> int:
        alive: set[str] = set()
        peak = 0
        for step, finished in self.steps:
            name = step.outputs[0]
            # Besides what is kept: the operator's result before it is added or put in place, and
            # a copy of each input (a difference, all units, an original repeated).
            copies = sum(prod(self.shapes[n]) for n in set(step.inputs) if n in self.shapes)
            if self.units[name] is not None or name in self.edits:
                copies = sum(self._size(n) for n in set(step.inputs) if n in self.units)
            kept = sum(self._size(n) for n in alive)
            peak = max(peak, kept + copies + 2 * self._size(name))
            alive.add(name)
            alive.difference_update(finished)
        return max(peak, 4 * self._size(self.output))


def _edits(net: TorchModel, patches: Sequence[Patch]) -> list[Edit]:
    """Bring the patches into the form that the evaluation uses, one edit per layer."""
    columns: dict[str, list[np.ndarray]] = {}
    indices: dict[str, list[np.ndarray]] = {}
    offset = 0
    for patch in patches:
        indices.setdefault(patch.layer, []).append(np.asarray(patch.index, dtype=np.int64))
        columns.setdefault(patch.layer, []).append(np.arange(offset, offset + len(patch.index)))
        offset += len(patch.index)
    if offset == 0:
        raise ModelfixError("population evaluation needs at least one patched weight.")
    return [
        _edit(net, name, np.concatenate(index), np.concatenate(columns[name]))
        for name, index in indices.items()
        if sum(map(len, index))
    ]


def _edit(net: TorchModel, name: str, index: np.ndarray, columns: np.ndarray) -> Edit:
    layer = net.model.layer(name)
    step = next(step for step in net.steps if layer.output in step.outputs)
    if step.kind not in LINEAR:
        raise ModelfixError(
            f"layer {name!r} is a {layer.kind}; only dense layers and convolutions can be patched."
        )
    if sum(layer.weight in other.weights for other in net.steps) > 1:
        raise ModelfixError(
            f"layer {name!r} shares its weights with another; it cannot be patched."
        )
    weight = net.tensor(layer.weight).detach()
    if len(np.unique(index)) != len(index):
        raise ModelfixError(f"the patch of layer {name!r} names a weight twice.")
    if index.min() < 0 or index.max() >= weight.numel():
        raise ModelfixError(
            f"the patch of layer {name!r} names weight {int(index.max())}; it has "
            f"{weight.numel()} weights, counted from 0."
        )
    out, row, *window = np.unravel_index(index, tuple(weight.shape))
    if step.kind == "Conv":
        per_group = weight.shape[0] // operators.core(net.operators[step.operator]).groups
        row = row + out // per_group * weight.shape[1]
    rows, row_place = np.unique(row, return_inverse=True)
    units, unit_place = np.unique(out, return_inverse=True)
    place = (row_place, unit_place) if step.kind == "Gemm" else (unit_place, row_place, *window)
    sizes = {"Gemm": (len(rows), len(units)), "Conv": (len(units), len(rows), *weight.shape[2:])}

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(weight.device)

    return Edit(
        step=step,
        rows=tensor(rows),
        units=tensor(units),
        place=tuple(tensor(axis) for axis in place),
        shape=tuple(sizes[step.kind]),
        original=weight.flatten()[tensor(index)],
        columns=tensor(columns),
    )


def _all_units(tensor: Varied, base: Tensor | None) -> Tensor:
    """Return all units, [P, n, ...]: the original's where the candidates do not differ."""
    if tensor.units is None:
        return tensor.values
    assert base is not None, "the original of a tensor that differs in part is kept"
    whole = base.expand(len(tensor.values), *base.shape).clone()
    whole[:, :, tensor.units] = tensor.values
    return whole


def _score(output: Varied, _base: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor]:
    labels = y.expand(len(output.values), -1)
    loss = functional.cross_entropy(output.folded, labels.flatten(), reduction="none")
    return output.values.argmax(dim=2) == labels, loss.view_as(labels)


def _score_touched(output: Varied, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Score from the touched logits [P, n, U] and constants of the others: no P * n * K numbers."""
    touched, units = output.values, output.units
    is_label = units == y[:, None]
    rest = base.index_fill(1, units, -torch.inf)
    classes = torch.arange(base.shape[1], device=base.device)
    own = torch.where(is_label, touched, -torch.inf).amax(dim=2)
    own = torch.where(is_label.any(dim=1), own, base.gather(1, y[:, None])[:, 0])

    def largest(values: Tensor, index: Tensor, below: bool) -> Tensor:
        chosen = index < y[:, None] if below else index > y[:, None]
        return torch.where(chosen, values, -torch.inf).amax(dim=-1)

    before = torch.maximum(largest(rest, classes, True), largest(touched, units, True))
    after = torch.maximum(largest(rest, classes, False), largest(touched, units, False))
    total = torch.logaddexp(rest.logsumexp(dim=1), touched.logsumexp(dim=2))
    # On ties the lowest class index wins.
    return (own > before) & (own >= after), total - own
