"""Repair: fit one neuron to its targets and write it back into the weights.

The fit is done by NumPy on the processor, with the gradient written out: on one neuron and batches
of 64 inputs, automatic differentiation and calls to a device cost far more than the arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from modelfix_core.torch import TorchModel

from modelfix_vere.site import Site, is_norm
from modelfix_vere.suffix import Activation, norm_of

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam: PyTorch's


@dataclass(frozen=True)
class Neuron:
    """r(u) = w2 * act(w1 . u + b1) + b2, the neuron with an affine map behind it.

    Its parameters are one vector: w1, b1, w2 and b2. Without a layer that makes it, r(h) is
    w2 * h + b2, and they are w2 and b2.

    Attributes
    ----------
    start : ndarray of float32, [in + 3] or [2]
        The parameters before the repair.
    activation : Activation or None
        None where no layer makes the neuron.
    factor, summand : float
        Of a BatchNorm before the activation function; 1 and 0 where there is none.
    """

    start: np.ndarray
    activation: Activation | None
    factor: float = 1.0
    summand: float = 0.0

    def __call__(self, parameters: np.ndarray, source: np.ndarray) -> np.ndarray:
        """Compute r of u [R, in], or of the neuron's own values [R]."""
        return parameters[-2] * self._value(parameters, source)[0] + parameters[-1]

    def _value(
        self, parameters: np.ndarray, source: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the value before the affine map, and its derivative by w1 . u + b1."""
        if self.activation is None:
            return source, None
        z = (source @ parameters[:-3] + parameters[-3]) * self.factor + self.summand
        if self.activation.operator == "Sigmoid":
            value = 0.5 * (1 + np.tanh(0.5 * z))
            return value, value * (1 - value) * self.factor
        slope = np.where(z > 0, np.float32(1), np.float32(self.activation.leak))
        return slope * z, slope * self.factor

    def gradient(
        self,
        parameters: np.ndarray,
        source: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        weight: np.ndarray,
    ) -> np.ndarray | None:
        """Differentiate the weighted squared distance of r from [low, high].

        Parameters
        ----------
        parameters : ndarray of float32
        source : ndarray of float32, [R, in] or [R]
        low, high, weight : ndarray of float32, [R]
            Weights are positive.

        Returns
        -------
        ndarray of float32, or None
            None where the distance is 0 for all inputs.
        """
        value, slope = self._value(parameters, source)
        reached = parameters[-2] * value + parameters[-1]
        distance = reached - np.minimum(np.maximum(reached, low), high)
        if not distance.any():
            return None
        pull = 2 * weight * distance
        gradient = np.empty_like(parameters)
        gradient[-2], gradient[-1] = pull @ value, pull.sum()
        if slope is not None:
            pull *= parameters[-2] * slope
            gradient[:-3], gradient[-3] = pull @ source, pull.sum()
        return gradient


@dataclass(frozen=True)
class Aim:
    """What the neuron's value should be, by input.

    Attributes
    ----------
    source : ndarray of float32, [R, in] or [R]
        What `Neuron` takes.
    low, high : ndarray of float32, [R]
    faulty : ndarray of bool, [R]
    """

    source: np.ndarray
    low: np.ndarray
    high: np.ndarray
    faulty: np.ndarray


@torch.no_grad()
def read_neuron(net: TorchModel, site: Site, index: int) -> Neuron:
    """Read neuron `index` of the hidden vector with the net's weights of the moment."""
    affine = np.array([1.0, 0.0], dtype=np.float32)
    if site.maker is None or site.maker.bias is None:
        return Neuron(affine, None)
    weight, bias = (net.tensor(name)[index] for name in (site.maker.weight, site.maker.bias))
    made = torch.cat([weight, bias[None]]).cpu().numpy()
    *norms, last = site.making
    factor, summand = 1.0, 0.0
    for link in norms:
        times, plus = (float(value[index]) for value in norm_of(net, link))
        factor, summand = times * factor, times * summand + plus
    function = Activation(last.operator, last.parameter)
    return Neuron(np.concatenate([made, affine]), function, factor, summand)


def fit(
    neuron: Neuron,
    aim: Aim,
    rng: np.random.Generator,
    *,
    epochs: int = 30,
    learning_rate: float = 0.01,
    batch_size: int = 64,
    loss: Literal["two means", "one mean"] = "two means",
    progress: Callable[[int], None] = lambda epoch: None,
) -> np.ndarray:
    """Fit the neuron by Adam on the squared distance of its value from the targets.

    Parameters
    ----------
    neuron : Neuron
    aim : Aim
    rng : numpy Generator
        Of the order of the inputs.
    epochs : int
    learning_rate : float
    batch_size : int
        A batch in which all inputs are at their targets is skipped.
    loss : {"two means", "one mean"}
        Whether the faulty and the correct inputs of a batch are averaged apart, or all together.
    progress : callable
        Gets the number of each epoch, from 1, when it is done.

    Returns
    -------
    ndarray of float32
        The parameters after the last epoch.
    """
    parameters = neuron.start.copy()
    adam = _Adam(parameters, learning_rate)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(aim.low))
        weight = _weights(aim.faulty[order], batch_size, loss == "two means")
        parts = (aim.source[order], aim.low[order], aim.high[order], weight)
        for start in range(0, len(order), batch_size):
            batch = (part[start : start + batch_size] for part in parts)
            gradient = neuron.gradient(parameters, *batch)
            if gradient is not None:
                adam.step(gradient)
        progress(epoch)
    return parameters


