"""The points to be made right: which faults, in which order, and what the layers see of them."""

from dataclasses import dataclass

import numpy as np
from modelfix_core.dataset import Split
from modelfix_core.model import Model


@dataclass(frozen=True)
class Faults:
    """Mispredicted inputs of the repair split.

    Attributes
    ----------
    index : ndarray of int64, [k]
        Positions in the repair split.
    h : ndarray of float64, [k, D]
        Input of the first layer that may change.
    y : ndarray of int64, [k]
    ids : ndarray of int64, [k]
    left_out : int
        Faults that no change can make right together with those before them: all features are 0,
        or equal to those of an earlier fault with another label.
    """

    index: np.ndarray
    h: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    left_out: int

    def __len__(self) -> int:
        return len(self.index)


def find_faults(model: Model, split: Split, features: str, order: str) -> Faults:
    """Return the faults of `split` with their features.

    Parameters
    ----------
    model : Model
    split : Split
    features : str
        Tensor that enters the first layer that may change.
    order : {"data", "gap"}
        As in the data, or by how little the label loses.
    """
    tensors = model.activations(split, [features, model.output_name])
    h, logits = tensors[features].astype(float), tensors[model.output_name]
    index = np.flatnonzero(logits.argmax(axis=1) != split.y)
    if order == "gap":
        gap = logits[index].max(axis=1) - logits[index, split.y[index]]
        index = index[np.argsort(gap, kind="stable")]
    usable = _usable(h[index], split.y[index])
    kept = index[usable]
    return Faults(kept, h[kept], split.y[kept], split.ids[kept], int((~usable).sum()))


def _usable(h: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points can be right together with those before them, bool [k]."""
    if not len(h):
        return np.ones(0, dtype=bool)
    _, first, group = np.unique(h, axis=0, return_index=True, return_inverse=True)
    agrees = y == y[first[group.reshape(-1)]]
    return agrees & h.any(axis=1)
