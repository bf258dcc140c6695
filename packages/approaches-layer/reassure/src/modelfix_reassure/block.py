"""The trailing block of dense layers, read from the ONNX graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from modelfix_core.model import Model
from onnx import helper, numpy_helper

PASSING = {"Identity", "Dropout"}
SLOPES = {"Relu": 0.0, "LeakyRelu": 0.01}  # of the negative side; LeakyRelu's is ONNX's default


@dataclass(frozen=True)
class Affine:
    """One affine map ``x -> weight x + bias``, in float64.

    Attributes
    ----------
    weight : ndarray of float64, [out, in]
    bias : ndarray of float64, [out]
    source : str or None
        Initializer that holds `weight` unchanged; None where layers were folded into it.
    """

    weight: np.ndarray
    bias: np.ndarray
    source: str | None = None

    def after(self, other: "Affine") -> "Affine":
        """Return this map applied to the result of `other`."""
        return Affine(self.weight @ other.weight, self.weight @ other.bias + self.bias)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply to rows [N, in]."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Block:
    """Affine maps with a piecewise linear activation between each two of them.

    Attributes
    ----------
    features : str
        Tensor that enters the block.
    maps : sequence of Affine, [H + 1]
    slopes : sequence of float, [H]
        Slope of each activation for negative input: 0 for ReLU.
    dense : int
        Dense layers in the graph that the block stands for.
    stopped : str
        Why the block does not reach further towards the input; for people.
    """

    features: str
    maps: Sequence[Affine]
    slopes: Sequence[float]
    dense: int
    stopped: str

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [len(affine.bias) for affine in self.maps[:-1]]

    def preactivations(self, features: np.ndarray) -> list[np.ndarray]:
        """Compute the input of every activation, then the logits.

        Parameters
        ----------
        features : ndarray of float64, [N, d]

        Returns
        -------
        list of ndarray of float64, [H + 1] of [N, width]
        """
        steps, h = [], features
        for affine, slope in zip(self.maps, [*self.slopes, 1.0], strict=True):
            steps.append(affine(h))
            h = np.where(steps[-1] >= 0, steps[-1], slope * steps[-1])
        return steps

    def patterns(self, features: np.ndarray) -> np.ndarray:
        """Compute which hidden neurons are active, bool [N, sum of hidden]; zero is active."""
        return np.concatenate(self.preactivations(features)[:-1], axis=1) >= 0

    def layers_of(self, patterns: np.ndarray) -> list[np.ndarray]:
        """Divide patterns [..., sum of hidden] by layer."""
        return np.split(patterns, np.cumsum(self.hidden)[:-1], axis=-1)


def find_block(model: Model) -> Block:
    """Walk back from the logits over dense layers, (Leaky)ReLU, Dropout, Identity and BatchNorm.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Block
        The longest such chain; it begins with a dense layer and may be empty (`dense` = 0).
    """
    reader = _Reader(model)
    chain, stopped = reader.chain(model.output_name)
    while chain and chain[0].op_type != "Gemm":
        chain.pop(0)
    features = chain[0].input[0] if chain else model.output_name
    maps: list[Affine] = []
    slopes: list[float] = []
    pending: Affine | None = None
    for node in chain:
        if node.op_type in PASSING:
            continue
        if node.op_type in SLOPES and pending is not None:
            maps.append(pending)
            slopes.append(_attribute(node, "alpha", SLOPES[node.op_type]))
            pending = None
        else:
            affine = reader.affine(node)
            pending = affine if pending is None else affine.after(pending)
    if pending is not None:
        maps.append(pending)
    return Block(features, maps, slopes, sum(n.op_type == "Gemm" for n in chain), stopped)


class _Reader:
    """Looks things up in the graph of a model."""

    def __init__(self, model: Model) -> None:
        graph = model.proto().graph
        self.producers = {name: node for node in graph.node for name in node.output}
        self.constants = {t.name: t for t in graph.initializer}
        self.batchnorms = {layer.node: layer.input_shape for layer in model.layers("batchnorm")}

    def chain(self, tensor: str) -> tuple[list[onnx.NodeProto], str]:
        nodes: list[onnx.NodeProto] = []
        while (node := self.producers.get(tensor)) is not None:
            if not self._allowed(node, nodes):
                return nodes[::-1], f"the operator {node.op_type} before it ends it"
            nodes.append(node)
            tensor = node.input[0]
        return nodes[::-1], "it begins at the input"

    def _allowed(self, node: onnx.NodeProto, later: list[onnx.NodeProto]) -> bool:
        match node.op_type:
            case "Gemm":
                return all(name in self.constants for name in node.input[1:] if name)
            case "Relu" | "LeakyRelu":
                # An activation of the logits themselves leaves no affine map to patch.
                return any(n.op_type == "Gemm" for n in later)
            case "BatchNormalization":
                return len(self.batchnorms.get(node.name, (0, 0))) == 1
            case "Dropout":
                return not (len(node.input) > 2 and node.input[2]) or not bool(
                    self._constant(node.input[2], True)
                )
            case other:
                return other in PASSING

    def _constant(self, name: str, default: object) -> np.ndarray:
        tensor = self.constants.get(name)
        return np.asarray(default) if tensor is None else numpy_helper.to_array(tensor)

    def affine(self, node: onnx.NodeProto) -> Affine:
        values = [
            numpy_helper.to_array(self.constants[n]).astype(float) for n in node.input[1:] if n
        ]
        if node.op_type == "BatchNormalization":
            scale, shift, mean, variance = values
            factor = scale / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
            return Affine(np.diag(factor), shift - factor * mean)
        weight = values[0] * _attribute(node, "alpha", 1.0)
        weight = weight if _attribute(node, "transB", 0) else weight.T
        bias = np.zeros(len(weight))
        if len(values) > 1:
            bias = bias + values[1].reshape(-1) * _attribute(node, "beta", 1.0)
        return Affine(weight, bias, node.input[1] if _plain(node) else None)


def _plain(node: onnx.NodeProto) -> bool:
    return bool(_attribute(node, "transB", 0)) and _attribute(node, "alpha", 1.0) == 1.0


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