def _weights(faulty: np.ndarray, size: int, apart: bool) -> np.ndarray:
    """Return what each input counts in the loss of its batch, float32 [R].

    With `apart` the faulty and the correct inputs of a batch count 1 together, each; else all do.
    """
    batch = np.arange(len(faulty)) // size
    kind = 2 * batch + faulty if apart else batch
    return (1 / np.bincount(kind)[kind]).astype(np.float32)


class _Adam:
    """Adam on one vector, in place."""

    def __init__(self, parameters: np.ndarray, rate: float) -> None:
        self.parameters, self.rate = parameters, rate
        self.mean, self.square = np.zeros_like(parameters), np.zeros_like(parameters)
        self.steps = 0

    def step(self, gradient: np.ndarray) -> None:
        self.steps += 1
        self.mean += (1 - BETAS[0]) * (gradient - self.mean)
        self.square += (1 - BETAS[1]) * (gradient * gradient - self.square)
        scale = (1 - BETAS[1] ** self.steps) ** 0.5
        rate = self.rate / (1 - BETAS[0] ** self.steps)
        self.parameters -= rate * self.mean / (np.sqrt(self.square) / scale + EPSILON)


@torch.no_grad()
def write_back(net: TorchModel, site: Site, index: int, parameters: np.ndarray) -> None:
    """Make r the neuron `index` of the net, exactly: the reader takes over the affine map.

    Parameters
    ----------
    net : TorchModel
        Changed in place: the neuron's row and bias in the maker, its column in the reader, and the
        reader's bias.
    site : Site
    index : int
    parameters : ndarray of float32
        As `fit` returns them.
    """
    values = torch.from_numpy(parameters).to(net.device)
    if site.maker is not None and site.maker.bias is not None:
        net.tensor(site.maker.weight)[index] = values[:-3]
        net.tensor(site.maker.bias)[index] = values[-3]
    factor, summand = values[-2], values[-1]
    # What a BatchNorm before the reader makes of the neuron's value: scale * value + shift.
    scale, shift = factor.new_ones(()), factor.new_zeros(())
    for link in site.suffix:
        if not is_norm(link):
            break
        times, plus = (value[index] for value in norm_of(net, link))
        scale, shift = times * scale, times * shift + plus
    column = net.tensor(site.reader.weight)[:, index]
    assert site.reader.bias is not None
    net.tensor(site.reader.bias).add_((scale * summand + (1 - factor) * shift) * column)
    column.mul_(factor)
