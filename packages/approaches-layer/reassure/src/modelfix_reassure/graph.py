"""The patch network as ONNX nodes behind the original graph."""

from typing import Any

import numpy as np
import onnx
from modelfix_core.model import Model
from onnx import TensorProto, helper, numpy_helper

from modelfix_reassure.block import Affine
from modelfix_reassure.network import PatchNetwork

PREFIX = "reassure."
BASE = PREFIX + "base"
PATCH = PREFIX + "patch"  # [N, 1 + K]: the largest support, then what is subtracted from the logits


def extend(model: Model, network: PatchNetwork) -> Model:
    """Return `model` with the patch network added to its logits.

    Every node and initializer of the original stays; only the tensor of its logits is renamed to
    ``reassure.base``, so that the output keeps its name. Supports are evaluated in float64: with a
    steep fall-off float32 would leave repairs unfinished (section 8).

    Parameters
    ----------
    model : Model
    network : PatchNetwork
        With at least one patch, of a block of this model.
    """
    proto = model.proto()
    _rename(proto.graph, model.output_name, BASE)
    builder = _Builder(proto.graph)
    z, violation = _first_layer(builder, network)
    rows, zeros = _touched_rows(builder, violation, network)
    support = _supports(builder, network, z, violation, rows)
    gamma = _suffix_maximum(builder, support, len(network))
    _scatter(builder, network, gamma, rows, zeros)
    classes = network.patches.shape[1]
    lowered = builder.slice(PATCH, 1, classes + 1, "lowered")
    # Subtracting +0 leaves every float as it is, a negative zero too; adding it would not.
    builder.add("Sub", [BASE, lowered], model.output_name)
    return Model(proto, model.name)


class _Builder:
    """Appends nodes and constants under one prefix."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.count = 0
        self.constants: set[str] = set()

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        output = output or f"{PREFIX}{op.lower()}_{self.count}"
        name = f"{PREFIX}node_{self.count}"
        self.graph.node.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        name = PREFIX + name
        if name not in self.constants:
            self.constants.add(name)
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.graph.initializer.append(tensor)
        return name

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.asarray(value, dtype=np.float64))

    def index(self, value: int) -> str:
        return self.constant(f"index_{value}", np.asarray([value], dtype=np.int64))

    def cast(self, tensor: str, kind: int) -> str:
        return self.add("Cast", [tensor], to=kind)

    def slice(self, tensor: str, start: int, end: int, output: str | None = None) -> str:
        """Take columns of a matrix."""
        bounds = [self.index(start), self.index(end), self.index(1)]
        return self.add("Slice", [tensor, *bounds], output and PREFIX + output)

    def row(self, tensor: str, position: int) -> str:
        """Take a row of a matrix as a vector."""
        return self.add(
            "Squeeze", [self.add("Gather", [tensor, self.index(position)]), self.index(0)]
        )

    def affine(self, tensor: str, affine: Affine, depth: int) -> str:
        if affine.source is None:
            weight = self.constant(f"weight_{depth}", affine.weight.T)
        else:
            weight = self.add("Transpose", [self.cast(affine.source, TensorProto.DOUBLE)])
        product = self.add("MatMul", [tensor, weight])
        return self.add("Add", [product, self.constant(f"bias_{depth}", affine.bias)])

    def clipped(self, tensor: str) -> str:
        """Clip to [0, 1]."""
        return self.add("Min", [self.add("Relu", [tensor]), self.number("one", 1.0)])

    def pattern(self, network: PatchNetwork, depth: int) -> str:
        """Return 1 where a patch's region has the neuron active and 0 elsewhere, [L, width]."""
        name = f"pattern_{depth}"
        output = f"{PREFIX}active_{depth}"
        if PREFIX + name not in self.constants:
            active = network.block.layers_of(network.patterns)[depth]
            self.add("Cast", [self.constant(name, active)], output, to=TensorProto.DOUBLE)
        return output


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def _first_layer(builder: _Builder, network: PatchNetwork) -> tuple[str, str]:
    """Return the first pre-activations [N, width] and each support's violations there [N, L]."""
    block = network.block
    h = builder.cast(block.features, TensorProto.DOUBLE)
    z = builder.affine(h, block.maps[0], 0)
    scaled = builder.add("Mul", [z, builder.number("n", network.n)])
    below = builder.clipped(builder.add("Neg", [scaled]))
    above = builder.clipped(scaled)
    active = builder.add("Transpose", [builder.pattern(network, 0)])
    inactive = builder.add("Sub", [builder.number("one", 1.0), active])
    parts = [builder.add("MatMul", [below, active]), builder.add("MatMul", [above, inactive])]
    return z, builder.add("Add", parts)


