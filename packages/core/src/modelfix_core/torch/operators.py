"""One ONNX node as one torch operator: onnx2pytorch's, after a normaliser.

onnx2pytorch is asked for one node at a time. So a refusal names its operator, no two nodes are
fused, and none of the second copies that its whole-model converter keeps of every weight arise.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx2pytorch.convert.operations import convert_operations
from torch import Tensor, nn

from modelfix_core.errors import ModelfixError

# Operators whose weights live in their torch operator; all others take constants as arguments.
WEIGHTED = {
    "Conv": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}
# Other operators with a constant argument that training may change, and its position.
TRAINABLE_ARGUMENT = {"MatMul": 1, "PRelu": 1}
FEW_IMAGES = 16  # fill no vector register


class Concat(nn.Module):
    """Join any number of tensors along one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *parts: Tensor) -> Tensor:
        """Concatenate `parts`."""
        return torch.cat(parts, dim=self.axis)


class Gather(nn.Module):
    """Pick entries along one axis (onnx2pytorch's indexes with a list, which torch gave up)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, data: Tensor, indices: Tensor) -> Tensor:
        """Index `data` at `indices`, whose dimensions replace the axis."""
        return data[(slice(None),) * (self.axis % data.ndim) + (indices.long(),)]


class Slice(nn.Module):
    """Cut along axes (onnx2pytorch's indexes with a list, which torch gave up)."""

    def forward(
        self,
        data: Tensor,
        starts: Tensor,
        ends: Tensor,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Cut `data` from `starts` to `ends`, the first axes where none are given."""
        places = range(len(starts)) if axes is None else axes.tolist()
        strides = [1] * len(starts) if steps is None else steps.tolist()
        for axis, *bounds in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
            first, stop, step = slice(*bounds).indices(data.shape[axis])
            if step > 0:
                cut = (slice(None),) * (axis % data.ndim) + (slice(first, stop, step),)
                data = data[cut]
            else:
                index = torch.arange(first, stop, step, device=data.device)
                data = data.index_select(axis, index)
        return data


class MaxPool(nn.Module):
    """Max-pool of windows side by side: the same values as torch's, several times faster on CPUs.

    Parameters
    ----------
    height, width : int
        Of the windows, which neither overlap nor leave gaps; what is left at the end is dropped.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.window = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pool [N, C, H, W]."""
        if x.device.type != "cpu":
            return nn.functional.max_pool2d(x, self.window)
        if x.requires_grad and torch.is_grad_enabled():
            # Neighbours in memory are treated at once below, which single images are not.
            if len(x) < FEW_IMAGES:
                return nn.functional.max_pool2d(x, self.window)
            return _PoolBatchLast.apply(x, self.window)[0]
        for axis, size in zip((-2, -1), self.window, strict=True):
            x = x.narrow(axis, 0, x.shape[axis] // size * size).unflatten(axis, (-1, size))
            x = reduce(torch.maximum, x.unbind(axis))
        return x


class _PoolBatchLast(torch.autograd.Function):
    """Torch's max-pool, values and gradients to the bit, with the images innermost in memory.

    Its kernel then compares many images at once, where it compares number by number otherwise. On
    ties the gradient goes to the first of the equals, unlike that of a maximum.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
        images_last = x.permute(1, 2, 3, 0).contiguous().permute(0, 3, 1, 2)
        pooled, index = torch.ops.aten.max_pool2d_with_indices(images_last, window, window)
        return pooled.transpose(0, 1).contiguous(), index.transpose(0, 1).contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.window = inputs
        index = output[1]
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(x, index)

    @staticmethod
    def backward(ctx, gradient: Tensor, _) -> tuple[Tensor, None]:
        x, index = ctx.saved_tensors
        options = (ctx.window, ctx.window, (0, 0), (1, 1), False)
        back = torch.ops.aten.max_pool2d_with_indices_backward
        return back(gradient, x, *options, index), None


def readable(proto: onnx.ModelProto) -> GraphProto:
    """Write a model's graph with the nodes that onnx2pytorch reads.

    Parameters
    ----------
    proto : onnx.ModelProto
        Left untouched.

    Returns
    -------
    GraphProto
        ``Constant`` nodes are initializers, ``BatchNormalization`` has one output and no
        ``training_mode``, and every ``Gemm`` has constant weights [out, in] and no factors.
    """
    graph = GraphProto()
    graph.CopyFrom(proto.graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant":
            graph.initializer.append(_constant(node))
    constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
            del node.output[1:]
        if node.op_type == "Gemm" and not _plain(node, constants):
            nodes += _spelled_out(node, graph)
        elif node.op_type != "Constant":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return graph


def convert(node: NodeProto, constants: Mapping[str, np.ndarray], opset: int) -> nn.Module:
    """Make the torch operator of one node of a `readable` graph.

    Parameters
    ----------
    node : NodeProto
    constants : mapping of str to ndarray
        The graph's initializers.
    opset : int

    Returns
    -------
    nn.Module
        Called with the node's inputs; weighted operators (see `WEIGHTED`) with the first only.

    Raises
    ------
    ModelfixError
        If the operator, or the way it is used, is not supported; the message names it.
    """
    if node.op_type == "Dropout":
        return nn.Dropout(_dropout_ratio(node, constants))
    if node.op_type == "Concat":
        return Concat(_attribute(node, "axis", None))
    if node.op_type == "Gather":
        return Gather(_attribute(node, "axis", 0))
    if node.op_type == "Slice":
        return Slice()
    needed = list(node.input[1:]) if node.op_type in WEIGHTED else []
    # Reshape alone takes its constant target when it is made, as numbers instead of a tensor.
    needed += [n for n in node.input[1:] if node.op_type == "Reshape" and n in constants]
    missing = [name for name in needed if name and name not in constants]
    if missing:
        raise _refusal(node, f"its input {missing[0]!r} is not a constant")
    graph = GraphProto(node=[node])
    for name in filter(None, needed):
        graph.initializer.append(numpy_helper.from_array(constants[name], name))
    try:
        with warnings.catch_warnings():
            # onnx2pytorch guesses a torch function for operators unknown to it, with this warning.
            warnings.simplefilter("error", RuntimeWarning)
            ((_, _, operator),) = convert_operations(graph, opset, enable_pruning=False)
    except Exception as error:
        raise _refusal(node, str(error).split("\n")[0]) from error
    return _simplified(operator, node)


def core(operator: nn.Module) -> nn.Module:
    """Return the module that holds the weights: behind a padding layer or a wrapper."""
    if isinstance(operator, nn.Sequential):
        return operator[-1]
    return getattr(operator, "bnu", operator)


def _refusal(node: NodeProto, reason: str) -> ModelfixError:
    return ModelfixError(
        f"operator {node.op_type!r} (node {node.name!r}) cannot be converted to PyTorch: {reason}; "
        "export the model with operators that can."
    )


def _simplified(operator: nn.Module, node: NodeProto) -> nn.Module:
    inner = core(operator)
    if isinstance(inner, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        inner.return_indices = False
    if isinstance(inner, nn.MaxPool2d) and inner is operator and _side_by_side(inner):
        return MaxPool(*_pair(inner.kernel_size))
    if node.op_type == "BatchNormalization":
        # ONNX's momentum weighs the old statistics, torch's the new ones.
        inner.momentum = 1 - _attribute(node, "momentum", 0.9)
        inner.num_batches_tracked = None
        return inner
    return operator


def _side_by_side(pool: nn.MaxPool2d) -> bool:
    plain = _pair(pool.padding) == (0, 0) and _pair(pool.dilation) == (1, 1) and not pool.ceil_mode
    return plain and _pair(pool.stride) == _pair(pool.kernel_size)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def _dropout_ratio(node: NodeProto, constants: Mapping[str, np.ndarray]) -> float:
    if len(node.input) > 1 and node.input[1] in constants:
        return float(constants[node.input[1]])
    return 0.5


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return values[0] if values else default


def _constant(node: NodeProto) -> TensorProto:
    (attribute,) = node.attribute
    if attribute.type == AttributeProto.TENSOR:
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    kind = np.float32 if "float" in attribute.name else np.int64
    return numpy_helper.from_array(
        np.array(helper.get_attribute_value(attribute), dtype=kind), node.output[0]
    )


def _plain(node: NodeProto, constants: Mapping[str, int]) -> bool:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    factors = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0))
    layout = (attributes.get("transA", 0), attributes.get("transB", 0))
    bias = node.input[2] if len(node.input) > 2 else ""
    return (
        factors == (1.0, 1.0)
        and layout == (0, 1)
        and node.input[1] in constants
        and (not bias or constants.get(bias) == 1)
    )


def _spelled_out(node: NodeProto, graph: GraphProto) -> list[NodeProto]:
    """Write a Gemm of any form as Transpose, MatMul, Mul and Add."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    base = node.output[0]
    nodes: list[NodeProto] = []

    def emit(kind: str, inputs: list[str], suffix: str, **options: object) -> str:
        name = f"{base}/{suffix}"
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **options))
        return name

    def scaled(tensor: str, factor: float, suffix: str) -> str:
        if factor == 1.0:
            return tensor
        constant = f"{base}/{suffix}"
        graph.initializer.append(numpy_helper.from_array(np.float32(factor), constant))
        return emit("Mul", [tensor, constant], f"{suffix}_scaled")

    left, right = node.input[0], node.input[1]
    if attributes.get("transA", 0):
        left = emit("Transpose", [left], "left", perm=[1, 0])
    if attributes.get("transB", 0):
        right = emit("Transpose", [right], "right", perm=[1, 0])
    result = scaled(emit("MatMul", [left, right], "product"), attributes.get("alpha", 1.0), "alpha")
    if len(node.input) > 2 and node.input[2]:
        bias = scaled(node.input[2], attributes.get("beta", 1.0), "beta")
        emit("Add", [result, bias], "sum")
    nodes[-1].output[0] = base
    return nodes
