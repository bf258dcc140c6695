"""The chain behind the hidden vector as alternating affine maps and activation functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from modelfix_core.torch import TorchModel
from torch import Tensor

from modelfix_vere.site import Link


@dataclass(frozen=True)
class Activation:
    """An activation function: its ONNX operator and, for LeakyRelu, its slope below 0."""

    operator: str
    leak: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """Apply it to every element."""
        if self.operator == "Sigmoid":
            return z.sigmoid()
        return torch.where(z > 0, z, self.leak * z)


@dataclass(frozen=True)
class Suffix:
    """g: affine, activation, affine, ..., affine, from h [D] to logits [C].

    Attributes
    ----------
    affine : sequence of (Tensor [out, in], Tensor [out])
        One more than there are activation functions.
    activations : sequence of Activation
    """

    affine: Sequence[tuple[Tensor, Tensor]]
    activations: Sequence[Activation]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute logits [..., C] of hidden vectors [..., D]."""
        value = hidden
        for position, (weight, bias) in enumerate(self.affine):
            value = torch.nn.functional.linear(value, weight, bias)
            if position < len(self.activations):
                value = self.activations[position](value)
        return value


@torch.no_grad()
def read_suffix(net: TorchModel, links: Sequence[Link]) -> Suffix:
    """Read the chain with the net's weights of the moment; BatchNorms are folded.

    Parameters
    ----------
    net : TorchModel
    links : sequence of Link
        As in `Site.suffix`.
    """
    affine: list[tuple[Tensor, Tensor]] = []
    activations: list[Activation] = []
    linear: list[Link] = []
    for link in links:
        if link.kind == "activation":
            affine.append(_composed(net, linear))
            activations.append(Activation(link.operator, link.parameter))
            linear = []
        else:
            linear.append(link)
    affine.append(_composed(net, linear))
    return Suffix(affine, activations)


def norm_of(net: TorchModel, link: Link) -> tuple[Tensor, Tensor]:
    """Return factor and summand per unit, [D] each, of a BatchNorm in evaluation."""
    layer = link.layer
    assert layer is not None
    weight, bias, mean, variance = (
        net.tensor(name).detach() for name in (*layer.parameters, *layer.statistics)
    )
    factor = weight / (variance + link.parameter).sqrt()
    return factor, bias - factor * mean


def _composed(net: TorchModel, links: Sequence[Link]) -> tuple[Tensor, Tensor]:
    weight, bias = _affine(net, links[0])
    for link in links[1:]:
        outer, summand = _affine(net, link)
        weight, bias = outer @ weight, outer @ bias + summand
    return weight, bias


def _affine(net: TorchModel, link: Link) -> tuple[Tensor, Tensor]:
    if link.kind == "norm":
        factor, summand = norm_of(net, link)
        return factor.diag(), summand
    layer = link.layer
    assert layer is not None
    weight = net.tensor(layer.weight).detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else net.tensor(layer.bias).detach()
    return weight, bias
