"""Where a model is repaired: a hidden vector between two dense layers, and the chain behind it.

Only the graph is read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from modelfix_core.errors import Unadaptable
from modelfix_core.model import Layer, Model
from onnx import NodeProto, helper

ALIKE = {"Dropout", "Identity"}  # do nothing in evaluation
RELAXED = {"Relu", "LeakyRelu", "Sigmoid"}
BORDERS = {
    *("Flatten", "Reshape", "Squeeze", "ReduceMean", "MaxPool", "AveragePool"),
    *("GlobalAveragePool", "GlobalMaxPool"),
}
DEFAULTS = {"LeakyRelu": ("alpha", 0.01), "BatchNormalization": ("epsilon", 1e-5)}


@dataclass(frozen=True)
class Link:
    """One operator of the chain of dense layers and activation functions before the logits.

    Attributes
    ----------
    kind : {"dense", "norm", "activation"}
    operator : str
        Of ONNX.
    layer : Layer or None
        For ``dense`` and ``norm``.
    parameter : float
        Slope of a LeakyRelu below 0, epsilon of a BatchNormalization, 0 for all others.
    input, output : str
        Tensor names.
    """

    kind: Literal["dense", "norm", "activation"]
    operator: str
    layer: Layer | None
    parameter: float
    input: str
    output: str


@dataclass(frozen=True)
class Site:
    """A vector h of D hidden neurons that is repaired, with what makes and what reads it.

    Attributes
    ----------
    source : str
        The tensor u that `maker` takes; h itself where no layer makes it.
    hidden : str
        The tensor h.
    maker : Layer or None
        The dense layer A; None where h is what enters the only dense layer (features).
    making : tuple of Link
        A BatchNorm between A and the activation function, if there is one, and that function.
    reader : Layer
        The next dense layer, whose column carries a neuron on.
    suffix : tuple of Link
        From h to the logits.
    """

    source: str
    hidden: str
    maker: Layer | None
    making: tuple[Link, ...]
    reader: Layer
    suffix: tuple[Link, ...]


def find_site(model: Model, relaxed: bool = False, layer: str | None = None) -> Site:
    """Find the neurons to repair.

    The rule of the study takes a square hidden dense layer. Its input is repaired if a hidden dense
    layer makes it, else its output.

    Parameters
    ----------
    model : Model
        Only its graph is read.
    relaxed : bool
        Whether any hidden dense layer will do, and the features before a lone one. Without a
        square layer it is the last but one hidden dense layer, as in the reference, or the last.
    layer : str, optional
        With `relaxed`, the hidden dense layer whose neurons are repaired.

    Raises
    ------
    Unadaptable
        If there is none.
    ModelfixError
        If `layer` is not a layer of the model.
    """
    chain, before = trailing(model)
    dense = [i for i, link in enumerate(chain) if link.kind == "dense"]
    if not dense or chain[-1].kind == "activation":
        raise Unadaptable("the model does not end with a dense layer")
    made = {i: _made(chain, i) for i in dense[:-1]}
    made = {i: making for i, making in made.items() if making}
    square = [i for i in made if len(set(model.weights[_layer(chain[i]).weight].shape)) == 1]
    if not relaxed:
        _refuse_before(before)
        if not square:
            raise Unadaptable(_why_not(model, [_layer(chain[i]) for i in dense]))
    if layer is not None:
        chosen = _named(model, chain, made, layer)
    elif square:
        position = dense.index(square[-1])
        previous = dense[position - 1] if position else -1
        chosen = previous if previous in made else square[-1]
    elif made:
        chosen = list(made)[-2:][0]
    else:
        return _checked(model, _features(chain, dense[0]))
    return _checked(model, _hidden(chain, chosen, made[chosen]))


def trailing(model: Model) -> tuple[list[Link], str]:
    """Return the operators before the logits that can be relaxed, in order.

    Returns
    -------
    chain : list of Link
        Without what does nothing in evaluation.
    before : str
        The operator at which the chain ends, ``""`` for the image itself.
    """
    graph = model.proto().graph
    makers = {name: node for node in graph.node for name in node.output}
    uses = _uses(model)
    layers = {layer.node: layer for layer in model.layers() if layer.kind != "conv"}
    chain: list[Link] = []
    tensor = model.output_name
    while tensor in makers:
        node = makers[tensor]
        link = _link(node, layers.get(node.name))
        shared = uses[tensor] > (tensor != model.output_name)
        twice = bool(chain) and link is not None and link.kind == chain[-1].kind == "activation"
        if shared or twice or (link is None and node.op_type not in ALIKE):
            return chain[::-1], node.op_type
        if link is not None:
            chain.append(link)
        tensor = node.input[0]
    return chain[::-1], ""


def _link(node: NodeProto, layer: Layer | None) -> Link | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    name, default = DEFAULTS.get(node.op_type, ("", 0.0))
    parameter = float(attributes.get(name, default))
    ends = (node.input[0], node.output[0])
    if layer is not None:
        kind: Literal["dense", "norm"] = "dense" if layer.kind == "dense" else "norm"
        return Link(kind, node.op_type, layer, parameter, *ends)
    if node.op_type in RELAXED:
        return Link("activation", node.op_type, None, parameter, *ends)
    return None


def _made(chain: Sequence[Link], position: int) -> tuple[Link, ...]:
    """Return what makes hidden neurons of a dense layer's output; empty where nothing does."""
    behind = chain[position + 1 :]
    norms = tuple(takewhile(is_norm, behind))
    making = (*norms, behind[len(norms)])
    reader = next(link for link in behind[len(making) :] if not is_norm(link))
    return making if making[-1].kind == "activation" and reader.kind == "dense" else ()


