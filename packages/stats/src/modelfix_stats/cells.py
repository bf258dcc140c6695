"""Scores as arrays: entrant x subject (x repetition), higher is better, NaN where there is none."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from modelfix_stats.errors import StatsError
from modelfix_stats.frame import Data, Summary, check
from modelfix_stats.metrics import Metric, find_metric

Scale = Literal["points", "relative", "log10", "seconds"]
ORIGINAL = "original"


@dataclass(frozen=True)
class Cells:
    """The scores of one metric.

    Attributes
    ----------
    metric : Metric
    scale : {"points", "relative", "log10", "seconds"}
        Percentage points (against the original where the metric has one), relative gain in
        percent, log10 of seconds, seconds.
    entrants, subjects : tuple of str
        E and S names.
    mean, variance, n : ndarray of float64, [E, S]
        Over repetitions; variance with ddof 1, NaN where one repetition cannot tell; n is 0 where
        there is no score.
    copies : ndarray of bool, [E, S]
        Whether the repetitions are copies of one deterministic result.
    values : ndarray of float64, [E, S, R], or None
        The scores themselves, NaN where missing; None from summaries.
    """

    metric: Metric
    scale: Scale
    entrants: tuple[str, ...]
    subjects: tuple[str, ...]
    mean: np.ndarray
    variance: np.ndarray
    n: np.ndarray
    copies: np.ndarray
    values: np.ndarray | None

    @property
    def present(self) -> np.ndarray:
        """Whether there is a score, [E, S]."""
        return ~np.isnan(self.mean)

    @property
    def error(self) -> np.ndarray:
        """Squared standard error of the means, [E, S]: 0 for copies, NaN where not known."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.copies, 0.0, self.variance / self.n)

    def take(self, rows: np.ndarray) -> "Cells":
        """Return some entrants, in the order of `rows`."""
        values = None if self.values is None else self.values[rows]
        return replace(
            self,
            entrants=tuple(self.entrants[row] for row in rows),
            mean=self.mean[rows],
            variance=self.variance[rows],
            n=self.n[rows],
            copies=self.copies[rows],
            values=values,
        )

    def with_zero(self, name: str) -> "Cells":
        """Return the cells with a further, last entrant whose score is 0 on every subject."""
        zero = np.zeros((1, len(self.subjects)))

        def append(array: np.ndarray, row: np.ndarray) -> np.ndarray:
            return np.concatenate([array, row])

        values = self.values
        if values is not None:
            values = append(values, np.zeros((1, *values.shape[1:])))
        return replace(
            self,
            entrants=(*self.entrants, name),
            mean=append(self.mean, zero),
            variance=append(self.variance, zero),
            n=append(self.n, zero + 1),
            copies=append(self.copies, zero == 0),
            values=values,
        )

    def with_original(self) -> "Cells":
        """Return the cells with the original model as last entrant: scores are relative to it.

        Raises
        ------
        StatsError
            For time, which the original model has none of.
        """
        if self.metric.scoring == "time":
            raise StatsError("the original model has no time; compare time between entrants.")
        return self.with_zero(ORIGINAL)


def make_cells(data: Data, metric: str, scale: Scale) -> Cells:
    """Return the scores of one metric.

    Parameters
    ----------
    data : DataFrame or Summary
    metric : str
    scale : {"points", "relative", "log10", "seconds"}
        See `Cells`; ``points`` and ``relative`` are the same for repair rate and NFR.

    Returns
    -------
    Cells
        Of all entrants and subjects in the data, in order of appearance.

    Raises
    ------
    StatsError
        If the data have no such metric, or the original's value is needed and missing.
    """
    known = find_metric(metric)
    frame = data.frame if isinstance(data, Summary) else check(data)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise StatsError(f"the data have no rows of the metric {metric!r}.")
    entrants, subjects = (tuple(frame[c].drop_duplicates()) for c in ("entrant", "subject"))
    e = pd.Index(entrants).get_indexer(rows["entrant"])
    s = pd.Index(subjects).get_indexer(rows["subject"])
    make = _from_summary if isinstance(data, Summary) else _from_values
    arrays = make(rows, e, s, (len(entrants), len(subjects)), known, scale)
    return Cells(known, scale, entrants, subjects, *arrays)


