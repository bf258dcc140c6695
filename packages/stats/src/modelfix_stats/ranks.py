"""Rankings over several subjects or metrics: mean ranks, Friedman, Nemenyi, Pareto fronts."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from modelfix_stats.cells import Cells

ENOUGH_SUBJECTS = 5


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over the subjects that all entrants have.

    Attributes
    ----------
    mean : Series of float
        By entrant, best first; 1 is best, ties share.
    subjects : tuple of str
        The complete subjects.
    friedman_p : float
        NaN with fewer than five complete subjects or three entrants.
    nemenyi : DataFrame or None
        p values of pairs, entrants x entrants; None where `friedman_p` is NaN.
    """

    mean: pd.Series
    subjects: tuple[str, ...]
    friedman_p: float
    nemenyi: pd.DataFrame | None


def mean_ranks(cells: Cells) -> Ranks:
    """Rank entrants on each complete subject and average.

    Parameters
    ----------
    cells : Cells

    Returns
    -------
    Ranks
        Tests only with at least five complete subjects.
    """
    complete = cells.present.all(axis=0)
    scores = cells.mean[:, complete]
    ranks = stats.rankdata(-scores, axis=0) if scores.size else np.empty_like(scores)
    names = list(cells.entrants)
    subjects = tuple(np.array(cells.subjects, dtype=object)[complete])
    average = ranks.mean(axis=1) if subjects else np.full(len(names), np.nan)
    mean = pd.Series(average, index=pd.Index(names, name="entrant"), name="mean_rank")
    friedman, nemenyi = float("nan"), None
    if len(subjects) >= ENOUGH_SUBJECTS and len(names) >= 3 and (scores != scores[:1]).any():
        friedman = float(stats.friedmanchisquare(*scores).pvalue)
        nemenyi = pd.DataFrame(_nemenyi(average, len(subjects)), index=names, columns=names)
    return Ranks(mean.sort_values(kind="stable"), subjects, friedman, nemenyi)


def _nemenyi(average: np.ndarray, subjects: int) -> np.ndarray:
    k = len(average)
    gap = np.abs(average[:, None] - average) / np.sqrt(k * (k + 1) / (6 * subjects))
    p = stats.studentized_range.sf(gap * np.sqrt(2), k, np.inf)
    np.fill_diagonal(p, 1.0)
    return p


def pareto_front(scores: pd.DataFrame) -> pd.Series:
    """Return which entrants no other dominates.

    Parameters
    ----------
    scores : DataFrame of float
        Entrants x metrics, higher is better (as in `Comparison.order`); rows with NaN are never
        on the front and dominate nobody.

    Returns
    -------
    Series of bool
        By entrant. An entrant is dominated if another is at least as good everywhere and better
        somewhere.
    """
    values = scores.to_numpy(float)
    as_good = (values[:, None] >= values[None]).all(axis=-1)
    better = (values[:, None] > values[None]).any(axis=-1)
    dominated = (as_good & better).any(axis=0)
    known = ~np.isnan(values).any(axis=1)
    return pd.Series(~dominated & known, index=scores.index, name="pareto")
