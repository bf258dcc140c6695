"""Seeds derived from named axes, so that every draw is reproducible and none seeds global state."""

import hashlib
import json

import numpy as np


def seed_for(**axes: str | int) -> int:
    """Derive a seed from named axes such as ``subject``, ``repetition`` and ``entrant``.

    Parameters
    ----------
    **axes : str or int
        The axes on which the draw depends; their order does not matter.

    Returns
    -------
    int
        In [0, 2**32).
    """
    text = json.dumps(axes, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def generator(seed: int, **axes: str | int) -> np.random.Generator:
    """Return an independent generator for one named use of `seed`, such as a stage."""
    return np.random.default_rng(seed_for(seed=seed, **axes))
