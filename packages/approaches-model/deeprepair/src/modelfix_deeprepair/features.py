"""Style as statistics of features: no image is made, the first layer's output is changed."""

import numpy as np
import torch
from modelfix_core.torch import TorchModel, augment
from modelfix_core.torch.augment import Mixing
from modelfix_core.torch.training import Views
from torch import Tensor

SMALLEST = 1e-5  # added to variances


class FeatureStyle:
    """Gives the first layer's features of some views the channel statistics of style images.

    Parameters
    ----------
    net : TorchModel
        Its first layer is a convolution.
    styles : Tensor of float, [S, C, H, W]
    share : float
        Probability that a chain of operations has the style.
    alpha : float
        Strength in [0, 1].

    Notes
    -----
    The style of a chain cannot be mixed with other operations here. A view gets it with the weight
    that its styled chains would have in the mixture; that weight has the same distribution as with
    stylised images, and is drawn by itself.
    """

    def __init__(self, net: TorchModel, styles: Tensor, share: float, alpha: float) -> None:
        self.net, self.styles, self.share, self.alpha = net, styles, share, alpha
        self.layer = net.model.layers()[0].name
        place = net.place(self.layer)
        [operator] = [step.operator for step in net.steps if place in step.outputs]
        self.pending: tuple[Tensor, Tensor] | None = None
        net.operators[operator].register_forward_hook(self._hook)

    def views(self, images: Views, mixing: Mixing) -> Views:
        """Return views whose next pass through the net is styled."""

        def views(x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
            stack = images(x, y, rng)
            size = (len(stack) - 1, len(x))
            styled = rng.random((*size, mixing.width)) < self.share
            shares = rng.dirichlet(np.ones(mixing.width), size=size)
            weight = augment.draw_weights(mixing, rng, size) * (styled * shares).sum(axis=-1)
            weight = np.concatenate([np.zeros((1, len(x))), weight * self.alpha])
            index = rng.integers(len(self.styles), size=weight.size)
            self.pending = (
                torch.as_tensor(weight.ravel(), dtype=x.dtype, device=x.device),
                torch.from_numpy(index).to(x.device),
            )
            return stack

        return views

    def _hook(self, _operator: torch.nn.Module, _inputs: tuple, features: Tensor) -> Tensor:
        if self.pending is None:
            return features
        (weight, index), self.pending = self.pending, None
        with torch.no_grad():
            [style] = self.net.activations(self.styles, [self.layer]).values()
        return torch.lerp(
            features,
            with_statistics(features, style[index]),
            weight.to(features.dtype).view(-1, 1, 1, 1),
        )


def with_statistics(features: Tensor, style: Tensor) -> Tensor:
    """Return features [N, C, H, W] with the channel means and deviations of those of `style`."""
    mean, std = _statistics(features)
    style_mean, style_std = _statistics(style)
    return (features - mean) / std * style_std + style_mean


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
    return mean, (variance + SMALLEST).sqrt()
