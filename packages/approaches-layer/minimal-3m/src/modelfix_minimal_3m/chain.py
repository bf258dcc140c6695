"""The dense layers that end the model, with ReLU between them, read from the ONNX graph."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from modelfix_core.model import Layer, Model
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Dense:
    """One dense layer of the chain, in float64.

    Attributes
    ----------
    layer : Layer
    weight : ndarray of float64, [out, in]
    bias : ndarray of float64, [out]
    """

    layer: Layer
    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, h: np.ndarray, change: np.ndarray | None = None) -> np.ndarray:
        """Apply the layer, its weight changed by `change`, to rows [N, in]."""
        weight = self.weight if change is None else self.weight + change
        return h @ weight.T + self.bias


@dataclass(frozen=True)
class Chain:
    """Dense layers with ReLU between each two; the last gives the logits.

    Attributes
    ----------
    layers : sequence of Dense
    stopped : str
        Why the chain does not reach further towards the input; for people.
    """

    layers: Sequence[Dense]
    stopped: str

    def names(self) -> list[str]:
        """Names of the layers, from the input to the logits."""
        return [dense.layer.name for dense in self.layers]

    def last(self, count: int) -> "Chain":
        """Return the chain of the last `count` layers."""
        return Chain(self.layers[-count:], self.stopped)

    def logits(self, h: np.ndarray, changes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute the logits.

        Parameters
        ----------
        h : ndarray of float64, [N, in]
            Input of the first layer.
        changes : mapping of str to ndarray
            What to add to the weights of that name.

        Returns
        -------
        ndarray of float64, [N, K]
        """
        for dense in self.layers[:-1]:
            h = np.maximum(dense(h, changes.get(dense.layer.weight)), 0.0)
        last = self.layers[-1]
        return last(h, changes.get(last.layer.weight))


def find_chain(model: Model) -> Chain:
    """Walk back from the logits over dense layers, ReLU, Identity and Dropout (in inference).

    Returns
    -------
    Chain
        The longest such chain, without layers where the logits are not a dense layer's output.
    """
    graph = model.proto().graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dense = {layer.node: layer for layer in model.layers("dense")}
    uses = Counter(name for node in graph.node for name in node.input)
    found: list[Dense] = []
    activated = True  # the logits themselves need no ReLU after them
    tensor, stopped = model.output_name, "it begins at the input"
    while (node := producers.get(tensor)) is not None:
        if node.op_type == "Gemm" and activated:
            layer = dense.get(node.name)
            if layer is None or not _is_plain(node) or uses[layer.weight] > 1:
                stopped = f"the weight of {node.name} is shared or not a plain constant"
                break
            found.append(_dense(model, layer))
            activated = False
        elif node.op_type == "Relu" and found:
            activated = True
        elif not _passes(node, constants):
            stopped = f"the operator {node.op_type} before it ends it"
            break
        tensor = node.input[0]
    return Chain(found[::-1], stopped)


def _dense(model: Model, layer: Layer) -> Dense:
    weight = model.weights[layer.weight].astype(float)
    bias = np.zeros(len(weight)) if layer.bias is None else model.weights[layer.bias].astype(float)
    return Dense(layer, weight, np.broadcast_to(bias.reshape(-1), len(weight)))


def _is_plain(node: onnx.NodeProto) -> bool:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return {**plain, "transB": 0, **attributes} == plain


def _passes(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Dropout":
        mode = node.input[2] if len(node.input) > 2 else ""
        if not mode:
            return True
        return mode in constants and not numpy_helper.to_array(constants[mode]).any()
    return node.op_type == "Identity"
