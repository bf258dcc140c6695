"""The editor: a few gradient steps on one image and some layers, out of place.

Sinitsin et al. (ICLR 2020), section 3; the steps are RMSProp's, as in their code.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from modelfix_core.torch.bridge import TorchModel
from torch import Tensor, nn
from torch.func import functional_call

Weights = Mapping[str, Tensor]


def edit_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the wanted label is behind the best other one, 0 where it is not behind.

    Parameters
    ----------
    logits : Tensor, [N, K]
    y : Tensor of int64, [N]
        Wanted labels.

    Returns
    -------
    Tensor, []
        Mean over the images; 0 if and only if each wanted label attains the maximum (ties count).
    """
    wanted = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1, keepdim=True)
    return (others - wanted).clamp_min(0).mean()


class Halves(nn.Module):
    """A net cut before its editable layers, so that only what an edit changes is computed again.

    Parameters
    ----------
    net : TorchModel
        Shared, not copied.
    layers : tuple of str
        The editable layers.

    Attributes
    ----------
    cut : str
        The last tensor from which the logits follow and that no editable layer has part in.
    pure : bool
        Whether the part before the cut computes the same in training and in evaluation mode.
    """

    def __init__(self, net: TorchModel, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.names = [name for layer in layers for name in net.model.layer(layer).parameters]
        self.cut = self._cut(layers)
        kinds = {step.kind for step in net.between([net.model.input_name], [self.cut])}
        self.pure = not kinds & {"BatchNormalization", "Dropout"}
        parameters = net.parameter_names
        self._paths = {name: f"net.{parameters[name]}" for name in self.names}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The live editable parameters by initializer name."""
        return {name: self.net.tensor(name) for name in self.names}

    def prefix(self, x: Tensor) -> Tensor:
        """Compute the cut tensor of images [N, C, H, W]."""
        if self.cut == self.net.model.input_name:
            return x
        return self.net.run({self.net.model.input_name: x}, [self.cut])[self.cut]

    def forward(self, h: Tensor) -> Tensor:
        """Compute logits [N, K] from the cut tensor."""
        output = self.net.model.output_name
        return self.net.run({self.cut: h}, [output])[output]

    def suffix(self, h: Tensor, weights: Weights | None = None) -> Tensor:
        """Compute logits [N, K] from the cut tensor, with other values of the editable layers."""
        if weights is None:
            return self(h)
        return functional_call(self, {self._paths[n]: w for n, w in weights.items()}, (h,))

    def _cut(self, layers: tuple[str, ...]) -> str:
        edited = {self.net.model.layer(layer).output for layer in layers}
        source, output = self.net.model.input_name, self.net.model.output_name
        best = source
        for step in self.net.between([source], [output]):
            if edited & set(step.outputs):
                return best
            name = step.outputs[0]
            if self._separates(name, output):
                best = name
        return best

    def _separates(self, name: str, output: str) -> bool:
        from modelfix_core.errors import ModelfixError

        try:
            self.net.between([name], [output])
        except ModelfixError:
            return False
        return True


class Edit(NamedTuple):
    """What came of an edit.

    Attributes
    ----------
    weights : mapping of str to Tensor
        The editable parameters after it; the live ones if no step was needed.
    loss : Tensor, []
        The edit loss that is left; 0 after a success.
    steps : int
    success : bool
    """

    weights: Weights
    loss: Tensor
    steps: int
    success: bool


class Editor(nn.Module):
    """Gradient steps until the model gives the wanted label.

    Parameters
    ----------
    halves : Halves
        In evaluation mode when editing.
    steps : int
        At most so many.
    alpha, epsilon : float
        Rate of a step, and what is added to the second moment inside of the root.
    beta : nn.Parameter, []
        Decay of the second moment; learned with the network.
    """

    def __init__(
        self, halves: Halves, steps: int, alpha: float, epsilon: float, beta: nn.Parameter
    ) -> None:
        super().__init__()
        self.halves = halves
        self.steps, self.alpha, self.epsilon = steps, alpha, epsilon
        self.beta = beta

    def edit(self, h: Tensor, y: Tensor, *, graph: bool = True, first_order: bool = False) -> Edit:
        """Edit the model for images whose cut tensor is known.

        Parameters
        ----------
        h : Tensor, [N, ...]
            The cut tensor.
        y : Tensor of int64, [N]
            Wanted labels.
        graph : bool
            Keep what is needed to differentiate through the edit.
        first_order : bool
            Treat the editor's gradients as constants.
        """
        weights: Weights = self.halves.weights
        if not graph:
            h = h.detach()
            weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        moments: dict[str, Tensor] = {}
        beta = self.decay
        with torch.enable_grad():
            for step in range(self.steps + 1):
                # Unedited weights are live: functional_call with them is the plain network.
                loss = edit_loss(self.halves.suffix(h, weights), y)
                success = loss.item() <= 0
                if success or step == self.steps:
                    return Edit(weights, loss, step, success)
                keep = graph and not first_order
                found = torch.autograd.grad(
                    loss, list(weights.values()), create_graph=keep, retain_graph=graph
                )
                weights = self._move(weights, dict(zip(weights, found, strict=True)), moments, beta)
                if not graph:
                    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        raise AssertionError("the last step returns")

    @property
    def decay(self) -> Tensor:
        """The second moment's decay in [0, 1]; its gradient passes where it is clamped."""
        return self.beta + (self.beta.clamp(0, 1) - self.beta).detach()

    def _move(
        self,
        weights: Weights,
        gradients: Weights,
        moments: dict[str, Tensor],
        beta: Tensor,
    ) -> Weights:
        moved = {}
        for name, gradient in gradients.items():
            square = gradient**2
            if name in moments:
                square = beta * moments[name] + (1 - beta) * square
            moments[name] = square
            moved[name] = weights[name] - self.alpha * gradient / (square + self.epsilon).sqrt()
        return moved