def default_scale(metric: str, mode: str) -> Scale:
    """Return the scale of a mode: points and log10, in the mode `study` gains and seconds."""
    if find_metric(metric).scoring == "time":
        return "log10" if mode == "standard" else "seconds"
    return "points" if mode == "standard" else "relative"


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def _from_values(
    rows: pd.DataFrame, e: np.ndarray, s: np.ndarray, shape: tuple, metric: Metric, scale: Scale
) -> Arrays:
    r = pd.factorize(rows["repetition"], sort=True)[0]
    values = np.full((*shape, r.max() + 1), np.nan)
    scores, _ = _score(rows["value"].to_numpy(float), rows, metric, scale)
    values[e, s, r] = scores
    n = (~np.isnan(values)).sum(axis=-1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, np.nansum(values, axis=-1) / n, np.nan)
        deviation = np.nan_to_num(values - mean[..., None])
        variance = np.where(n > 1, (deviation**2).sum(axis=-1) / (n - 1), np.nan)
    # Equal scores have no variance; the rounding of their mean must not make one.
    equal = np.nanmax(np.where(np.isnan(values), -np.inf, values), axis=-1) == np.nanmin(
        np.where(np.isnan(values), np.inf, values), axis=-1
    )
    variance = np.where(equal & (n > 1), 0.0, variance)
    deterministic = np.zeros(shape, bool)
    deterministic[e, s] = rows["deterministic"].to_numpy(bool)
    copies = deterministic & equal & (n > 0) & (not metric.noisy)
    return mean, variance, n, copies, values


def _from_summary(
    rows: pd.DataFrame, e: np.ndarray, s: np.ndarray, shape: tuple, metric: Metric, scale: Scale
) -> Arrays:
    mean, variance, n = (np.full(shape, np.nan) for _ in range(3))
    raw = rows["mean"].to_numpy(float)
    scores, slope = _score(raw, rows, metric, scale)
    printed = rows["gain"].to_numpy(float)
    if scale == "relative" and metric.scoring == "change":
        scores = np.where(np.isnan(printed), scores, printed)
    mean[e, s] = np.where(np.isnan(raw), np.nan, scores)
    variance[e, s] = (rows["std"].to_numpy(float) * slope) ** 2
    n[e, s] = rows["n"].to_numpy(float)
    n = np.where(np.isnan(mean), 0.0, np.nan_to_num(n))
    copies = np.zeros(shape, bool)
    copies[e, s] = rows["deterministic"].to_numpy(bool) & (not metric.noisy)
    return mean, variance, n, copies & (n > 0), None


def _score(
    value: np.ndarray, rows: pd.DataFrame, metric: Metric, scale: Scale
) -> tuple[np.ndarray, np.ndarray | float]:
    """Return scores, and the absolute slope that carries a standard deviation over."""
    if metric.scoring == "time":
        if scale == "seconds":
            return -value, 1.0
        if (value <= 0).any():
            raise StatsError("seconds must be positive to be compared on a logarithmic scale.")
        return -np.log10(value), 1 / (value * np.log(10))
    if metric.scoring == "value":
        return 100 * metric.sign * value, 100.0
    original = rows["original"].to_numpy(float)
    lacking = rows[np.isnan(original) & ~np.isnan(value)]
    if len(lacking):
        first = lacking.iloc[0]
        raise StatsError(
            f"{first['subject']}, {first['entrant']}: {metric.id} is compared with the original "
            "model, whose value the column 'original' lacks."
        )
    change = metric.sign * (value - original)
    if scale == "points":
        return 100 * change, 100.0
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(original > 0, 100 * change / original, np.nan)
        slope = np.where(original > 0, 100 / original, np.nan)
    # From 0 there is no relative gain, except that no change is none.
    return np.where((original == 0) & (change == 0), 0.0, gain), slope
