"""Which weights matter for the failures but not for the rest: two impacts per weight, one front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from modelfix_core.approach import Localisation
from modelfix_core.dataset import Split
from modelfix_core.keras import KerasModel
from modelfix_core.keras.net import batches
from modelfix_core.model import Layer

from modelfix_arachne.front import pareto_front

ConvImpact = Literal["reference", "abs"]
BATCH = 250


@dataclass(frozen=True)
class Impact:
    """What one layer's weights do on a set of inputs.

    Attributes
    ----------
    gradient : ndarray of float64
        GL: absolute value of the loss gradient summed over the set; shape of the weight in ONNX.
    forward : ndarray of float64
        FI: share in the layer's outputs times these outputs' share in the logits; same shape.
    """

    gradient: np.ndarray
    forward: np.ndarray


def localise(
    net: KerasModel,
    layers: Sequence[Layer],
    failing: Split,
    passing: Split,
    conv_fi: ConvImpact = "reference",
) -> Localisation:
    """Find the weights on the Pareto front of the two costs (section "front" of the README).

    Both costs are the impact on the failing inputs over one plus the impact on the passing ones.

    Parameters
    ----------
    net : KerasModel
    layers : sequence of Layer
        Dense layers and convolutions without groups.
    failing, passing : Split
        Of about equal size: the gradient impact is a sum.
    conv_fi : {"reference", "abs"}

    Returns
    -------
    Localisation
        Weights by falling gradient cost, which is their score.
    """
    wrong = impacts(net, layers, failing, conv_fi)
    right = impacts(net, layers, passing, conv_fi)
    gradient = np.concatenate(
        [(wrong[k].gradient / (1 + right[k].gradient)).ravel() for k in wrong]
    )
    forward = np.concatenate([(wrong[k].forward / (1 + right[k].forward)).ravel() for k in wrong])
    front = pareto_front(gradient, forward)
    ends = np.cumsum([impact.gradient.size for impact in wrong.values()])
    position = np.searchsorted(ends, front, side="right")
    starts = np.append(0, ends[:-1])
    names = list(wrong)
    return Localisation(
        "weight", [names[p] for p in position], front - starts[position], gradient[front]
    )


def impacts(
    net: KerasModel, layers: Sequence[Layer], inputs: Split, conv_fi: ConvImpact = "reference"
) -> dict[str, Impact]:
    """Compute gradient and forward impact of every weight of `layers` on `inputs`.

    Returns
    -------
    dict of str to Impact
        By layer name.
    """
    gradients = net.weight_gradients(inputs, inputs.y, [layer.weight for layer in layers], BATCH)
    backward = backward_shares(net, layers, inputs)
    forward = _forward_impacts(net, layers, inputs, backward, conv_fi)
    return {
        layer.name: Impact(
            np.abs(gradients[layer.weight].astype(np.float64)),
            net.layouts[layer.weight].to_onnx(forward[layer.name]),
        )
        for layer in layers
    }


def backward_shares(
    net: KerasModel, layers: Sequence[Layer], inputs: Split
) -> dict[str, np.ndarray]:
    """Compute b: each output's mean share in the absolute gradient of the summed logits.

    Outputs are those after the layer's activation function. A zero gradient has no shares.

    Returns
    -------
    dict of str to ndarray of float64
        By layer name, [C, H, W] or [J].
    """
    tensors = [layer.activated for layer in layers]
    totals = {layer.name: np.zeros(layer.output_shape) for layer in layers}
    for batch in inputs.batches(BATCH):
        found = net.gradients(inputs.images(batch), tensors, batch_size=BATCH)
        for layer in layers:
            size = np.abs(found[layer.activated], dtype=np.float64)
            whole = size.sum(axis=tuple(range(1, size.ndim)), keepdims=True)
            totals[layer.name] += _ratio(size, whole).sum(axis=0)
    return {name: total / len(inputs) for name, total in totals.items()}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, with 0 / 0 = 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def _forward_impacts(
    net: KerasModel,
    layers: Sequence[Layer],
    inputs: Split,
    backward: Mapping[str, np.ndarray],
    conv_fi: ConvImpact,
) -> dict[str, np.ndarray]:
    """Compute FI as Keras holds the weights, without a loop over weights, outputs or inputs.

    The share of a weight in its output, summed over inputs and positions, is the weight times the
    gradient at the weight of a linear layer whose outputs are weighted by b over the norm.
    """
    terms = [_term(net, layer, backward[layer.name], conv_fi) for layer in layers]
    sources = [net.values[_step(net, layer).inputs[0]] for layer in layers]
    compute = keras.Model(net.keras.inputs[0], sources)
    for batch in batches(inputs, BATCH):
        found = compute(tf.constant(batch), training=False)
        for term, value in zip(terms, found if len(terms) > 1 else [found], strict=True):
            term.add(value)
    return {
        layer.name: term.total() / len(inputs) for layer, term in zip(layers, terms, strict=True)
    }


def _step(net: KerasModel, layer: Layer):
    return next(step for step in net.steps if step.output == layer.output)


def _term(net: KerasModel, layer: Layer, backward: np.ndarray, conv_fi: ConvImpact):
    (step,) = _step(net, layer).layers
    if layer.kind == "dense":
        return _Absolute(tf.matmul, step.kernel, backward)
    weighted = np.moveaxis(backward, 0, -1)

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.convolution(
            x, kernel, step.strides, step.padding.upper(), dilations=step.dilation_rate
        )

    kind = _Signed if conv_fi == "reference" else _Absolute
    return kind(convolve, step.kernel, weighted)


class _Absolute:
    """Absolute terms over their sum for each input (dense layers; convolutions with ``abs``)."""

    def __init__(self, linear, kernel, backward: np.ndarray) -> None:
        self.linear = linear
        self.kernel = tf.abs(tf.convert_to_tensor(kernel))
        self.backward = tf.constant(backward[None], tf.float32)
        self.sum = np.zeros(self.kernel.shape)

    def add(self, o: tf.Tensor) -> None:
        o = tf.abs(o)
        norm = self.linear(o, self.kernel)
        weights = tf.math.divide_no_nan(self.backward, norm)
        self.sum += _weight_gradient(self.linear, o, self.kernel, weights)

    def total(self) -> np.ndarray:
        return self.kernel.numpy() * self.sum


class _Signed:
    """Signed terms over the sum of the absolute ones over all inputs (``reference``).

    The norm is the same for all inputs, so the sums over the inputs can be taken first.
    """

    def __init__(self, linear, kernel, backward: np.ndarray) -> None:
        self.linear = linear
        self.kernel = tf.cast(tf.convert_to_tensor(kernel), tf.float64)
        self.backward = tf.constant(backward[None], tf.float64)
        self.sum: tf.Tensor | float = 0.0
        self.size: tf.Tensor | float = 0.0

    def add(self, o: tf.Tensor) -> None:
        o = tf.cast(o, tf.float64)
        self.sum += tf.reduce_sum(o, axis=0, keepdims=True)
        self.size += tf.reduce_sum(tf.abs(o), axis=0, keepdims=True)

    def total(self) -> np.ndarray:
        norm = self.linear(self.size, tf.abs(self.kernel))
        weights = tf.math.divide_no_nan(self.backward, norm)
        shares = _weight_gradient(self.linear, self.sum, self.kernel, weights)
        return self.kernel.numpy() * shares


def _weight_gradient(linear, o: tf.Tensor, kernel: tf.Tensor, weights: tf.Tensor) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = linear(o, kernel)
    return tape.gradient(outputs, kernel, output_gradients=weights).numpy().astype(np.float64)