def is_norm(link: Link) -> bool:
    """Return whether the link is a BatchNorm."""
    return link.kind == "norm"


def _hidden(chain: Sequence[Link], position: int, making: tuple[Link, ...]) -> Site:
    suffix = tuple(chain[position + 1 + len(making) :])
    reader = next(_layer(link) for link in suffix if link.kind == "dense")
    return Site(
        chain[position].input, making[-1].output, _layer(chain[position]), making, reader, suffix
    )


def _features(chain: Sequence[Link], position: int) -> Site:
    first = chain[position]
    suffix = tuple(chain[position:])
    return Site(first.input, first.input, None, (), _layer(first), suffix)


def _layer(link: Link) -> Layer:
    assert link.layer is not None, "only activations have no layer"
    return link.layer


def _named(model: Model, chain, made, name: str) -> int:
    model.layer(name)
    places = {_layer(chain[i]).name: i for i in made}
    if name not in places:
        raise Unadaptable(
            f"layer {name!r} makes no hidden neurons before dense layers alone; "
            + (f"{', '.join(places)} would do" if places else "no layer does")
        )
    return places[name]


def _refuse_before(operator: str) -> None:
    if operator and operator not in BORDERS:
        raise Unadaptable(
            f"operator {operator} interrupts the chain from the last flattening or pooling to the "
            f"logits; VeRe relaxes dense layers, BatchNorm and {', '.join(sorted(RELAXED))}"
        )


def _why_not(model: Model, dense: Sequence[Layer]) -> str:
    if len(dense) == 1:
        return "no hidden fully-connected layer: its only dense layer gives the logits"
    shapes = [model.weights[layer.weight].shape for layer in dense]
    widths = " -> ".join(str(width) for width in (shapes[0][1], *(shape[0] for shape in shapes)))
    return (
        f"no square hidden fully-connected layer with an activation function behind it ({widths}); "
        "relaxed = true repairs any hidden layer"
    )


def _checked(model: Model, site: Site) -> Site:
    uses = _uses(model)
    for layer in filter(None, (site.maker, site.reader)):
        if layer.bias is None:
            raise Unadaptable(f"layer {layer.name!r} has no bias, which the repair must change")
        if any(uses[name] > 1 for name in layer.parameters):
            raise Unadaptable(
                f"layer {layer.name!r} shares its weights with another part of the model, so its "
                "neurons cannot be repaired alone"
            )
    return site


def _uses(model: Model) -> Counter[str]:
    return Counter(name for node in model.proto().graph.node for name in node.input)