def _touched_rows(builder: _Builder, violation: str, network: PatchNetwork) -> tuple[str, str]:
    """Return the inputs [1, R] near a region by the first layer, and zeros [N, 1 + K]."""
    near = builder.cast(_less_than_one(builder, violation), TensorProto.FLOAT)
    count = builder.add("ReduceSum", [near, builder.index(1)], keepdims=1)
    flat = builder.add("ReduceSum", [near, builder.index(1)], keepdims=0)
    # In float64, because float32 initializers are the weights of a model.
    blank = builder.constant("blank", np.zeros((1, 1 + network.patches.shape[1])))
    zeros = builder.add("Mul", [count, builder.cast(blank, TensorProto.FLOAT)])
    return builder.add("NonZero", [flat]), zeros


def _less_than_one(builder: _Builder, tensor: str) -> str:
    return builder.add("Less", [tensor, builder.number("one", 1.0)])


def _supports(builder: _Builder, network: PatchNetwork, z: str, violation: str, rows: str) -> str:
    """Return g [R, L]; only pairs of input and patch that are near go through deeper layers."""
    picked = builder.row(rows, 0)
    violation = builder.add("Gather", [violation, picked], axis=0)
    pairs = builder.add("NonZero", [_less_than_one(builder, violation)])
    where = builder.add("Transpose", [pairs])
    row = builder.add(
        "Squeeze", [builder.add("Gather", [pairs, builder.index(0)]), builder.index(0)]
    )
    patch = builder.add(
        "Squeeze", [builder.add("Gather", [pairs, builder.index(1)]), builder.index(0)]
    )
    z = builder.add("Gather", [builder.add("Gather", [z, picked]), row])
    # One flat index for each pair rather than GatherND, which PyTorch cannot run without pairs.
    flat = builder.add("Mul", [row, builder.index(len(network))])
    flat = builder.add("Add", [flat, patch])
    total = builder.add("Gather", [builder.add("Reshape", [violation, builder.index(-1)]), flat])
    for depth in range(1, len(network.block.hidden)):
        z, excess = _next_layer(builder, network, depth, z, patch)
        total = builder.add("Add", [total, excess])
    one, zero = builder.number("one", 1.0), builder.number("zero", 0.0)
    g = builder.add("Relu", [builder.add("Sub", [one, total])])
    return builder.add("ScatterND", [builder.add("Mul", [violation, zero]), where, g])


def _next_layer(
    builder: _Builder, network: PatchNetwork, depth: int, z: str, patch: str
) -> tuple[str, str]:
    one = builder.number("one", 1.0)
    gain = builder.add("Gather", [builder.pattern(network, depth - 1), patch])
    slope = network.block.slopes[depth - 1]
    if slope:
        share = builder.number(f"share_{depth}", 1.0 - slope)
        scaled = builder.add("Mul", [gain, share])
        gain = builder.add("Add", [scaled, builder.number(f"slope_{depth}", slope)])
    z = builder.affine(builder.add("Mul", [z, gain]), network.block.maps[depth], depth)
    active = builder.add("Gather", [builder.pattern(network, depth), patch])
    sign = builder.add("Sub", [one, builder.add("Mul", [active, builder.number("two", 2.0)])])
    beyond = builder.add("Mul", [z, sign])
    steep = builder.clipped(builder.add("Mul", [beyond, builder.number("n", network.n)]))
    return z, builder.add("ReduceSum", [steep, builder.index(1)], keepdims=0)


def _suffix_maximum(builder: _Builder, g: str, length: int) -> str:
    """Return the running maximum from the last column to the first, by doubling."""
    step = 1
    while step < length:
        parts = [builder.slice(g, step, length), builder.slice(g, length - step, length)]
        g = builder.add("Max", [g, builder.add("Concat", parts, axis=1)])
        step *= 2
    return g


def _scatter(builder: _Builder, network: PatchNetwork, gamma: str, rows: str, zeros: str) -> None:
    """Compute support and (negative) correction of the touched inputs and put them in place."""
    away = builder.add("Sub", [builder.number("one", 1.0), gamma])
    fall = builder.add("Mul", [away, builder.constant("bounds", network.bounds)])
    fall = builder.add("Unsqueeze", [fall, builder.index(2)])
    steps = builder.constant("steps", network.steps)
    up = builder.add("Relu", [builder.add("Sub", [steps, fall])])
    negative = builder.add("Neg", [steps])
    down = builder.add("Relu", [builder.add("Sub", [negative, fall])])
    difference = builder.add("Sub", [down, up])
    lowered = builder.add("ReduceSum", [difference, builder.index(1)], keepdims=0)
    both = builder.add("Concat", [builder.slice(gamma, 0, 1), lowered], axis=1)
    where = builder.add("Transpose", [rows])
    builder.add("ScatterND", [zeros, where, builder.cast(both, TensorProto.FLOAT)], PATCH)
