"""Mutation: how a variant of the model arises from another."""

from collections.abc import Sequence

import numpy as np
from modelfix_core.model import Model
from modelfix_core.population import Patch


class Mutation:
    """Changes a few of the blamed weights, the more likely the higher they rank in their layer.

    A variant is the vector of its values of all blamed weights.

    Parameters
    ----------
    model : Model
    patches : sequence of Patch
        The blamed weights of each layer, the most suspicious first.
    most : int
        Largest number of weights that one mutation changes.
    noise : float
        Deviation of the noise in units of the layer's deviation.
    operators : sequence of str
        Out of ``noise``, ``sign``, ``zero`` and ``scale``; one is drawn for each changed weight.

    Attributes
    ----------
    original : ndarray of float32, [K]
    limit : ndarray of float32, [K]
        No mutated weight exceeds the layer's largest absolute weight.
    """

    def __init__(
        self,
        model: Model,
        patches: Sequence[Patch],
        most: int,
        noise: float,
        operators: Sequence[str] = ("noise",),
    ) -> None:
        layers = [model.weights[model.layer(patch.layer).weight] for patch in patches]
        sizes = [len(patch.index) for patch in patches]
        ranks = np.concatenate([np.arange(1, size + 1) for size in sizes])
        pairs = zip(layers, patches, strict=True)
        self.original = np.concatenate([weight.flat[patch.index] for weight, patch in pairs])
        self.limit = np.repeat([np.abs(weight).max() for weight in layers], sizes)
        self._deviation = np.repeat([np.float32(noise * weight.std()) for weight in layers], sizes)
        self._preference = -np.log(ranks).astype(np.float32)
        self._most = min(most, len(ranks))
        self._operators = list(operators)

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a mutated copy of each variant, [p, K] (step 7)."""
        count = rng.integers(1, self._most + 1, len(parents))
        chosen = self._draw(len(parents), rng)
        values = np.take_along_axis(parents, chosen, axis=1)
        mutated = self._mutate(values, self._deviation[chosen], rng)
        mutated = np.clip(mutated, -self.limit[chosen], self.limit[chosen])
        mutated = np.where(np.arange(self._most) < count[:, None], mutated, values)
        children = parents.copy()
        np.put_along_axis(children, chosen, mutated, axis=1)
        return children

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw different weights for each variant in sequence, with chances in proportion to 1/r.

        The order of exponential draws over their rates is that of drawing one after the other
        without replacement.
        """
        arrival = rng.standard_exponential((count, len(self.original)), dtype=np.float32)
        arrival = np.log(arrival) - self._preference
        first = np.argpartition(arrival, self._most - 1, axis=1)[:, : self._most]
        order = np.argsort(np.take_along_axis(arrival, first, axis=1), axis=1)
        return np.take_along_axis(first, order, axis=1)

    def _mutate(self, values: np.ndarray, deviation: np.ndarray, rng) -> np.ndarray:
        results = {
            "noise": values + deviation * rng.standard_normal(values.shape, dtype=np.float32),
            "sign": -values,
            "zero": np.zeros_like(values),
            "scale": values * rng.uniform(0.5, 1.5, values.shape).astype(np.float32),
        }
        operator = rng.integers(len(self._operators), size=values.shape)
        return np.choose(operator, [results[name] for name in self._operators])
