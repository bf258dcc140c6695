"""Patch networks: supports around regions, patches on them, and their sum (sections 4.4, 4.5)."""

from dataclasses import dataclass, replace

import numpy as np
from modelfix_core.population import DEFAULT_MEMORY

from modelfix_reassure.block import Block


@dataclass(frozen=True)
class PatchNetwork:
    """What is added to the block's logits.

    Attributes
    ----------
    block : Block
    patterns : ndarray of bool, [L, sum of hidden]
        The region of each patch.
    patches : ndarray of float64, [L, K]
        Constant patches d_l.
    n : float
        Inverse width of the fall-off around a region, in units of pre-activations.
    """

    block: Block
    patterns: np.ndarray
    patches: np.ndarray
    n: float

    def __len__(self) -> int:
        return len(self.patterns)

    def first(self, count: int) -> "PatchNetwork":
        """Return the network of the first `count` patches."""
        return replace(self, patterns=self.patterns[:count], patches=self.patches[:count])

    @property
    def steps(self) -> np.ndarray:
        """``P_l = d_l - d_(l-1)``, float64 [L, K]; they telescope to d_j inside region j."""
        return np.diff(self.patches, axis=0, prepend=0.0)

    @property
    def bounds(self) -> np.ndarray:
        """``K_l = max |P_l|``, float64 [L]; exact because the patches are constant."""
        return np.abs(self.steps).max(axis=1, initial=0.0)

    def supports(self, features: np.ndarray, memory: int = DEFAULT_MEMORY) -> "Supports":
        """Compute where each support is not zero.

        The rows of a first-layer neuron are the same for all regions but for their sign, so that
        its violations are one matrix product. Only the few pairs of input and patch that survive
        it go through the deeper layers.

        Parameters
        ----------
        features : ndarray of float64, [N, d]
        memory : int
            Bytes that may be used at once.
        """
        widest = max(len(self), *self.block.hidden)
        chunk = max(1, memory // (8 * 8 * widest))
        parts = [
            self._supports(features[start : start + chunk], start, chunk)
            for start in range(0, len(features), chunk)
        ]
        row, patch, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Supports(len(features), len(self), row, patch, value)

    def _supports(self, features: np.ndarray, start: int, chunk: int) -> tuple[np.ndarray, ...]:
        layers = self.block.layers_of(self.patterns)
        z = self.block.maps[0](features)
        active = layers[0].astype(float)
        below, above = np.clip(-self.n * z, 0, 1), np.clip(self.n * z, 0, 1)
        violation = below @ active.T + above @ (1 - active).T
        row, patch = np.nonzero(violation < 1)
        values = [
            self._deeper(z, violation, layers, row[i : i + chunk], patch[i : i + chunk])
            for i in range(0, max(len(row), 1), chunk)
        ]
        value = np.concatenate(values)
        alive = value > 0
        return row[alive] + start, patch[alive], value[alive]

    def _deeper(self, z, violation, layers, row, patch) -> np.ndarray:
        z, total = z[row], violation[row, patch]
        for depth in range(1, len(layers)):
            slope = self.block.slopes[depth - 1]
            z = self.block.maps[depth](np.where(layers[depth - 1][patch], z, slope * z))
            sign = np.where(layers[depth][patch], -1.0, 1.0)
            total = total + np.clip(self.n * sign * z, 0, 1).sum(axis=1)
        return np.maximum(0.0, 1.0 - total)

    def correction(self, supports: "Supports") -> tuple[np.ndarray, np.ndarray]:
        """Compute what is added to the logits.

        Parameters
        ----------
        supports : Supports
            Of this network; those of later patches are left out.

        Returns
        -------
        rows : ndarray of int, [R]
            Inputs with a support that is not zero; to all others nothing is added.
        added : ndarray of float64, [R, K]
        """
        rows, gamma = supports.gamma(len(self))
        fall = self.bounds * (1.0 - gamma)
        # Class by class, so that memory stays that of `gamma`.
        added = [
            (np.maximum(step - fall, 0) - np.maximum(-step - fall, 0)).sum(axis=1)
            for step in self.steps.T
        ]
        return rows, np.stack(added, axis=1)

    def logits(self, base: np.ndarray, supports: "Supports") -> np.ndarray:
        """Return `base` logits [N, K] with the patches added, in its dtype."""
        rows, added = self.correction(supports)
        result = base.copy()
        result[rows] += added.astype(base.dtype)
        return result


@dataclass(frozen=True)
class Supports:
    """The values g_l(h) that are not zero, for N inputs and L patches.

    Attributes
    ----------
    inputs, patches : int
        N and L.
    row, patch : ndarray of int, [P]
        Input and patch of each value; sorted by input.
    value : ndarray of float64, [P]
        In (0, 1].
    """

    inputs: int
    patches: int
    row: np.ndarray
    patch: np.ndarray
    value: np.ndarray

    def gamma(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute ``gamma_l = max over j >= l of g_j`` among the first `count` patches.

        Returns
        -------
        rows : ndarray of int, [R]
            Inputs with any support.
        gamma : ndarray of float64, [R, count]
        """
        chosen = self.patch < count
        rows, position = np.unique(self.row[chosen], return_inverse=True)
        g = np.zeros((len(rows), count))
        g[position, self.patch[chosen]] = self.value[chosen]
        return rows, np.maximum.accumulate(g[:, ::-1], axis=1)[:, ::-1]

    def leaks(self, own: np.ndarray, count: int) -> np.ndarray:
        """Return which inputs a patch later than their `own` [N] reaches, bool [N]."""
        later = (self.patch < count) & (self.patch > own[self.row])
        reached = np.zeros(self.inputs, dtype=bool)
        reached[self.row[later]] = True
        return reached
