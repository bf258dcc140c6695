"""Many weight patches scored at once: what both frameworks' engines take and give."""

from dataclasses import dataclass

import numpy as np

DEFAULT_MEMORY = 2 * 1024**3  # bytes that one population evaluation may use for its activations


@dataclass(frozen=True)
class Patch:
    """Some weights of one layer.

    Attributes
    ----------
    layer : str
        Layer name as in `Model.layers`; its ``weight`` is edited, never the bias.
    index : ndarray of int64, [D]
        Positions in the flattened weight.
    """

    layer: str
    index: np.ndarray


@dataclass(frozen=True)
class Scores:
    """What each of P patched models makes of n inputs.

    Attributes
    ----------
    right : ndarray of bool, [P, n]
        Whether the label has the largest logit (lowest index on ties).
    loss : ndarray of float32, [P, n]
        Cross-entropy of the softmax of the logits.
    """

    right: np.ndarray
    loss: np.ndarray
