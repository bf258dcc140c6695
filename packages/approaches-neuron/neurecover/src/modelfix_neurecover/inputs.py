"""Which inputs the fitness is about: the failing ones to fix and some passing ones to keep."""

from typing import TYPE_CHECKING

import numpy as np
from modelfix_arachne import inputs as arachne
from modelfix_core.errors import Failure

if TYPE_CHECKING:
    from modelfix_neurecover.history import Comparison


def failing(past: "Comparison", target: str) -> np.ndarray:
    """Select the failures to fix (I_neg).

    Parameters
    ----------
    past : Comparison
    target : str
        ``all``; ``deg``, those that were right before; ``class:c``, those of true class c; or
        ``type:k``, those of the k-th most frequent pair of true and predicted class.

    Returns
    -------
    ndarray of int64
        Positions, ascending.

    Raises
    ------
    Failure
        If nothing is left to fix.
    """
    kind, _, value = target.partition(":")
    if kind == "deg":
        chosen = past.degraded
    elif kind == "class":
        chosen = ~past.right & (past.y == int(value))
    else:
        return arachne.failing(past.predicted, past.y, target, np.random.default_rng(0))
    if not chosen.any():
        raise Failure(f"target {target} is empty: the model makes no such mistake")
    return np.flatnonzero(chosen)


def passing(past: "Comparison", size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most `size` inputs that the model gets right (I_pos); positions, ascending.

    Raises
    ------
    Failure
        If there is none.
    """
    every = arachne.passing(past.predicted, past.y)
    return np.sort(rng.choice(every, min(size, len(every)), replace=False))
