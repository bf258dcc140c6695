"""Tests of pairs of entrants, all pairs at once: arrays of scores in, arrays of p values out.

Arrays over pairs have the shape [P], arrays over pairs and subjects [P, S].
"""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import comb

from modelfix_stats.cells import Cells
from modelfix_stats.errors import StatsError

CONFIDENCE = 0.95
MOST_ARRANGEMENTS = 100_000
DRAWS = 9_999


@dataclass(frozen=True)
class Tested:
    """One test of P pairs.

    Attributes
    ----------
    delta, low, high : ndarray of float64, [P]
        Mean difference of scores (first minus second) and its 95 % interval.
    t, df, p : ndarray of float64, [P]
        Two-sided; NaN where the pair cannot be tested.
    reason : ndarray of object, [P]
        Why not, or None.
    """

    delta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    t: np.ndarray
    df: np.ndarray
    p: np.ndarray
    reason: np.ndarray


def common_subjects(cells: Cells, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return on which subjects both entrants of each pair have a score, bool [P, S]."""
    return cells.present[a] & cells.present[b]


def subject_weights(common: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return weights that sum to 1 over the common subjects, [P, S]; equal by default."""
    plain = common.astype(float) if weights is None else common * weights
    total = plain.sum(axis=1, keepdims=True)
    return np.divide(plain, total, out=np.zeros_like(plain), where=total > 0)


def stratified_welch(
    cells: Cells, a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None
) -> Tested:
    """Test which entrant is better on these subjects.

    The mean over common subjects of the difference of means, with the standard errors of the
    repetitions within subjects and Welch-Satterthwaite degrees of freedom. With one subject it is
    Welch's test.

    Parameters
    ----------
    cells : Cells
    a, b : ndarray of int, [P]
        Positions of the entrants.
    weights : ndarray of float64, [S], optional
        Of the subjects; default equal.

    Returns
    -------
    Tested
        Untestable for want of a common subject (``no_common_subject``), where an entrant has one
        repetition (``single_repetition``) or no spread was published (``no_spread``), and where
        nothing varies (``no_replication``).
    """
    common = common_subjects(cells, a, b)
    share = subject_weights(common, weights)
    difference = np.where(common, cells.mean[a] - cells.mean[b], 0.0)
    delta = (share * difference).sum(axis=1)
    terms = np.concatenate([_terms(cells, rows, common, share) for rows in (a, b)], axis=1)
    dof = np.concatenate([cells.n[a] - 1, cells.n[b] - 1], axis=1)
    variance = terms.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / np.where(terms > 0, terms**2 / dof, 0.0).sum(axis=1)
    reason = np.full(len(a), None, dtype=object)
    single = (common & ((cells.n[a] == 1) & ~cells.copies[a])).any(axis=1)
    single |= (common & ((cells.n[b] == 1) & ~cells.copies[b])).any(axis=1)
    reason[variance == 0] = "no_replication"
    reason[np.isnan(variance)] = "no_spread"
    reason[np.isnan(variance) & single] = "single_repetition"
    reason[~common.any(axis=1)] = "no_common_subject"
    return _t_test(delta, np.sqrt(variance), df, reason)


def _terms(cells: Cells, rows: np.ndarray, common: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.where(common, share**2 * cells.error[rows], 0.0)


def over_subjects(cells: Cells, a: np.ndarray, b: np.ndarray) -> Tested:
    """Test whether one entrant would be better on another subject.

    A t test of the differences per subject against 0; it needs three common subjects, else the
    reason is ``too_few_subjects``.

    Parameters
    ----------
    cells : Cells
    a, b : ndarray of int, [P]

    Returns
    -------
    Tested
    """
    common = common_subjects(cells, a, b)
    count = common.sum(axis=1)
    difference = np.where(common, cells.mean[a] - cells.mean[b], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        delta = np.nansum(difference, axis=1) / count
        squares = np.nansum((difference - delta[:, None]) ** 2, axis=1)
        error = np.sqrt(squares / (count - 1) / count)
    reason = np.full(len(a), None, dtype=object)
    reason[np.isclose(error, 0, atol=1e-12)] = "no_variation"
    reason[count < 3] = "too_few_subjects"
    reason[count == 0] = "no_common_subject"
    return _t_test(delta, error, count - 1.0, reason)


def pooled_student(cells: Cells, a: np.ndarray, b: np.ndarray) -> Tested:
    """Test as the study most probably did: Student's t on all scores of the common subjects.

    Differences between subjects count as noise; a missing standard deviation counts as 0.

    Parameters
    ----------
    cells : Cells
    a, b : ndarray of int, [P]

    Returns
    -------
    Tested
        p is 0 and t NaN where nothing varies but the means differ (one subject, no spread).
    """
    common = common_subjects(cells, a, b)
    mean_a, squares_a, n_a = _pool(cells, a, common)
    mean_b, squares_b, n_b = _pool(cells, b, common)
    df = n_a + n_b - 2
    delta = mean_a - mean_b
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt((squares_a + squares_b) / df * (1 / n_a + 1 / n_b))
    reason = np.full(len(a), None, dtype=object)
    reason[df < 1] = "single_repetition"
    reason[~common.any(axis=1)] = "no_common_subject"
    tested = _t_test(delta, error, df, reason)
    constant = (error == 0) & common.any(axis=1)
    tested.t[constant] = np.nan
    tested.p[constant] = np.where(delta[constant] == 0, 1.0, 0.0)
    return tested


def _pool(
    cells: Cells, rows: np.ndarray, common: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, sum of squares around it, and number of the pooled scores, each [P]."""
    n = np.where(common, cells.n[rows], 0.0)
    means = np.where(common, cells.mean[rows], 0.0)
    variance = np.where(common, np.nan_to_num(cells.variance[rows]), 0.0)
    total = n.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (n * means).sum(axis=1) / total
    within = np.where(n > 1, (n - 1) * variance, 0.0)
    squares = (n * (means - mean[:, None]) ** 2 + within).sum(axis=1)
    return mean, squares, total


def _t_test(delta: np.ndarray, error: np.ndarray, df: np.ndarray, reason: np.ndarray) -> Tested:
    """Return the two-sided test; NaN where there is a reason, delta wherever it exists."""
    testable = pd.isna(reason)
    error, df = np.where(testable, error, np.nan), np.where(testable, df, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = delta / error
        p = 2 * stats.t.sf(np.abs(t), df)
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, df) * error
    delta = np.where(np.equal(reason, "no_common_subject"), np.nan, delta)
    return Tested(delta, delta - half, delta + half, t, df, p, reason)


def per_subject(cells: Cells, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Count on how many common subjects each pair was won, lost and tied, each [P].

    Tied: the 95 % Welch interval of that subject alone contains 0, or cannot be given.
    """
    common = common_subjects(cells, a, b)
    difference = cells.mean[a] - cells.mean[b]
    error_a, error_b = cells.error[a], cells.error[b]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares_a = np.where(error_a > 0, error_a**2 / (cells.n[a] - 1), 0.0)
        squares_b = np.where(error_b > 0, error_b**2 / (cells.n[b] - 1), 0.0)
        df = (error_a + error_b) ** 2 / (squares_a + squares_b)
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, df) * np.sqrt(error_a + error_b)
    half = np.where(error_a + error_b == 0, 0.0, half)
    won = (common & (difference - half > 0)).sum(axis=1)
    lost = (common & (difference + half < 0)).sum(axis=1)
    return won, lost, common.sum(axis=1) - won - lost


def sign_flips(differences: np.ndarray) -> float:
    """Return the exact two-sided p value of flipping the signs of differences per subject.

    Parameters
    ----------
    differences : array_like of float, [D]
        One per subject; all 2^D patterns are tried.

    Returns
    -------
    float
        NaN below five subjects; with five the smallest possible value is 2/32.
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 5:
        return float("nan")
    signs = np.array(list(product([1.0, -1.0], repeat=len(differences))))
    sums = np.abs(signs @ differences)
    return float((sums >= np.abs(differences.sum()) * (1 - 1e-12)).mean())


@dataclass(frozen=True)
class Permutation:
    """A permutation test within subjects.

    Attributes
    ----------
    delta, p : float
    smallest : float
        The smallest p value that these data could give.
    exact : bool
        Whether all arrangements were tried.
    """

    delta: float
    p: float
    smallest: float
    exact: bool


def permutation(cells: Cells, a: str, b: str, *, seed: int = 0) -> Permutation:
    """Test a pair by permuting the labels within each common subject.

    Parameters
    ----------
    cells : Cells
        With values.
    a, b : str
        Entrants.
    seed : int
        Of the 9,999 draws where there are more than 100,000 arrangements.

    Returns
    -------
    Permutation
        Say `smallest` where p is not below alpha: three against three repetitions on one subject
        cannot give less than 0.1.

    Raises
    ------
    StatsError
        Without repetitions, a common subject, or for an unknown entrant.
    """
    if cells.values is None:
        raise StatsError("a permutation test needs the repetitions; summaries have none.")
    for name in (a, b):
        if name not in cells.entrants:
            raise StatsError(f"the data have no entrant {name}.")
    i, j = cells.entrants.index(a), cells.entrants.index(b)
    common = np.flatnonzero(cells.present[i] & cells.present[j])
    if not len(common):
        raise StatsError(f"{a} and {b} have no common subject; they cannot be compared.")
    groups = [_known(cells.values[i, s], cells.values[j, s]) for s in common]
    arrangements = float(np.prod([_binomial(len(x), len(y)) for x, y in groups]))
    exact = arrangements <= MOST_ARRANGEMENTS
    rng = np.random.default_rng(seed)
    observed, permuted = 0.0, np.zeros(1)
    for x, y in groups:
        observed += x.mean() - y.mean()
        if exact:
            permuted = (permuted[:, None] + _all_effects(x, y)).ravel()
        else:
            permuted = permuted + _draw(x, y, rng)
    extreme = int((np.abs(permuted) >= abs(observed) * (1 - 1e-12)).sum())
    p = extreme / len(permuted) if exact else (extreme + 1) / (DRAWS + 1)
    # The mirror arrangement is as extreme where both groups are of one size on every subject.
    mirror = 2 if all(len(x) == len(y) for x, y in groups) else 1
    smallest = mirror / arrangements if exact else 1 / (DRAWS + 1)
    return Permutation(observed / len(common), p, smallest, exact)


def _known(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[~np.isnan(x)], y[~np.isnan(y)]


def _binomial(first: int, second: int) -> float:
    return float(comb(first + second, first))


def _all_effects(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the difference of means in every arrangement."""
    together = np.concatenate([x, y])
    chosen = np.array(list(combinations(range(len(together)), len(x))))
    sums = together[chosen].sum(axis=1)
    return sums / len(x) - (together.sum() - sums) / len(y)


def _draw(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the differences of means in random arrangements."""
    together = np.concatenate([x, y])
    shuffled = rng.permuted(np.broadcast_to(together, (DRAWS, len(together))), axis=1)
    return shuffled[:, : len(x)].mean(axis=1) - shuffled[:, len(x) :].mean(axis=1)
