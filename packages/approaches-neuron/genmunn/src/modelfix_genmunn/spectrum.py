"""Localisation: which weights are active when predictions fail, and how much they then carry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from modelfix_core.approach import Localisation
from modelfix_core.dataset import Split
from modelfix_core.model import Layer, Model
from modelfix_core.population import DEFAULT_MEMORY, Patch
from modelfix_core.torch import PrefixCache, TorchModel, batches
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """What a layer's weights did on failing and on passing samples.

    Weights of one pair of units share their counts: a convolution's whole window.

    Attributes
    ----------
    covered_failing, covered_passing : ndarray of float64, [out, in]
        In how many samples both units were active (n_cf and n_cs).
    carried : ndarray of float64, [out, in]
        Mean over the failing samples of the input's absolute activation where the output was
        active.
    failing, passing : int
        Numbers of samples F and P.
    """

    covered_failing: np.ndarray
    covered_passing: np.ndarray
    carried: np.ndarray
    failing: int
    passing: int

    @property
    def uncovered_failing(self) -> np.ndarray:
        """n_uf, [out, in]."""
        return self.failing - self.covered_failing

    @property
    def uncovered_passing(self) -> np.ndarray:
        """n_us, [out, in]."""
        return self.passing - self.covered_passing

    def ochiai(self) -> np.ndarray:
        """Return the suspiciousness after Ochiai, [out, in] in [0, 1]; 0 where undefined."""
        covered = self.covered_failing + self.covered_passing
        return _ratio(self.covered_failing, np.sqrt(self.failing * covered))

    def tarantula(self) -> np.ndarray:
        """Return the suspiciousness after Tarantula, [out, in] in [0, 1]; 0 where undefined."""
        failing = self.covered_failing / max(self.failing, 1)
        return _ratio(failing, failing + self.covered_passing / max(self.passing, 1))

    def dstar(self) -> np.ndarray:
        """Return the suspiciousness after D* with exponent 2, [out, in].

        The denominator is a count; where it is 0 the weight marks the failures perfectly, and 1
        keeps it above all others.
        """
        others = self.covered_passing + self.uncovered_failing
        return self.covered_failing**2 / np.maximum(others, 1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def spectra(
    net: TorchModel,
    layers: Sequence[Layer],
    x: Split,
    failing: np.ndarray,
    threshold: float = 0.0,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Spectrum]:
    """Count for every weight how often both of its ends were active.

    A unit's activation is its value after the activation function, for a channel the mean over its
    positions. A class of the output layer is active if it is the predicted one.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    layers : sequence of Layer
        Dense layers and convolutions of its model.
    x : Split
    failing : ndarray of bool, [N]
        Which samples of `x` the model mispredicts.
    threshold : float
        A unit is active above it.
    memory : int
        Bytes that the activations of one batch may take.
    progress : callable
        Gets the number of samples done.

    Returns
    -------
    list of Spectrum
        One for each layer.
    """
    outputs = [_activated(net.model, layer) for layer in layers]
    names = list(dict.fromkeys([layer.input for layer in layers] + outputs))
    size = _batch_size(net, names, x, memory)
    sums: list[Tensor] = []
    done = 0
    for batch in batches(x, size, net.device):
        with torch.inference_mode():
            values = net.activations(batch, names)
            units = {name: _units(value) for name, value in values.items()}
            wrong = torch.from_numpy(failing[done : done + len(batch)]).to(batch)[:, None]
            parts = []
            for layer, name in zip(layers, outputs, strict=True):
                active = _active(units[name], name == net.model.output_name, threshold)
                parts.append(_products(units[layer.input], active, wrong, threshold))
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        done += len(batch)
        progress(done)
    count = int(failing.sum())
    return [_spectrum(total.cpu().numpy(), count, len(failing) - count) for total in sums]


def _activated(model: Model, layer: Layer) -> str:
    """Return the tensor of the layer's activations, behind its BatchNorm where it has one."""
    norms = (norm for norm in model.layers("batchnorm") if norm.input == layer.output)
    norm = next(norms, None)
    return layer.activated if norm is None else norm.activated


