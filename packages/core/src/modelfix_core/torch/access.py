"""Layer access and the prefix cache: inner values and gradients of a model, in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from modelfix_core.dataset import Split
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.torch.bridge import TorchModel

BATCH_SIZE = 500
Images: TypeAlias = Split | np.ndarray | Tensor
Index: TypeAlias = slice | np.ndarray  # positions of images


def batches(
    x: Images, size: int = BATCH_SIZE, device: str | torch.device = "cpu"
) -> Iterator[Tensor]:
    """Yield images in order as float32 tensors [n, C, H, W] with n at most `size`."""
    for start in range(0, len(x), size):
        yield images(x, slice(start, start + size), device)


def images(x: Images, index: Index, device: str | torch.device = "cpu") -> Tensor:
    """Return the images at `index` as a float32 tensor."""
    batch = x.images(index) if isinstance(x, Split) else x[index]
    return torch.as_tensor(batch, dtype=torch.float32).to(device)


def predict(net: nn.Module, x: Images, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Compute the logits in evaluation mode; the module's modes are restored.

    Parameters
    ----------
    net : nn.Module
        A `TorchModel`, or any other module from images to logits.
    x : Split, ndarray or Tensor, [N, C, H, W]
    batch_size : int

    Returns
    -------
    ndarray of float32, [N, K]
    """
    device = next(net.parameters()).device
    training = [part for part in net.modules() if part.training]
    net.eval()
    try:
        with torch.inference_mode():
            parts = [net(batch).cpu() for batch in batches(x, batch_size, device)]
    finally:
        for part in training:
            part.training = True
    return torch.cat(parts).numpy()


def gradients(
    net: TorchModel,
    x: Tensor,
    names: Sequence[str],
    objective: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Differentiate an objective with respect to inner tensors, per sample.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode, so that samples do not influence each other.
    x : Tensor, [N, C, H, W]
    names : sequence of str
        Tensor or layer names, as in `TorchModel.activations`.
    objective : callable
        From logits [N, K] to one value per sample, [N].

    Returns
    -------
    values, gradients : dict of str to Tensor, [N, ...] each
        Row i of a gradient belongs to the objective of sample i.
    """
    output = net.model.output_name
    with torch.enable_grad():
        # The images must carry gradients for inner tensors to do so where all weights are frozen.
        x = x.detach().requires_grad_()
        values = net.activations(x, [*names, output])
        inner = [values[name] for name in names]
        found = torch.autograd.grad(objective(values[output]).sum(), inner)
    plain = {name: value.detach() for name, value in zip(names, inner, strict=True)}
    return plain, dict(zip(names, found, strict=True))


class PrefixCache:
    """Inner tensors of all images, computed once with the weights of the moment.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    names : sequence of str
        Tensor or layer names.
    x : Split, ndarray or Tensor, [N, C, H, W]
    memory : int
        Bytes that the cache may hold, and that a pass to fill it may take. Where the tensors do
        not fit they are computed again, batch by batch, whenever they are asked for.
    batch_size : int
        At most so many images are computed at once to fill the cache.

    Attributes
    ----------
    held : bool
        Whether the tensors fit.
    bytes_per_image, bytes_per_pass : int
        What one image takes in the cache, and at the peak of computing its tensors.
    """

    def __init__(
        self,
        net: TorchModel,
        names: Sequence[str],
        x: Images,
        memory: int = DEFAULT_MEMORY,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.net = net
        self.names = list(names)
        self.x = x
        self.bytes_per_image, self.bytes_per_pass = self._measure()
        self.held = self.bytes_per_image * len(x) <= memory
        self._tensors: dict[str, Tensor] = {}
        if self.held:
            self._fill(min(batch_size, max(1, memory // self.bytes_per_pass)))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Index) -> dict[str, Tensor]:
        """Return the tensors of the images at `index`, by name, [n, ...] each."""
        if self.held:
            return {name: tensor[index] for name, tensor in self._tensors.items()}
        return self._compute(index)

    def _compute(self, index: Index) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.net.activations(images(self.x, index, self.net.device), self.names)

    def _measure(self) -> tuple[int, int]:
        source = self.net.model.input_name
        wanted = [self.net.place(name) for name in self.names]
        plan = self.net.plan([source], wanted)
        made = [name for step, _ in plan for name in step.outputs[:1]]
        with torch.no_grad():
            known = {source: images(self.x, slice(0, 1), self.net.device)}
            values = known | self.net.run(known, made)
        sizes = {name: value.numel() * value.element_size() for name, value in values.items()}
        alive = peak = sizes[source]
        for step, finished in plan:
            alive += sizes[step.outputs[0]]
            # Padding and the like make a copy of the input for a moment.
            copies = max((sizes.get(name, 0) for name in step.inputs), default=0)
            peak = max(peak, alive + copies)
            alive -= sum(sizes.get(name, 0) for name in finished)
        return sum(sizes[name] for name in wanted), peak

    def _fill(self, batch_size: int) -> None:
        for start in range(0, len(self.x), batch_size):
            index = slice(start, min(start + batch_size, len(self.x)))
            for name, part in self._compute(index).items():
                if name not in self._tensors:
                    shape = (len(self.x), *part.shape[1:])
                    self._tensors[name] = part.new_empty(shape)
                self._tensors[name][index] = part
