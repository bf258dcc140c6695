"""The hidden vector whose neurons CARE scales, and how scaling becomes weights of the model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Layer, Model


@dataclass(frozen=True)
class Hidden:
    """A vector of J hidden neurons.

    Attributes
    ----------
    tensor : str
        Its values before the activation function.
    layer : Layer
        The layer whose weights are scaled: the one that makes the vector (a dense layer, or the
        BatchNorm behind it), or the classifier, where the vector is what enters it.
    is_made : bool
        Whether `layer` makes the vector.
    size : int
        J.
    """

    tensor: str
    layer: Layer
    is_made: bool
    size: int

    def folded(
        self, model: Model, neurons: np.ndarray, factors: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the weights that scale the neurons' values.

        Parameters
        ----------
        model : Model
            The original.
        neurons : ndarray of int64, [r]
        factors : ndarray, [r]

        Returns
        -------
        dict of str to ndarray of float32
            Exact for every activation function, because what is scaled comes before it.
        """
        names = self.layer.parameters if self.is_made else (self.layer.weight,)
        return {name: self._scaled(model.weights[name], neurons, factors) for name in names}

    def _scaled(self, weight: np.ndarray, neurons: np.ndarray, factors: np.ndarray) -> np.ndarray:
        scaled = weight.T.copy() if not self.is_made else weight.copy()
        scale = factors.reshape(-1, *[1] * (weight.ndim - 1))
        scaled[neurons] = scaled[neurons] * scale
        return scaled if self.is_made else np.ascontiguousarray(scaled.T)

    def positions(self, neurons: np.ndarray, model: Model) -> tuple[str, np.ndarray]:
        """Return how a localisation names the neurons: its kind, and positions [r, m].

        Neurons that `layer` makes are its units. Others are blamed by the m weights of the
        classifier that carry them on.
        """
        if self.is_made:
            return "neuron", neurons[:, None]
        classes = model.weights[self.layer.weight].shape[0]
        return "weight", np.arange(classes) * self.size + neurons[:, None]


def find_hidden(model: Model, name: str | None = None) -> Hidden:
    """Find the hidden vector to repair: the last, or that of the layer called `name`.

    Parameters
    ----------
    model : Model
        Only its graph is read.
    name : str, optional
        A hidden dense layer; default the last one, or the vector that enters the classifier where
        there is none.

    Raises
    ------
    Unadaptable
        If there is no such vector, or it has fewer than two neurons.
    ModelfixError
        If `name` is not a layer of the model.
    """
    dense = model.layers("dense")
    if not dense:
        raise Unadaptable("the model has no dense layer, so no hidden vector before a classifier")
    classifier = dense[-1]
    uses = _uses(model)
    if name is not None:
        layer = model.layer(name)
        if layer not in dense[:-1]:
            what = "the classifier" if layer == classifier else f"a {layer.kind} layer"
            raise Unadaptable(
                f"layer {name!r} is {what}; CARE scales neurons of a hidden dense layer"
            )
        hidden = _made_by(layer, model, uses)
    elif len(dense) > 1:
        hidden = _made_by(dense[-2], model, uses)
    else:
        hidden = _entering(classifier, model, uses)
    if hidden.size < 2:
        raise Unadaptable("its last hidden vector has a single neuron; CARE needs two or more")
    return hidden


def _made_by(layer: Layer, model: Model, uses: Mapping[str, int]) -> Hidden:
    size = model.weights[layer.weight].shape[0]
    norms = [norm for norm in model.layers("batchnorm") if norm.input == layer.output]
    if norms and uses[layer.output] == 1:
        layer = norms[0]
    if any(uses[parameter] > 1 for parameter in layer.parameters):
        raise Unadaptable(
            f"layer {layer.name!r} shares its weights with another part of the model, so its "
            "neurons cannot be scaled alone"
        )
    return Hidden(layer.output, layer, True, size)


def _entering(classifier: Layer, model: Model, uses: Mapping[str, int]) -> Hidden:
    if model.layers()[0] == classifier:
        raise Unadaptable("the model has no hidden layer: its classifier reads the image itself")
    if uses[classifier.input] > 1 or uses[classifier.weight] > 1:
        raise Unadaptable(
            "the vector that enters the classifier is used elsewhere too, so its neurons cannot be "
            "scaled through the classifier's weights"
        )
    size = model.weights[classifier.weight].shape[1]
    return Hidden(classifier.input, classifier, False, size)


def _uses(model: Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.proto().graph.node:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    return counts
