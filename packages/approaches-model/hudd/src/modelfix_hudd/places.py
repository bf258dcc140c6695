"""Where in a graph heatmaps are taken, and which dense layers end it."""

from dataclasses import dataclass
from math import prod

import numpy as np
from modelfix_core.model import ACTIVATIONS, Layer, Model
from onnx import NodeProto

# Relevance passes them unchanged, so dense layers with these between them form one tail.
PASSING = ACTIVATIONS | {"Dropout", "Identity", "Flatten"}
WITHIN_BLOCK = ACTIVATIONS | {"BatchNormalization", "Dropout", "Identity"}
# For these, activation times gradient is the relevance of the rule without bias and stabiliser.
EXACT = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "BatchNormalization",
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "Dropout",
    "Identity",
    "Flatten",
    "Reshape",
    "Add",
    "Sub",
    "Div",
    "Concat",
    "Constant",
    "Pad",
}


@dataclass(frozen=True)
class Place:
    """A tensor whose heatmap is compared.

    Attributes
    ----------
    layer : str
        Whose input (dense) or output with what follows it directly (convolution) it is.
    tensor : str
    size : int
        Values for one image, by the graph's shapes.
    """

    layer: str
    tensor: str
    size: int


@dataclass(frozen=True)
class Outline:
    """A model as heatmaps see it.

    Attributes
    ----------
    tail : tuple of Layer
        The dense layers that end the model, in order; empty where another layer gives the logits.
    features : str
        Tensor that enters the tail; the logits where there is none.
    places : tuple of Place
        In graph order.
    approximate : tuple of str
        Operators for which the relevance is not exact.
    """

    tail: tuple[Layer, ...]
    features: str
    places: tuple[Place, ...]
    approximate: tuple[str, ...]


class _Graph:
    def __init__(self, model: Model) -> None:
        nodes = list(model.proto().graph.node)
        self.model = model
        self.producer = {name: node for node in nodes for name in node.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.order = {name: i for i, node in enumerate(nodes) for name in node.output}
        self.layers = {layer.output: layer for layer in model.layers()}

    def before(self, tensor: str) -> set[str]:
        """Return the tensors from which `tensor` is computed, itself included."""
        found, waiting = set(), [tensor]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.producer[name].input if name in self.producer else ()
        return found

    def tail(self) -> tuple[list[Layer], str]:
        """Return the dense layers that end the model, and the tensor that enters them."""
        layers: list[Layer] = []
        tensor = place = self.model.output_name
        while tensor in self.producer:
            layer = self.layers.get(tensor)
            if layer is not None and layer.kind == "dense":
                layers.insert(0, layer)
                tensor = place = layer.input
            elif layers and self.producer[tensor].op_type in PASSING:
                tensor = self.producer[tensor].input[0]
            else:
                break
            if len(self.users.get(tensor, ())) > 1:
                break
        return layers, place

    def end_of_block(self, tensor: str) -> str:
        """Follow a layer's output through normalisation and activation."""
        while len(users := self.users.get(tensor, [])) == 1 and users[0].op_type in WITHIN_BLOCK:
            tensor = users[0].output[0]
        return tensor


def outline(model: Model, most: int) -> Outline:
    """Find the places of a model: inputs of dense layers and outputs of convolutional blocks.

    The image and what is computed from it without any layer are no places. Of more than `most`
    places the inputs of dense layers stay, last ones first, and convolutions at even distances.

    Parameters
    ----------
    model : Model
    most : int

    Returns
    -------
    Outline
    """
    graph = _Graph(model)
    tail, features = graph.tail()
    used = graph.before(model.output_name)
    tensors: dict[str, Layer] = {}
    for layer in model.layers():
        tensor = layer.input if layer.kind == "dense" else graph.end_of_block(layer.output)
        inner = graph.layers.keys() & graph.before(tensor)
        if layer.kind != "batchnorm" and tensor in used and inner and tensor != model.output_name:
            tensors.setdefault(tensor, layer)
    places = [
        Place(layer.name, tensor, _size(layer))
        for tensor, layer in sorted(tensors.items(), key=lambda item: graph.order[item[0]])
    ]
    dense = [p for p in places if tensors[p.tensor].kind == "dense"][-most:]
    others = [p for p in places if tensors[p.tensor].kind != "dense"]
    count = min(most - len(dense), len(others))
    spread = np.linspace(0, len(others) - 1, count).round().astype(int)
    kept = {*dense, *(others[i] for i in spread)}
    kinds = {node.op_type for name, node in graph.producer.items() if name in used}
    return Outline(
        tuple(tail),
        features,
        tuple(place for place in places if place in kept),
        tuple(sorted(kinds - EXACT)),
    )


def _size(layer: Layer) -> int:
    """Return the number of values at a layer's place for one image."""
    return prod(layer.input_shape if layer.kind == "dense" else layer.output_shape)