def _batch_size(net: TorchModel, names: Sequence[str], x: Split, memory: int) -> int:
    needed = PrefixCache(net, names, x, memory=0).bytes_per_pass
    return int(np.clip(memory // needed, 1, 500))


def _units(values: Tensor) -> Tensor:
    return values.flatten(2).mean(dim=2) if values.ndim > 2 else values


def _active(units: Tensor, is_output: bool, threshold: float) -> Tensor:
    if is_output:
        predicted = units.argmax(dim=1, keepdim=True)
        return torch.zeros_like(units).scatter_(1, predicted, 1.0)
    return (units > threshold).to(units)


def _products(inputs: Tensor, active: Tensor, wrong: Tensor, threshold: float) -> Tensor:
    """Return the batch's part of n_cf, n_cs and the carried activation, [3, out, in]."""
    covering = (inputs > threshold).to(inputs)
    failing = (active * wrong).T
    passing = (active * (1 - wrong)).T
    # Counts of a batch are exact in float32; sums over batches are kept in float64.
    parts = failing @ covering, passing @ covering, failing @ inputs.abs()
    return torch.stack(parts).double()


def _spectrum(total: np.ndarray, failing: int, passing: int) -> Spectrum:
    return Spectrum(total[0], total[1], total[2] / max(failing, 1), failing, passing)


def suspiciousness(
    spectrum: Spectrum, weight: np.ndarray, formula: str, score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Score a layer's weights.

    Parameters
    ----------
    spectrum : Spectrum
    weight : ndarray, [out, in] or [out, in/groups, kh, kw]
    formula : {"ochiai", "tarantula", "dstar"}
    score : {"product", "spectrum"}

    Returns
    -------
    first, second : ndarray of float64, [weight.size]
        What ranks the weights, and what decides its ties.
    """
    influence = np.abs(weight) * _spread(spectrum.carried, weight)
    suspicion = _spread(getattr(spectrum, formula)(), weight)
    first = (
        suspicion * influence if score == "product" else np.broadcast_to(suspicion, weight.shape)
    )
    return first.ravel(), influence.ravel()


def _spread(units: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Bring values of pairs of units, [out, in], to a form that broadcasts over the weight."""
    out, per_group = weight.shape[:2]
    groups = units.shape[1] // per_group
    offset = np.arange(out) // (out // groups) * per_group
    own = np.take_along_axis(units, offset[:, None] + np.arange(per_group), axis=1)
    return own.reshape(out, per_group, *[1] * (weight.ndim - 2))


def blame(
    model: Model,
    layers: Sequence[Layer],
    found: Sequence[Spectrum],
    share: float,
    formula: str = "ochiai",
    score: str = "product",
) -> tuple[list[Patch], Localisation]:
    """Take the most suspicious weights of each layer (step 5).

    Parameters
    ----------
    model : Model
    layers : sequence of Layer
    found : sequence of Spectrum
        One for each layer.
    share : float
        Of each layer's weights, in (0, 1]; at least one is taken.
    formula, score : str
        As in `suspiciousness`.

    Returns
    -------
    patches : list of Patch
        One for each layer, its weights ranked: the most suspicious first, by position on ties.
    localisation : Localisation
        The same weights with their scores.
    """
    patches, names, scores = [], [], []
    for layer, spectrum in zip(layers, found, strict=True):
        weight = model.weights[layer.weight]
        first, second = suspiciousness(spectrum, weight, formula, score)
        index = np.lexsort((-second, -first))[: max(1, round(share * weight.size))]
        patches.append(Patch(layer.name, index))
        names += [layer.name] * len(index)
        scores.append(first[index])
    index = np.concatenate([patch.index for patch in patches])
    return patches, Localisation("weight", names, index, np.concatenate(scores))
