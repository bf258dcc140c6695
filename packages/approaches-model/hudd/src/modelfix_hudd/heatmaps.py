"""Relevance heatmaps of many images at all places of a model, in one backward pass.

The relevance of the predicted class flows back through the dense layers at the end by the z-plus
rule. Below them the rule is that of the layer's own contributions with the bias in the denominator,
which telescopes to activation times gradient: one pass serves every place and every architecture.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.torch import TorchModel, batches
from torch import Tensor

from modelfix_hudd.places import Outline, Place

BATCH = 128
# Their share of the relevance is output over input, not slope; piecewise linear ones have both.
CURVED = {"Elu", "Selu", "Sigmoid", "Tanh", "HardSwish", "Gelu"}

Progress = Callable[[str], None]


class Heatmaps:
    """Heatmaps of a model.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode, so that images do not influence each other.
    outline : Outline
    eps : float
        Stabiliser of divisions.
    """

    def __init__(self, net: TorchModel, outline: Outline, eps: float = 1e-9) -> None:
        self.net, self.outline, self.eps = net, outline, eps

    def __call__(self, x: Tensor, places: Sequence[Place]) -> dict[str, Tensor]:
        """Return the heatmap of each image for its predicted class, by layer.

        Parameters
        ----------
        x : Tensor of float, [N, C, H, W]
        places : sequence of Place

        Returns
        -------
        dict of str to Tensor, [N, size]
            Relevance in units of the predicted logit, which may be negative.
        """
        features, output = self.outline.features, self.net.model.output_name
        dense = {layer.input for layer in self.outline.tail}
        inner = [place for place in places if place.tensor not in dense]
        needed = {output, features, *dense, *(place.tensor for place in inner)}
        with torch.enable_grad():
            # The images must carry gradients for inner tensors to do so with frozen weights.
            values = self._forward(x.detach().requires_grad_(), sorted(needed))
            relevance, seed = self._tail(values)
            tensors = [values[place.tensor] for place in inner]
            slopes = torch.autograd.grad(values[features], tensors, seed) if inner else ()
        for place, value, slope in zip(inner, tensors, slopes, strict=True):
            relevance[place.tensor] = (value * slope).detach()
        return {place.layer: relevance[place.tensor].flatten(1) for place in places}

    def _tail(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the relevance at the inputs of the tail, and the weights of its features."""
        logits = values[self.net.model.output_name].detach()
        chosen = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
        seed = chosen.to(logits.dtype)
        relevance, found = seed * logits, {}
        for layer in reversed(self.outline.tail):
            x = values[layer.input].detach()
            weight = self.net.tensor(layer.weight).detach().clamp(min=0)
            seed = (relevance / (x @ weight.T + self.eps)) @ weight
            relevance = found[layer.input] = x * seed
        return found, seed

    def _forward(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        values = {self.net.model.input_name: x}
        for step, finished in self.net.plan(values, wanted):
            self.net.apply(step, values)
            if step.kind in CURVED:
                given, result = values[step.inputs[0]], values[step.outputs[0]]
                safe = torch.where(given == 0, self.eps, given)
                values[step.outputs[0]] = given * (result / safe).detach()
            for name in finished:
                del values[name]
        return values


def in_batches(
    heatmaps: Heatmaps, images: Split, places: Sequence[Place], size: int = BATCH
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield the heatmaps of a split batch by batch, with the positions they belong to."""
    device = heatmaps.net.device
    for part, x in zip(images.batches(size), batches(images, size, device), strict=True):
        yield part, heatmaps(x, places)


def collect(
    heatmaps: Heatmaps,
    images: Split,
    places: Sequence[Place],
    memory: int,
    progress: Progress = lambda note: None,
) -> Iterator[tuple[Place, np.ndarray]]:
    """Yield all heatmaps of a split place by place, with as few passes as the memory allows.

    Parameters
    ----------
    heatmaps : Heatmaps
    images : Split
        N images.
    places : sequence of Place
    memory : int
        Bytes that the heatmaps of a pass may take; no place may be above it alone.
    progress : callable
        Gets a note after each batch.

    Yields
    ------
    place : Place
    maps : ndarray of float32, [N, size]
    """
    for group in groups(places, len(images), memory):
        held: dict[str, np.ndarray] = {}
        for part, found in in_batches(heatmaps, images, group):
            for layer, maps in found.items():
                if layer not in held:
                    held[layer] = np.empty((len(images), maps.shape[1]), dtype=np.float32)
                held[layer][part] = maps.cpu().numpy()
            progress(f"heatmaps, {part.stop} of {len(images)} failures")
        for place in group:
            yield place, held.pop(place.layer)


def bytes_of(place: Place, images: int) -> int:
    """Return what the heatmaps of so many images take at a place."""
    return 4 * images * place.size


def groups(places: Sequence[Place], images: int, memory: int) -> list[list[Place]]:
    """Divide places, in order, into runs whose heatmaps fit in `memory` together."""
    result: list[list[Place]] = []
    taken = memory
    for place in places:
        size = bytes_of(place, images)
        if taken + size > memory:
            result.append([])
            taken = 0
        result[-1].append(place)
        taken += size
    return result
