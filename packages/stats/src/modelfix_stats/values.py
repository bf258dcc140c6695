"""One value and its interval: repetitions, counts, success rates, category means."""

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from modelfix_stats.errors import StatsError
from modelfix_stats.frame import FIXED, Data, Summary, check
from modelfix_stats.metrics import METRICS, find_metric


def wilson(count: np.ndarray | int, total: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson interval of `count` out of `total`.

    Parameters
    ----------
    count, total : array_like of int
        `total` at least 1.

    Returns
    -------
    low, high : ndarray of float64
        In [0, 1].
    """
    low, high = proportion_confint(np.asarray(count), np.asarray(total), method="wilson")
    return np.asarray(low), np.asarray(high)


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every counted value with the 95 % Wilson interval of its own count.

    It says how sure a single repetition is of its share of the test inputs, however few the
    repetitions; `describe` says how much repetitions vary.

    Parameters
    ----------
    frame : DataFrame
        As `check` describes; rows without numerator and denominator are left out.

    Returns
    -------
    DataFrame
        subject, entrant, repetition, metric, value, numerator, denominator, low, high.
    """
    frame = check(frame)
    rows = frame[frame["value"].notna() & frame["numerator"].notna() & (frame["denominator"] > 0)]
    columns = ["subject", "entrant", "repetition", "metric", "value", "numerator", "denominator"]
    low, high = wilson(rows["numerator"].to_numpy(float), rows["denominator"].to_numpy(float))
    return rows[columns].assign(low=low, high=high).reset_index(drop=True)


def describe(data: Data, *, ddof: int = 1) -> pd.DataFrame:
    """Return mean, spread and interval of every cell and metric that the statistics know.

    Parameters
    ----------
    data : DataFrame or Summary
    ddof : {0, 1}
        Of the printed standard deviation; 0 only beside the study's tables.

    Returns
    -------
    DataFrame
        subject, entrant, approach, category, metric, status, reason, n, mean, std (NaN for copies
        and for single repetitions), low, high (95 % t interval of the mean, n - 1 degrees of
        freedom), original, gain (relative, in percent, of the mean), better (difference towards
        better). The status is OK where there is a mean, else the outcome, or ABSENT.

    Raises
    ------
    StatsError
        If the data have no metric that is known.
    """
    frame = data.frame if isinstance(data, Summary) else check(data)
    frame = frame[frame["metric"].isin(list(METRICS))]
    if frame.empty:
        raise StatsError(f"the data have none of the metrics {', '.join(METRICS)}.")
    result = frame.copy() if isinstance(data, Summary) else _summarise(frame)
    n, std = result["n"].to_numpy(float), result["std"].to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.975, n - 1) * std / np.sqrt(n)
    result["low"], result["high"] = result["mean"] - half, result["mean"] + half
    if ddof == 0:
        result["std"] = std * np.sqrt((n - 1) / n)
    change = result["metric"].map(lambda id: find_metric(id).scoring == "change")
    sign = result["metric"].map(lambda id: find_metric(id).sign)
    original = result["original"].where(change)
    result["better"] = sign * (result["mean"] - original.where(change, 0.0))
    computed = 100 * sign * (result["mean"] - original) / original.where(original != 0)
    computed = computed.where((original != 0) | (result["mean"] != original), 0.0)
    result["gain"] = result["gain"].fillna(computed) if "gain" in result else computed
    result["status"] = np.where(
        result["mean"].notna(),
        "OK",
        np.where(result["outcome"] == FIXED, "ABSENT", result["outcome"]),
    )
    columns = ["subject", "entrant", "approach", "category", "metric", "status", "reason", "n"]
    columns += ["mean", "std", "low", "high", "original", "gain", "better"]
    return result[columns].reset_index(drop=True)


def _summarise(frame: pd.DataFrame) -> pd.DataFrame:
    keys = ["subject", "entrant", "metric"]
    frame = frame.assign(
        known_original=frame["original"].where(frame["value"].notna()),
        failure=frame["outcome"].where(frame["outcome"] != FIXED),
    )
    cells = frame.groupby(keys, sort=False)
    result = cells.agg(
        approach=("approach", "first"),
        category=("category", "first"),
        failure=("failure", "first"),
        n=("value", "count"),
        mean=("value", "mean"),
        std=("value", "std"),
        different=("value", "nunique"),
        copied=("deterministic", "all"),
        original=("known_original", "mean"),
    )
    result["reason"] = cells.head(1).set_index(keys)["reason"].astype(object)
    result = result.reset_index()
    absent = result["n"] == 0
    result["outcome"] = result["failure"].where(absent & result["failure"].notna(), FIXED)
    result["reason"] = result["reason"].where(absent & result["reason"].notna(), None)
    noisy = result["metric"].map(lambda id: find_metric(id).noisy)
    copies = result["copied"] & (result["different"] == 1)
    result["std"] = result["std"].mask(copies & ~noisy)
    return result.astype({"n": float})


def success_rates(data: Data) -> pd.DataFrame:
    """Return how often each entrant gave a fixed model, with the 95 % Wilson interval.

    Applicability is a metric of its own, so that failing on hard subjects gains nothing.

    Parameters
    ----------
    data : DataFrame or Summary

    Returns
    -------
    DataFrame
        By entrant: fixed, attempted, rate, low, high; a summary counts as its n repetitions.
    """
    frame = data.frame if isinstance(data, Summary) else check(data)
    if isinstance(data, Summary):
        cells = frame.drop_duplicates(["subject", "entrant"])
        weight = cells["n"].fillna(1)
    else:
        cells = frame.drop_duplicates(["subject", "entrant", "repetition"])
        weight = pd.Series(1, index=cells.index)
    fixed = weight.where(cells["outcome"] == FIXED, 0)
    counts = pd.DataFrame({"entrant": cells["entrant"], "fixed": fixed, "attempted": weight})
    result = counts.groupby("entrant", sort=False).sum().astype(int)
    result["rate"] = result["fixed"] / result["attempted"]
    result["low"], result["high"] = wilson(result["fixed"], result["attempted"])
    return result


def category_means(data: Data, metric: str, column: str = "mean") -> pd.DataFrame:
    """Return the mean over subjects of the mean over the entrants of a category that have a value.

    Parameters
    ----------
    data : DataFrame or Summary
    metric : str
    column : {"mean", "gain", "better"}
        Of `describe`.

    Returns
    -------
    DataFrame
        By category: value, cells (how many it stands on).
    """
    rows = describe(data)
    rows = rows[(rows["metric"] == metric) & rows[column].notna()]
    by_subject = rows.groupby(["category", "subject"], sort=False)[column].agg(["mean", "size"])
    result = by_subject.groupby("category", sort=False).agg(
        value=("mean", "mean"), cells=("size", "sum")
    )
    return result.astype({"cells": int})
