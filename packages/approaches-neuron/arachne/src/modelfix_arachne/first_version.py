"""The stages of the first Arachne (arXiv version of 2019): last dense layer, particle swarm.

NeuRecover and DISTRREP build on them. Everything here is numpy, in closed form, so that it can be
used beside any framework.
"""

from dataclasses import dataclass

import numpy as np
from modelfix_core.search import ParticleSwarm

from modelfix_arachne.front import pareto_front

CANDIDATES_PER_FAILURE = 20
SPEED_RANGE = 5.0  # velocities lie between w / 5 and 5 w, w the spread of the layer's weights


def cross_entropy_gradient(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return dL/dz of the cross-entropy of softmax(z) for each input, float64 [n, K]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    gradient = shifted / shifted.sum(axis=1, keepdims=True)
    gradient[np.arange(len(y)), y] -= 1
    return gradient


def localise(
    features: np.ndarray, logits: np.ndarray, y: np.ndarray, weight: np.ndarray, candidates: int = 0
) -> np.ndarray:
    """Localise weights of the last dense layer on failing inputs.

    Of the weights with the largest absolute gradient of the summed loss, keep the Pareto front of
    that gradient and of the mean absolute contribution ``|o_i W_ij|``.

    Parameters
    ----------
    features : ndarray, [n, I]
        Inputs of the layer.
    logits : ndarray, [n, K]
    y : ndarray of int64, [n]
    weight : ndarray, [K, I]
    candidates : int
        Number of weights with the largest gradient; default 20 per input.

    Returns
    -------
    ndarray of int64, [D]
        Positions in the flattened weight, by falling gradient.
    """
    candidates = candidates or CANDIDATES_PER_FAILURE * len(y)
    gradient = np.abs(cross_entropy_gradient(logits, y).T @ features).ravel()
    forward = (np.abs(weight) * np.abs(features, dtype=np.float64).mean(axis=0)).ravel()
    kept = np.argsort(-gradient, kind="stable")[:candidates]
    return kept[pareto_front(gradient[kept], forward[kept])]


def sibling_statistics(weight: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the kernel without the row and column of each weight.

    Parameters
    ----------
    weight : ndarray, [J, I]
    index : ndarray of int64, [D]
        Positions in the flattened weight.

    Returns
    -------
    mean, deviation : ndarray of float64, [D]
        Of the (J - 1) (I - 1) siblings; of the whole kernel where it has only one row or column.
    """
    rows, columns = np.divmod(index, weight.shape[1])
    size = (weight.shape[0] - 1) * (weight.shape[1] - 1)
    kernel = weight.astype(np.float64)
    if size == 0:
        return np.full(len(index), kernel.mean()), np.full(len(index), kernel.std())

    def total(values: np.ndarray) -> np.ndarray:
        crossing = values[rows, columns]
        return values.sum() - values.sum(axis=1)[rows] - values.sum(axis=0)[columns] + crossing

    mean = total(kernel) / size
    # Moments about the kernel's mean, so that nothing cancels when the mean is large.
    centred = kernel - kernel.mean()
    variance = total(centred**2) / size - (total(centred) / size) ** 2
    return mean, np.sqrt(np.maximum(variance, 0.0))


@dataclass(frozen=True)
class Edited:
    """The edited weights of one layer.

    Attributes
    ----------
    weight : ndarray, [J, I]
        The dense kernel.
    index : ndarray of int64, [D]
        Positions in the flattened weight.
    """

    weight: np.ndarray
    index: np.ndarray


def swarm(
    layers: list[Edited],
    rng: np.random.Generator,
    *,
    particles: int = 100,
    iterations: int = 100,
    patience: int = 10,
    phi: float = 4.1,
) -> ParticleSwarm:
    """Set up PSO-A over the edited weights of one or several dense layers.

    Positions are drawn from the normal distribution of each weight's siblings; speeds are limited
    by the spread ``max W - min W`` of the weight's layer.
    """
    statistics = [sibling_statistics(layer.weight, layer.index) for layer in layers]
    mean, deviation = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
    spread = np.concatenate([np.full(len(e.index), np.ptp(e.weight)) for e in layers])
    spread = spread.astype(np.float64)
    positions = rng.normal(mean, deviation, (particles, len(mean)))
    return ParticleSwarm(
        positions,
        spread / SPEED_RANGE,
        spread * SPEED_RANGE,
        rng,
        iterations=iterations,
        patience=patience,
        phi=phi,
    )


def fitness(right: np.ndarray, loss: np.ndarray, is_failing: np.ndarray) -> np.ndarray:
    """Fitness of the first Arachne: repaired and intact inputs, each over its mean loss.

    Parameters
    ----------
    right : ndarray of bool, [P, n]
    loss : ndarray, [P, n]
    is_failing : ndarray of bool, [n]
        Which inputs the original model got wrong.

    Returns
    -------
    ndarray of float64, [P]
    """
    return sum(
        (right[:, part].sum(axis=1) + 1) / (loss[:, part].mean(axis=1, dtype=np.float64) + 1)
        for part in (is_failing, ~is_failing)
    )
