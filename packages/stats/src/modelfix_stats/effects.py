"""Effect sizes of pairs, within subjects and then averaged; never pooled across subjects."""

import numpy as np

from modelfix_stats.cells import Cells
from modelfix_stats.pairs import common_subjects


def hedges_g(cells: Cells, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Hedges' g of each pair, averaged over the common subjects where it exists.

    Parameters
    ----------
    cells : Cells
    a, b : ndarray of int, [P]

    Returns
    -------
    ndarray of float64, [P]
        Difference over pooled standard deviation times 1 - 3 / (4 df - 1); NaN where no subject
        has repetitions that vary.
    """
    n_a, n_b = cells.n[a], cells.n[b]
    df = n_a + n_b - 2
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (n_a - 1) * cells.variance[a] + (n_b - 1) * cells.variance[b]
        pooled = np.sqrt(squares / df)
        g = (cells.mean[a] - cells.mean[b]) / pooled * (1 - 3 / (4 * df - 1))
    usable = common_subjects(cells, a, b) & (pooled > 0) & np.isfinite(g)
    return _mean_where(g, usable)


def a12(cells: Cells, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Vargha and Delaney's A12 of each pair: how probably the first is better.

    Parameters
    ----------
    cells : Cells
    a, b : ndarray of int, [P]

    Returns
    -------
    ndarray of float64, [P]
        In [0, 1], computed within each common subject and averaged; Cliff's delta is
        ``2 * a12 - 1``. NaN without common subject, and for summaries.
    """
    if cells.values is None:
        return np.full(len(a), np.nan)
    x, y = cells.values[a][..., :, None], cells.values[b][..., None, :]
    both = ~np.isnan(x) & ~np.isnan(y)
    wins = ((x > y) & both).sum(axis=(-1, -2)) + 0.5 * ((x == y) & both).sum(axis=(-1, -2))
    count = both.sum(axis=(-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean_where(wins / count, count > 0)


def detectable(cells: Cells, alpha: float = 0.05, power: float = 0.8) -> np.ndarray:
    """Return the smallest difference that a test of two such entrants would find, per cell.

    Parameters
    ----------
    cells : Cells
    alpha, power : float
        Of a two-sided t test of two entrants with this cell's repetitions and spread.

    Returns
    -------
    ndarray of float64, [E, S]
        In units of the score; NaN where a cell has no spread.
    """
    from statsmodels.stats.power import TTestIndPower

    found = np.full(cells.mean.shape, np.nan)
    for n in np.unique(cells.n[cells.n > 1]):
        d = TTestIndPower().solve_power(nobs1=n, alpha=alpha, power=power)
        chosen = (cells.n == n) & (cells.variance > 0)
        found[chosen] = d * np.sqrt(cells.variance[chosen])
    return found


def _mean_where(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    count = usable.sum(axis=1)
    total = np.where(usable, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
