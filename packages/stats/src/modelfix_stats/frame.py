"""The input: a data frame in long format, checked; or published summaries of one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from modelfix_stats.errors import StatsError

FIXED = "FIXED"
OUTCOMES = (FIXED, "CORRUPTED", "FAILURE", "UNADAPTABLE")
KEY = ["subject", "entrant", "repetition", "metric"]
DEFAULTS = {
    "category": "",
    "original": np.nan,
    "deterministic": False,
    "outcome": FIXED,
    "reason": None,
    "numerator": np.nan,
    "denominator": np.nan,
}


@dataclass(frozen=True)
class Summary:
    """Means and standard deviations instead of repetitions, as in published tables.

    Attributes
    ----------
    frame : DataFrame
        One row per subject, entrant and metric; `std` has ddof 1.
    """

    frame: pd.DataFrame


Data: TypeAlias = pd.DataFrame | Summary


def check(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with every column of the long format, or refuse it.

    Parameters
    ----------
    frame : DataFrame
        One row per (subject, entrant, repetition, metric) with ``value``; optional ``approach``
        (default: the entrant), ``category``, ``numerator``, ``denominator``, ``original``,
        ``deterministic``, ``outcome`` (default FIXED), ``reason``, ``definition``.

    Returns
    -------
    DataFrame
        A copy; ``value`` is NaN wherever the outcome is not FIXED.

    Raises
    ------
    StatsError
        For missing columns, duplicate keys, unknown outcomes, FIXED rows without value or reason,
        two originals of one subject, repetition and metric (other than attacks, where every
        entrant has its own pool), or definitions or denominators mixed within metric and subject.
    """
    frame = complete(frame)
    _refuse_duplicates(frame, KEY)
    fixed = frame.outcome == FIXED
    frame["value"] = pd.to_numeric(frame["value"]).astype(float).where(fixed)
    unexplained = frame[fixed & frame["value"].isna() & frame["reason"].isna()]
    if len(unexplained):
        raise StatsError(
            f"{_place(unexplained)}: a FIXED row has no value and no reason; give one of them."
        )
    plain = frame[~_attacked(frame)]
    _refuse_mixed(
        plain.assign(original=plain["original"].round(12)),
        "original",
        ["subject", "repetition", "metric"],
    )
    _refuse_mixed(plain, "denominator", ["subject", "metric"])
    if "definition" in frame:
        _refuse_mixed(frame, "definition", ["subject", "metric"])
    return frame


def from_summary(frame: pd.DataFrame, ddof: int) -> Summary:
    """Take published means and standard deviations as data.

    Parameters
    ----------
    frame : DataFrame
        One row per (subject, entrant, metric) with ``mean``, ``std`` (NaN: none printed) and
        ``n`` repetitions; the further columns of `check`; optionally ``gain``, a printed relative
        gain in percent, which then stands for the one that follows from mean and original.
    ddof : {0, 1}
        What the standard deviations were divided by: n - ddof. The study printed ddof 0.

    Returns
    -------
    Summary

    Raises
    ------
    StatsError
        For missing columns, duplicates or another ddof.
    """
    if ddof not in (0, 1):
        raise StatsError(f"ddof={ddof!r}: the standard deviations have ddof 0 or 1; say which.")
    key = ["subject", "entrant", "metric"]
    frame = complete(frame, [*key, "mean", "std", "n"])
    _refuse_duplicates(frame, key)
    n = frame["n"].astype(float)
    if ddof == 0:
        frame["std"] = frame["std"] * np.sqrt(n / (n - 1).where(n > 1))
    fixed = frame.outcome == FIXED
    frame["mean"] = frame["mean"].where(fixed)
    if "gain" not in frame:
        frame["gain"] = np.nan
    return Summary(frame)


def select(
    data: Data,
    *,
    entrants: Collection[str] | None = None,
    subjects: Collection[str] | None = None,
) -> Data:
    """Return the rows of some entrants and subjects; every statistic is computed from these.

    Raises
    ------
    StatsError
        If a name does not occur.
    """
    frame = data.frame if isinstance(data, Summary) else data
    for column, names in (("entrant", entrants), ("subject", subjects)):
        if names is None:
            continue
        unknown = set(names) - set(frame[column])
        if unknown:
            raise StatsError(f"the data have no {column} {', '.join(sorted(unknown))}.")
        frame = frame[frame[column].isin(list(names))]
    return Summary(frame) if isinstance(data, Summary) else frame


def complete(frame: pd.DataFrame, required: Collection[str] = (*KEY, "value")) -> pd.DataFrame:
    """Return a copy of `frame` with every column of the long format; values are not judged.

    Raises
    ------
    StatsError
        If a required column is missing or an outcome is unknown.
    """
    missing = [column for column in required if column not in frame]
    if missing:
        raise StatsError(f"the data frame lacks the column {', '.join(missing)}.")
    frame = frame.copy()
    if "approach" not in frame:
        frame["approach"] = frame["entrant"]
    for column, default in DEFAULTS.items():
        if column not in frame:
            frame[column] = default
        elif column in ("category", "deterministic", "outcome"):
            frame[column] = frame[column].where(frame[column].notna(), default)
    frame["deterministic"] = frame["deterministic"].astype(bool)
    unknown = set(frame["outcome"]) - set(OUTCOMES)
    if unknown:
        words = ", ".join(sorted(map(str, unknown)))
        raise StatsError(f"unknown outcome {words}; expected one of {', '.join(OUTCOMES)}.")
    return frame


def _attacked(frame: pd.DataFrame) -> pd.Series:
    from modelfix_stats.metrics import METRICS

    attacked = [id for id, metric in METRICS.items() if metric.attacked]
    return frame["metric"].isin(attacked)


def _refuse_duplicates(frame: pd.DataFrame, key: list[str]) -> None:
    doubled = frame[frame.duplicated(key)]
    if len(doubled):
        raise StatsError(f"{_place(doubled)} occurs twice; keep one row per {', '.join(key)}.")


def _refuse_mixed(frame: pd.DataFrame, column: str, within: list[str]) -> None:
    counts = frame.dropna(subset=[column]).groupby(within)[column].nunique()
    mixed = counts[counts > 1]
    if len(mixed):
        where = ", ".join(map(str, np.atleast_1d(np.asarray(mixed.index[0], dtype=object))))
        raise StatsError(
            f"{where}: {counts.max()} different values of {column!r}; "
            "only values measured in the same way can be compared."
        )


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return ", ".join(str(first[column]) for column in KEY if column in rows)
