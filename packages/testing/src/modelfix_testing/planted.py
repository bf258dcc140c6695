"""Planted faults: a trained model with known weights disturbed, so that blame can be scored."""

from dataclasses import dataclass

import numpy as np
from modelfix_core import Localisation, Model, ModelfixError, Split


@dataclass(frozen=True)
class PlantedFault:
    """A disturbed model and the truth about it.

    Attributes
    ----------
    model : Model
        The disturbed one.
    layer : str
    index : ndarray of int64, [D]
        Positions in the layer's flattened weight that were disturbed.
    """

    model: Model
    layer: str
    index: np.ndarray


def plant(
    model: Model, split: Split, layer: str, *, size: int = 1, broken: float = 0.05, seed: int = 0
) -> PlantedFault:
    """Disturb `size` weights of `layer` until at least a share `broken` of right inputs breaks.

    Parameters
    ----------
    model : Model
        A trained model; stays untouched.
    split : Split
        On which the damage is measured.
    layer : str
    size : int
        Number of weights, chosen by `seed` among the larger half of the layer.
    broken : float
        Share of the inputs that the model gets right, in (0, 1).
    seed : int

    Raises
    ------
    ModelfixError
        If no shift of these weights does enough damage.
    """
    weight = model.weights[model.layer(layer).weight]
    rng = np.random.default_rng(seed)
    large = np.flatnonzero(np.abs(weight.ravel()) >= np.median(np.abs(weight)))
    index = np.sort(rng.choice(large, size, replace=False))
    right = model.predict(split).argmax(axis=1) == split.y
    for strength in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
        values = weight.ravel().copy()
        values[index] -= np.sign(values[index]) * strength * weight.std()
        changed = model.with_weights({model.layer(layer).weight: values.reshape(weight.shape)})
        still = changed.predict(split).argmax(axis=1) == split.y
        if np.mean(~still[right]) >= broken:
            return PlantedFault(changed, layer, index)
    raise ModelfixError(
        f"no shift of {size} weights of layer {layer!r} breaks {broken:.0%} of the inputs; choose "
        "another layer or seed."
    )


def rank_of_planted(localisation: Localisation, fault: PlantedFault) -> float:
    """Return the best rank (from 1) of a planted weight in `localisation`; inf if none has one."""
    order = np.argsort(-np.asarray(localisation.score), kind="stable")
    for rank, row in enumerate(order, start=1):
        if localisation.layer[row] == fault.layer and localisation.index[row] in fault.index:
            return float(rank)
    return float("inf")
