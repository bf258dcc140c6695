"""Where a model is edited: the layers that the editor changes, and an adapter in their place."""

from itertools import groupby

import numpy as np
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Layer, Model
from onnx import helper, numpy_helper

ADAPTER = "adapter"
STAGED = 5  # convolutions from which on a network is said to have stages


def trainable(model: Model) -> list[Layer]:
    """Return the dense and convolutional layers in graph order."""
    return [layer for layer in model.layers() if layer.kind != "batchnorm"]


def editable_layers(model: Model, choice: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the layers that the editor changes; empty for an adapter.

    Parameters
    ----------
    model : Model
    choice : str or tuple of str
        ``auto``, ``adapter`` or names of layers. ``auto`` takes the last feature stage but one of
        a residual network, the last convolutional stage of a network with a hidden dense layer, an
        adapter where features are concatenated (DenseNet), and in a network without stages the
        last layer before the classifier.

    Raises
    ------
    Unadaptable
        If a named layer does not exist, or an adapter has no dense classifier to stand before.
    """
    if isinstance(choice, tuple):
        known = {layer.name for layer in trainable(model)}
        unknown = [name for name in choice if name not in known]
        if unknown or not choice:
            raise Unadaptable(
                f"there is no layer {', '.join(unknown) or '(none named)'} to edit; the model has "
                f"{', '.join(sorted(known))}"
            )
        return choice
    if choice == "adapter" or _concatenates(model):
        _head(model)
        return ()
    layers = trainable(model)
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    if len(convolutions) < STAGED:
        return (layers[-2].name,)
    stages = [list(stage) for _, stage in groupby(convolutions, key=lambda x: x.output_shape[-1])]
    hidden = len(layers) - len(convolutions) > 1
    chosen = stages[-1] if hidden or len(stages) == 1 else stages[-2]
    return tuple(layer.name for layer in chosen)


def _concatenates(model: Model) -> bool:
    return any(node.op_type == "Concat" for node in model.proto().graph.node)


def _head(model: Model) -> Layer:
    """Return the classifier: a dense layer that gives the logits."""
    last = trainable(model)[-1]
    if last.kind != "dense" or last.output != model.output_name:
        raise Unadaptable("the last layer is not dense, so no adapter can stand before it")
    return last


def with_adapter(model: Model, width: int, seed: int) -> Model:
    """Insert h + L2(ELU(L1 h)) before the classifier; it is the identity, because L2 is 0.

    The paper's code draws L2 at random too; started at zero the model predicts as before.

    Parameters
    ----------
    model : Model
    width : int
        Hidden units.
    seed : int
        Of L1, uniform in +- 1 / sqrt(features) as torch's Linear.

    Returns
    -------
    Model
        With the layers ``adapter.0`` and ``adapter.1``.
    """
    head = _head(model)
    features = model.weights[head.weight].shape[1]
    bound = 1 / np.sqrt(features)
    draw = np.random.default_rng(seed).uniform
    weights = {
        f"{ADAPTER}.0.weight": draw(-bound, bound, (width, features)),
        f"{ADAPTER}.0.bias": draw(-bound, bound, width),
        f"{ADAPTER}.1.weight": np.zeros((features, width)),
        f"{ADAPTER}.1.bias": np.zeros(features),
    }
    proto = model.proto()
    graph = proto.graph
    graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    names = list(weights)
    position = next(i for i, node in enumerate(graph.node) if node.name == head.node)
    classifier = graph.node[position]
    classifier.input[0] = f"{ADAPTER}.sum"
    nodes = [
        helper.make_node("Gemm", [head.input, *names[:2]], [f"{ADAPTER}.z"], transB=1),
        helper.make_node("Elu", [f"{ADAPTER}.z"], [f"{ADAPTER}.h"]),
        helper.make_node("Gemm", [f"{ADAPTER}.h", *names[2:]], [f"{ADAPTER}.y"], transB=1),
        helper.make_node("Add", [head.input, f"{ADAPTER}.y"], [f"{ADAPTER}.sum"]),
    ]
    for offset, node in enumerate(nodes):
        node.name = f"{ADAPTER}_{offset}"
        graph.node.insert(position + offset, node)
    return Model(proto, model.name)
