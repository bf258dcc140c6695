"""A model as a trainable PyTorch module whose weights keep their ONNX names."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from modelfix_core import profile
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.torch import operators

TOLERANCE = 1e-4  # of the agreement with onnxruntime, relative to the largest value if above 1
CHECKED_IMAGES = 4


@dataclass(frozen=True)
class Step:
    """One node of the graph, ready to run.

    Attributes
    ----------
    node, kind : str
        Name and operator type.
    operator : int
        Position in `TorchModel.operators`; nodes that share all weights share the operator.
    weights : tuple of str
        Initializers inside of the operator.
    inputs : tuple of str
        Tensors that the operator is called with; empty for an omitted one.
    outputs : tuple of str
    """

    node: str
    kind: str
    operator: int
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# Steps in order, each with the tensors that are of no use after it.
Plan = list[tuple[Step, tuple[str, ...]]]


class TorchModel(nn.Module):
    """A model as an ``nn.Module``; made by `load`.

    Attributes
    ----------
    model : Model
        The model whose weights `reset` restores and against which `weights` compares.
    steps : tuple of Step
        The graph in order.
    operators : nn.ModuleList
        What the steps run.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        proto = model.proto()
        graph = operators.readable(proto)
        opset = profile.opset_of(proto)
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        # Where each initializer lives: (position of its operator, or None for self; attribute).
        self._homes: dict[str, tuple[int | None, str]] = {}
        self._plans: dict[tuple, Plan] = {}
        self.operators = nn.ModuleList()
        self._shared: dict[str, nn.Parameter] = {}
        known: dict[tuple, int] = {}
        steps = []
        for node in graph.node:
            weighted = node.op_type in operators.WEIGHTED
            weights = tuple(filter(None, node.input[1:])) if weighted else ()
            attributes = tuple(sorted(a.SerializeToString() for a in node.attribute))
            identity = (node.op_type, weights, attributes) if weighted else (node.name,)
            if identity not in known:
                known[identity] = len(self.operators)
                self._add_operator(
                    operators.convert(node, arrays, opset), node.op_type, weights, arrays
                )
            inputs = _arguments(node, arrays)
            self._add_constants(node, inputs, arrays)
            steps.append(
                Step(node.name, node.op_type, known[identity], weights, inputs, tuple(node.output))
            )
        self.steps = tuple(steps)
        del self._shared
        self.eval()

    def _add_operator(self, operator, kind, weights, arrays) -> None:
        position = len(self.operators)
        self.operators.append(operator)
        holder = operators.core(operator)
        for attribute, name in zip(operators.WEIGHTED.get(kind, ()), weights, strict=False):
            value = torch.from_numpy(np.array(arrays[name]))
            if attribute.startswith("running"):
                setattr(holder, attribute, value)
            else:
                setattr(holder, attribute, self._parameter(name, value))
            self._homes.setdefault(name, (position, attribute))

    def _add_constants(self, node, inputs, arrays) -> None:
        trained = operators.TRAINABLE_ARGUMENT.get(node.op_type)
        for position, name in enumerate(inputs):
            if name not in arrays or name in self._homes:
                continue
            attribute = f"constant_{len(self._homes)}"
            value = torch.from_numpy(np.array(arrays[name]))
            if position == trained and value.dtype == torch.float32:
                self.register_parameter(attribute, self._parameter(name, value))
            else:
                self.register_buffer(attribute, value)
            self._homes[name] = (None, attribute)

    def _parameter(self, name: str, value: Tensor) -> nn.Parameter:
        """Return the one parameter of that initializer, which several operators may hold."""
        return self._shared.setdefault(name, nn.Parameter(value))

    # -- weights -------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """Return the live tensor of an initializer or of a constant of the graph."""
        position, attribute = self._homes[name]
        holder = self if position is None else operators.core(self.operators[position])
        return getattr(holder, attribute)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Live tensors by initializer name: parameters, and buffers for what is not trained."""
        return {name: self.tensor(name) for name in self._homes if name in self.model.weights}

    @property
    def parameter_names(self) -> dict[str, str]:
        """Initializer name to name in ``named_parameters``, as `torch.func` needs it."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return {n: names[id(t)] for n, t in self.tensors.items() if isinstance(t, nn.Parameter)}

    def weights(self) -> dict[str, np.ndarray]:
        """Return the initializers whose values differ bitwise from the model's.

        Returns
        -------
        dict of str to ndarray of float32
            Fit for ``Candidate(weights=...)``; BatchNorm statistics included.
        """
        changed = {}
        for name, tensor in self.tensors.items():
            array = tensor.detach().cpu().numpy()
            if not np.array_equal(_bits(array), _bits(self.model.weights[name])):
                changed[name] = array.copy()
        return changed

    def set_weights(self, values: Mapping[str, np.ndarray | Tensor]) -> None:
        """Set initializers in place.

        Raises
        ------
        ModelfixError
            If a name is unknown or a shape differs.
        """
        tensors = self.tensors
        for name, value in values.items():
            if name not in tensors:
                raise ModelfixError(f"{self.model.name}: has no weight named {name!r}.")
            if tuple(value.shape) != tuple(tensors[name].shape):
                raise ModelfixError(
                    f"{self.model.name}: weight {name!r} has shape {list(tensors[name].shape)}, "
                    f"not {list(value.shape)}."
                )
        with torch.no_grad():
            for name, value in values.items():
                source = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
                tensors[name].copy_(source)

    def reset(self) -> None:
        """Restore the model's values."""
        self.set_weights({name: self.model.weights[name] for name in self.tensors})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.tensors.values())).device

    # -- running -------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, K] of images [N, C, H, W]."""
        output = self.model.output_name
        return self.run({self.model.input_name: x}, [output])[output]

    def activations(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute inner tensors, differentiable.

        Parameters
        ----------
        x : Tensor, [N, C, H, W]
        names : sequence of str
            Tensor names of the graph, or layer names, which stand for the layer's output.

        Returns
        -------
        dict of str to Tensor, [N, ...]
        """
        places = {name: self.place(name) for name in names}
        values = self.run({self.model.input_name: x}, list(places.values()))
        return {name: values[place] for name, place in places.items()}

    def place(self, name: str) -> str:
        """Return the tensor that a tensor or layer name stands for."""
        if name == self.model.input_name or any(name in step.outputs for step in self.steps):
            return name
        return self.model.layer(name).output

    def run(self, known: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Compute tensors from others, with only the nodes between them.

        Parameters
        ----------
        known : mapping of str to Tensor
            By tensor name; nothing before them is computed.
        wanted : sequence of str
            Tensor names.

        Returns
        -------
        dict of str to Tensor

        Raises
        ------
        ModelfixError
            If a wanted tensor cannot be computed from the known ones.
        """
        values = dict(known)
        for step, finished in self.plan(known, wanted, fast=True):
            self.apply(step, values)
            for name in finished:
                del values[name]
        return {name: values[name] for name in wanted}

    def apply(self, step: Step, values: dict[str, Tensor]) -> None:
        """Run one step on `values` and put its outputs there."""
        arguments = [self._argument(name, values) for name in step.inputs]
        result = self.operators[step.operator](*arguments)
        results = result if isinstance(result, tuple | list) else (result,)
        values.update(zip(step.outputs, results, strict=False))

    def _argument(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if name in values:
            return values[name]
        return self.tensor(name) if name else None

    def between(self, known: Sequence[str], wanted: Sequence[str]) -> list[Step]:
        """Return the steps that compute `wanted` from `known` (tensor names), in order."""
        needed, available, chosen = set(wanted), set(known), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs) - available:
                chosen.append(step)
                needed.update(name for name in step.inputs if name and name not in self._homes)
        made = {name for step in chosen for name in step.outputs}
        for name in needed - made - available:
            raise ModelfixError(
                f"{self.model.name}: tensor {name!r} cannot be computed from "
                f"{', '.join(sorted(available))}."
            )
        return chosen[::-1]

    def plan(self, known: Iterable[str], wanted: Sequence[str], *, fast: bool = False) -> Plan:
        """Return the steps of `between`, each with the tensors that are of no use after it.

        With `fast` they may come in an order in which tensors that nobody wants have other values.
        """
        key = (frozenset(known), tuple(wanted), fast)
        if key not in self._plans:
            steps = self.between(list(known), wanted)
            if fast:
                steps = _pooled_first(steps, wanted)
            last = {name: i for i, step in enumerate(steps) for name in step.inputs}
            made = set(known) | {name for step in steps for name in step.outputs}
            finished: dict[int, list[str]] = {}
            for name, index in last.items():
                if name in made and name not in wanted:
                    finished.setdefault(index, []).append(name)
            self._plans[key] = [(s, tuple(finished.get(i, ()))) for i, s in enumerate(steps)]
        return self._plans[key]


def _pooled_first(steps: list[Step], wanted: Sequence[str]) -> list[Step]:
    """Let a max-pool of rectified values come before the ReLU, which has less to do then.

    Values and gradients are the same: the largest of rectified values is the rectified largest.
    """
    made = {step.outputs[0]: number for number, step in enumerate(steps)}
    readers = Counter(name for step in steps for name in step.inputs)
    result = list(steps)
    for number, pool in enumerate(steps):
        rectified = pool.inputs[0]
        before = made.get(rectified)
        if pool.kind != "MaxPool" or len(pool.outputs) > 1 or before is None:
            continue
        relu = steps[before]
        if relu.kind == "Relu" and rectified not in wanted and readers[rectified] == 1:
            result[before] = replace(pool, inputs=relu.inputs, outputs=relu.outputs)
            result[number] = replace(relu, inputs=pool.inputs, outputs=pool.outputs)
    return result


def load(model: Model, device: str | torch.device = "cpu") -> TorchModel:
    """Make a trainable module of a model and check that it agrees with onnxruntime.

    Parameters
    ----------
    model : Model
        Left untouched.
    device : str or torch.device

    Returns
    -------
    TorchModel
        In evaluation mode.

    Raises
    ------
    ModelfixError
        If an operator cannot be converted (it is named) or the logits of random images differ from
        onnxruntime's by more than 1e-4 (the first differing layer is named).
    """
    try:
        # Modules draw starting values that the model's weights replace at once; the caller's
        # generator is put back. They are made on the CPU, so no other generator is concerned.
        with torch.random.fork_rng(devices=[]):
            net = TorchModel(model)
    except ModelfixError as error:
        raise ModelfixError(f"{model.name}: {error}") from error
    check_agreement(net)
    return net.to(device)


def check_agreement(net: TorchModel) -> None:
    """Raise `ModelfixError` naming the first layer where `net` and onnxruntime disagree."""
    model = net.model
    x = np.random.default_rng(0).random((CHECKED_IMAGES, *model.input_shape), dtype=np.float32)
    with torch.no_grad():
        try:
            agrees = _close(net(torch.from_numpy(x)).numpy(), model.predict(x))
        except Exception:
            agrees = False
    if not agrees:
        raise ModelfixError(f"{model.name}: {_disagreement(net, x)}")


def _disagreement(net: TorchModel, x: np.ndarray) -> str:
    names = [step.outputs[0] for step in net.steps]
    original = {name for node in net.model.proto().graph.node for name in node.output}
    values = {net.model.input_name: torch.from_numpy(x)}
    expected = net.model.activations(x, [name for name in names if name in original])
    layers = {layer.output: f"layer {layer.name!r}" for layer in net.model.layers()}
    for step, name in zip(net.steps, names, strict=True):
        where = layers.get(name, f"node {step.node!r} ({step.kind})")
        try:
            with torch.no_grad():
                net.apply(step, values)
        except Exception as error:
            reason = str(error).split("\n")[0]
            return f"{where} cannot be run by PyTorch ({reason}); use other operators there."
        if name in expected and not _close(values[name].numpy(), expected[name]):
            return (
                f"PyTorch and onnxruntime disagree by more than {TOLERANCE:g}, first at {where}; "
                "the model cannot be used with PyTorch, please report it."
            )
    return "PyTorch and onnxruntime disagree on the logits; please report it."


def _close(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.shape != expected.shape:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.array_equal(actual, expected))
    finite = expected[np.isfinite(expected)]
    scale = max(1.0, float(np.abs(finite).max(initial=0.0)))
    return bool(np.allclose(actual, expected, rtol=0, atol=TOLERANCE * scale, equal_nan=True))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


def _arguments(node, arrays) -> tuple[str, ...]:
    if node.op_type in operators.WEIGHTED or node.op_type == "Dropout":
        return (node.input[0],)
    if node.op_type == "Reshape" and node.input[1] in arrays:
        return (node.input[0],)
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return tuple(names)
