"""The network above a hidden vector, run for many versions of the vector's values at once.

Everything below the vector is computed once. Where a dense layer takes the vector's activity alone
(through elementwise functions), a version adds to that layer's output what its changed neurons
contribute, and nothing else is computed. Where none does, versions are whole vectors. Layers above
that, if there are any, run with the versions folded into the batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure, Unadaptable
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.torch import TorchModel, batches
from modelfix_core.torch.bridge import Step
from modelfix_core.torch.margins import margins
from modelfix_core.torch.population import WORKING_MEMORY
from torch import Tensor

from modelfix_care.hidden import Hidden

# Elementwise functions f; those in HOMOGENEOUS have f(a z) = a f(z) for every a >= 0.
HOMOGENEOUS = {"Relu", "LeakyRelu", "Identity", "Dropout"}
ELEMENTWISE = HOMOGENEOUS | {
    *("Elu", "Selu", "Celu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Softplus"),
    *("Softsign", "Mish", "Clip"),
}
SMALLEST_CHUNK = 64  # images that are worth a call


class Tail:
    """What the labels say about versions of a hidden vector; made for one split.

    The inputs are sorted by the margin of their label: those the model gets wrong come first, then
    those it may lose most easily, as racing wants them.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    hidden : Hidden
    split : Split
    memory : int
        Bytes for what is held of the inputs, and for the versions in work.

    Attributes
    ----------
    y : Tensor of int64, [n]
    right : ndarray of bool, [n]
        Which inputs the original model gets right.
    low, high : ndarray of float64, [J]
        Range of each neuron's value over the inputs.

    Raises
    ------
    Failure
        If the vectors of all inputs do not fit into half of the memory.
    Unadaptable
        If the layers above need a tensor that does not have one entry per image.
    """

    def __init__(
        self, net: TorchModel, hidden: Hidden, split: Split, memory: int = DEFAULT_MEMORY
    ) -> None:
        self.net = net
        self._hidden = hidden.tensor
        self._output = net.model.output_name
        self._functions, self._dense = _way_to_dense(net, hidden.tensor)
        self._entry = hidden.tensor if self._dense is None else self._dense.outputs[0]
        self._sides = _sides(net, self._entry)
        self._hold(split, memory)
        self._working = min(memory // 2, WORKING_MEMORY.get(net.device.type, memory))

    # -- what is held --------------------------------------------------------------------------

    @torch.inference_mode()
    def _hold(self, split: Split, memory: int) -> None:
        names = list(dict.fromkeys([self._hidden, self._entry, self._output, *self._sides]))
        self._measure(split, names, memory)
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for x in batches(split, device=self.net.device):
            for name, value in self.net.activations(x, names).items():
                parts[name].append(value)
        held = {name: torch.cat(parts.pop(name)) for name in names}
        y = torch.tensor(np.asarray(split.y), dtype=torch.int64, device=self.net.device)
        order = margins(held[self._output], y).argsort(stable=True)
        self._held = {name: value[order] for name, value in held.items()}
        self.y = y[order]
        self.right = (self._held[self._output].argmax(dim=1) == self.y).cpu().numpy()
        values = self._held[self._hidden].double()
        self.low, self.high = (f(values, 0).cpu().numpy() for f in (torch.amin, torch.amax))

    def _measure(self, split: Split, names: list[str], memory: int) -> None:
        """Settle what one version of one image takes, and whether all that is held fits."""
        x = next(batches(split, 2, self.net.device))
        above = self.net.between([self._entry, *self._sides], [self._output])
        made = [step.outputs[0] for step in above]
        values = self.net.activations(x, [*names, *made])
        for name in self._sides:
            if values[name].ndim == 0 or len(values[name]) != len(x):
                raise Unadaptable(
                    f"tensor {name!r}, which the layers above the hidden one need, does not have "
                    "one entry per image"
                )
        size = {name: value.numel() // len(x) for name, value in values.items()}
        # Besides the entry: a product before it is added, the largest logit; above it: all tensors.
        self._numbers = 3 * size[self._entry] + sum(size[n] for n in [*made, *self._sides])
        needed = 8 * len(split) * sum(size[name] for name in names)
        if needed > memory // 2:
            raise Failure(
                f"the hidden vectors of {len(split)} inputs need {needed / 2**30:.1f} GiB; use a "
                "smaller split or a layer nearer to the output"
            )

    # -- versions ------------------------------------------------------------------------------

    def forced(
        self, neurons: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Force one neuron to one value for all inputs: ``do(z_j = v)``.

        Parameters
        ----------
        neurons : ndarray of int64, [Q]
        values : ndarray, [Q]
        weights : ndarray, [n], optional
            What a right input counts, in the order of `y`; default 1.

        Returns
        -------
        ndarray of float64, [Q]
            Summed weights of the inputs that each of the Q versions gets right.
        """
        index = self._tensor(neurons, torch.int64)
        numbers = self._tensor(values, torch.float32)

        def entry(chosen: slice, part: slice) -> Tensor:
            units, forced = index[chosen], numbers[chosen]
            hidden = self._held[self._hidden][part]
            if self._dense is None:
                versions = hidden[:, None].repeat(1, len(units), 1)
                versions[:, torch.arange(len(units), device=units.device), units] = forced
                return versions
            moved = self._activity(forced) - self._activity(hidden[:, units])
            return torch.addcmul(
                self._held[self._entry][part][:, None], moved[..., None], self._columns(units)
            )

        return self._count(len(index), 1, entry, slice(None), weights)

    def scaled(
        self,
        neurons: np.ndarray,
        factors: np.ndarray,
        part: slice = slice(None),
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scale the values of some neurons for all inputs.

        Parameters
        ----------
        neurons : ndarray of int64, [r]
        factors : ndarray, [P, r]
            Not negative.
        part : slice
            Only these inputs, in the order of `y`.
        weights : ndarray, [n], optional
            As in `forced`.

        Returns
        -------
        ndarray of float64, [P]
            Summed weights of the inputs of `part` that each version gets right.
        """
        versions = self._scaling(neurons, factors)
        return self._count(len(factors), 2 * len(neurons), versions, part, weights)

    def logits(self, neurons: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Compute the logits [n, P, K] of scaled versions; arguments as in `scaled`."""
        versions = self._scaling(neurons, factors)
        chunks = self._chunks(len(factors), 2 * len(neurons), slice(None))
        with torch.inference_mode():
            count = self.net.model.num_classes
            logits = np.empty((len(self.y), len(factors), count), dtype=np.float32)
            for chosen, part in chunks:
                logits[part, chosen] = self._above(versions(chosen, part), part).cpu().numpy()
        return logits

    def _scaling(self, neurons: np.ndarray, factors: np.ndarray):
        index = self._tensor(neurons, torch.int64)
        scales = self._tensor(factors, torch.float32)
        homogeneous = all(step.kind in HOMOGENEOUS for step in self._functions)

        def entry(chosen: slice, part: slice) -> Tensor:
            scale = scales[chosen]
            hidden = self._held[self._hidden][part]
            if self._dense is None:
                versions = hidden[:, None].repeat(1, len(scale), 1)
                versions[:, :, index] *= scale
                return versions
            values, columns = hidden[:, index], self._columns(index)
            if homogeneous:
                # The activity is scaled as the value is, so the versions share one product.
                joined = (scale - 1).T[:, :, None] * columns[:, None]
                moved = self._activity(values) @ joined.flatten(1)
                moved = moved.unflatten(1, (len(scale), -1))
            else:
                moved = self._activity(values[:, None] * scale) - self._activity(values)[:, None]
                moved = moved @ columns
            return moved.add_(self._held[self._entry][part][:, None])

        return entry

    def _columns(self, units: Tensor) -> Tensor:
        """Return what the neurons add to the dense layer per unit of activity, [U, C]."""
        assert self._dense is not None
        return self.net.tensor(self._dense.weights[0]).detach().T[units]

    def _activity(self, values: Tensor) -> Tensor:
        for step in self._functions:
            known = {step.inputs[0]: values}
            self.net.apply(step, known)
            values = known[step.outputs[0]]
        return values

    def _above(self, entry: Tensor, part: slice) -> Tensor:
        """Compute logits [m, Q, K] of versions [m, Q, C] of the inputs of `part`."""
        if self._entry == self._output:
            return entry
        known = {self._entry: entry.flatten(0, 1)}
        for name in self._sides:
            side = self._held[name][part][:, None]
            known[name] = side.expand(-1, entry.shape[1], *side.shape[2:]).flatten(0, 1)
        logits = self.net.run(known, [self._output])[self._output]
        return logits.unflatten(0, entry.shape[:2])

    @torch.inference_mode()
    def _count(self, versions: int, touched: int, entry, part: slice, weights) -> np.ndarray:
        total = np.zeros(versions)
        worth = torch.ones(len(self.y)) if weights is None else torch.as_tensor(weights)
        worth = worth.double().to(self.y.device)
        for chosen, inputs in self._chunks(versions, touched, part):
            logits = self._above(entry(chosen, inputs), inputs)
            right = logits.argmax(dim=2) == self.y[inputs, None]
            total[chosen] += (worth[inputs] @ right.double()).cpu().numpy()
        return total

    def _chunks(self, versions: int, touched: int, part: slice) -> Iterator[tuple[slice, slice]]:
        """Yield versions and inputs whose tensors stay inside of the working memory."""
        start, stop, _ = part.indices(len(self.y))
        pairs = max(1, self._working // (4 * (self._numbers + touched) + 16))
        size = max(1, min(stop - start, max(pairs // max(versions, 1), min(pairs, SMALLEST_CHUNK))))
        group = max(1, pairs // size)
        for first in range(start, stop, size):
            inputs = slice(first, min(first + size, stop))
            for begin in range(0, versions, group):
                yield slice(begin, min(begin + group, versions)), inputs

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.net.device, dtype)


def _way_to_dense(net: TorchModel, tensor: str) -> tuple[list[Step], Step | None]:
    """Return the elementwise steps from a vector to the dense layer that alone takes it, if any."""
    functions: list[Step] = []
    while tensor != net.model.output_name:
        users = [step for step in net.steps if tensor in step.inputs]
        if len(users) == 1 and users[0].kind == "Gemm":
            return functions, users[0]
        if len(users) != 1 or users[0].kind not in ELEMENTWISE:
            break
        functions.append(users[0])
        tensor = users[0].outputs[0]
    return [], None


def _sides(net: TorchModel, entry: str) -> list[str]:
    """Return the tensors besides `entry` and its consequences that the logits need."""
    source, output = net.model.input_name, net.model.output_name
    steps = net.between([source], [output])
    made = {source} | {name for step in steps for name in step.outputs}
    affected = {entry}
    above = []
    for step in steps:
        if affected.intersection(step.inputs):
            affected.update(step.outputs)
            above.append(step)
    return sorted({n for step in above for n in step.inputs if n in made} - affected)
