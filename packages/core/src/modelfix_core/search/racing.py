"""Exact racing: stop evaluating a trial as soon as it can no longer reach its bar."""

from collections.abc import Callable, Sequence

import numpy as np

# Sums of n terms in float64 differ by far less than this, relatively, whatever their order.
ROUNDING = 1e-9


def race(
    gain: Callable[[int, np.ndarray], np.ndarray],
    most: Sequence[float],
    values: np.ndarray,
    bars: np.ndarray,
) -> np.ndarray:
    """Sum what blocks of inputs add to each trial's fitness, as long as its bar is in reach.

    Parameters
    ----------
    gain : callable
        ``gain(block, values [p, D])`` gives what the inputs of that block add, [p]; its result for
        a trial must not depend on the trials beside it.
    most : sequence of float, [B]
        The largest gain of each block. Blocks of inputs on which trials differ come first.
    values : ndarray, [P, D]
    bars : ndarray of float, [P]
        ``-inf`` has a trial evaluated in full.

    Returns
    -------
    ndarray of float64, [P]
        The sum in float64; ``-inf`` for a trial that was dropped, which is certainly below its bar.
    """
    total = np.zeros(len(values))
    running = np.arange(len(values))
    left = np.append(np.cumsum(np.asarray(most, dtype=np.float64)[::-1])[::-1], 0.0)
    # Small enough a margin to drop nearly all, large enough never to drop for a rounding error.
    margin = ROUNDING * left[0]
    for block in range(len(most)):
        total[running] += gain(block, values[running])
        short = total[running] + left[block + 1] < bars[running] - margin
        total[running[short]] = -np.inf
        running = running[~short]
        if not len(running):
            break
    return total
