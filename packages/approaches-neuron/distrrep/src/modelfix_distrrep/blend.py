"""The family of models between the original one and its patches."""

from collections.abc import Sequence
from typing import Literal

import numpy as np


class Blend:
    """From coefficients in the unit box to the values of all patched weights; an affine map.

    The first M coordinates belong to the patches, the others to the weights that several patches
    share, by their position.

    Parameters
    ----------
    weight : ndarray, [K, I]
        The original kernel.
    patches : sequence of (index, values)
        Positions in the flattened weight, [D_m], and their new values.
    kind : {"linear", "minmax"}
        Where only one patch changes a weight: from its original value at 0 to the patch's at 1, or
        from the smaller to the larger of the two. A shared weight always goes from the smallest to
        the largest of the original and all patches' values.

    Attributes
    ----------
    index : ndarray of int64, [D]
        Positions of all patched weights, ascending.
    owners : ndarray of int64, [D]
        How many patches change each of them.
    original : ndarray of float32, [D]
        Their original values.
    width : int
        Number of features I.
    dimensions : int
        Number of coefficients: patches plus shared weights.
    """

    def __init__(
        self,
        weight: np.ndarray,
        patches: Sequence[tuple[np.ndarray, np.ndarray]],
        kind: Literal["linear", "minmax"] = "linear",
    ) -> None:
        self._weight, self.width = weight, weight.shape[1]
        self.index = np.unique(np.concatenate([index for index, _ in patches]))
        self.original = weight.ravel()[self.index]
        # One row per model: the original, then the patches where they change a weight.
        models = np.full((1 + len(patches), len(self.index)), np.nan)
        models[0] = self.original
        for row, (index, values) in zip(models[1:], patches, strict=True):
            row[np.searchsorted(self.index, index)] = values
        owned = ~np.isnan(models[1:])
        self.owners = owned.sum(axis=0)
        shared = np.flatnonzero(self.owners > 1)
        start, end = np.nanmin(models, axis=0), np.nanmax(models, axis=0)
        if kind == "linear":
            alone = self.owners == 1
            start[alone], end[alone] = models[0, alone], np.nansum(models[1:, alone], axis=0)
        self.dimensions = len(patches) + len(shared)
        self._start = start
        self._step = np.zeros((self.dimensions, len(self.index)))
        self._step[: len(patches)] = np.where(owned & (self.owners == 1), end - start, 0.0)
        self._step[len(patches) + np.arange(len(shared)), shared] = (end - start)[shared]

    def values(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the weights' values for coefficients [P, M + S], float32 [P, D]."""
        return (self._start + coefficients @ self._step).astype(np.float32)

    def weight(self, values: np.ndarray) -> np.ndarray:
        """Return the kernel, [K, I], with these values [D]."""
        changed = self._weight.copy()
        changed.flat[self.index] = values
        return changed
