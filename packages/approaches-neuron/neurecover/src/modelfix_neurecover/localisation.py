"""Which weights training spoiled: they changed, and they matter for degraded inputs alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from modelfix_core.approach import Localisation
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure
from modelfix_core.keras import KerasModel
from modelfix_core.model import Layer

from modelfix_neurecover.history import Comparison

BATCH = 500


@dataclass(frozen=True)
class Impact:
    """What a layer's weights do on a set of inputs; zeros where the set is empty.

    Attributes
    ----------
    forward : ndarray of float64, [J, I]
        Mean of ``|o_i W_ji|``, o the input of the layer.
    backward : ndarray of float64, [J, I]
        Absolute value of the gradient of the summed cross-entropy.
    """

    forward: np.ndarray
    backward: np.ndarray


def localise(
    net: KerasModel,
    past: Comparison,
    inputs: Split,
    rho: float = 1.0,
    max_weights: int | None = None,
) -> Localisation:
    """Find the kernel entries of dense layers that training spoiled.

    Parameters
    ----------
    net : KerasModel
    past : Comparison
        Of `inputs`.
    inputs : Split
        The repair split.
    rho : float
        Factor of the number of weights that each criterion ranks highly.
    max_weights : int, optional
        Keep at most so many.

    Returns
    -------
    Localisation
        Weights by their change relative to the mean change in their layer, which is their score.

    Raises
    ------
    Failure
        If no weight is localised.
    """
    layers = net.model.layers("dense")
    degraded = impacts(net, layers, inputs.select(past.degraded))
    improved = impacts(net, layers, inputs.select(past.improved))
    changes = {
        name: np.abs(array.astype(np.float64) - past.earlier[name])
        for name, array in net.model.weights.items()
    }
    share_of_change = shares(list(changes.values()))
    delta = dict(zip(changes, share_of_change, strict=True))
    phi_degraded = shares([impact.forward for impact in degraded])
    phi_improved = shares([impact.forward for impact in improved])
    names, positions, scores = [], [], []
    for layer, bad, good, phi_bad, phi_good in zip(
        layers, degraded, improved, phi_degraded, phi_improved, strict=True
    ):
        change = changes[layer.weight]
        suspicion = suspiciousness(phi_bad, phi_good, delta[layer.weight])
        index = np.flatnonzero(spoiled(change, bad, good, ranked(change.size, suspicion, rho)))
        names += [layer.name] * len(index)
        positions.append(index)
        scores.append(change.flat[index] / change.mean() if len(index) else np.zeros(0))
    if not names:
        raise Failure(
            "no weight is localised: none changed much and matters for degraded but not for "
            "improved inputs; a larger 'rho' or another 'prev' looks at more of them"
        )
    index, score = np.concatenate(positions), np.concatenate(scores)
    order = np.argsort(-score, kind="stable")[:max_weights]
    return Localisation("weight", [names[i] for i in order], index[order], score[order])


def impacts(net: KerasModel, layers: Sequence[Layer], inputs: Split) -> list[Impact]:
    """Compute the impact of the kernels of dense layers on a set of inputs.

    The forward impact is an outer product, ``|W_ji|`` times the mean of ``|o_i|``, so nothing of
    the size inputs x J x I is ever held; the backward impact is one backward pass over the set.
    """
    if not len(inputs):
        nothing = [np.zeros(net.model.weights[layer.weight].shape) for layer in layers]
        return [Impact(zeros, zeros) for zeros in nothing]
    tensors = list(dict.fromkeys(layer.input for layer in layers))
    size = dict.fromkeys(tensors, 0.0)
    for batch in inputs.batches(BATCH):
        for name, value in net.activations(inputs.images(batch), tensors).items():
            size[name] = size[name] + np.abs(value.numpy()).sum(axis=0, dtype=np.float64)
    gradients = net.weight_gradients(inputs, inputs.y, [layer.weight for layer in layers], BATCH)
    return [
        Impact(
            np.abs(net.model.weights[layer.weight]) * (size[layer.input] / len(inputs)),
            np.abs(gradients[layer.weight].astype(np.float64)),
        )
        for layer in layers
    ]


def shares(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Return each tensor's mean over the sum of all means, float64; zeros where all are zero."""
    means = np.array([tensor.mean() for tensor in tensors])
    total = means.sum()
    return means / total if total > 0 else np.zeros(len(means))


def suspiciousness(degraded: float, improved: float, change: float) -> float:
    """Return how much a layer is to blame, in [0, 1].

    Parameters
    ----------
    degraded, improved : float
        The layer's share of the forward impact on either set.
    change : float
        The kernel's share of the change of all tensors.
    """
    return degraded / (degraded + improved) * change if degraded > 0 else 0.0


def ranked(size: int, suspicion: float, rho: float) -> int:
    """Return how many of a layer's `size` weights each criterion ranks highly (half to even)."""
    return min(size, round(size * suspicion * rho))


def spoiled(change: np.ndarray, degraded: Impact, improved: Impact, k: int) -> np.ndarray:
    """Return which weights changed and matter for degraded inputs, less those that improved others.

    Parameters
    ----------
    change : ndarray, [J, I]
        Absolute difference of the kernel between both versions.
    degraded, improved : Impact
    k : int
        How many weights each criterion ranks highly.

    Returns
    -------
    ndarray of bool, [J, I]
    """
    harmful = top(change, k) & top(degraded.forward, k) & top(degraded.backward, k)
    return harmful & ~(top(improved.forward, k) & top(improved.backward, k))


def top(values: np.ndarray, k: int) -> np.ndarray:
    """Return where the `k` largest entries are; those that are not above zero are left out.

    Dead neurons give many zeros, and which of these are among the k largest is arbitrary.
    """
    mask = np.zeros(values.size, dtype=bool)
    if k:
        mask[np.argpartition(values, -k, axis=None)[-k:]] = True
    return mask.reshape(values.shape) & (values > 0)
