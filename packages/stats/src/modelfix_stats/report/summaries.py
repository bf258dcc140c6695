"""The report's numbers and tables for everything it holds; the page computes those of parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from modelfix_stats.cells import default_scale, make_cells
from modelfix_stats.comparison import Comparison
from modelfix_stats.errors import StatsError
from modelfix_stats.frame import FIXED, KEY, check
from modelfix_stats.metrics import METRICS, Metric, find_metric
from modelfix_stats.ranks import pareto_front
from modelfix_stats.tables import Cell, Table, duration, signless
from modelfix_stats.values import success_rates

FIRST = "repair_rate"  # what is shown before a reader chooses
MAIN = ("accuracy", "repair_rate", "asr", "aaod", "nfr", "seconds")
MEASURED = ("value", "original", "numerator", "denominator", "definition")


def comparable(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return rows that can be compared, and a sentence for everything that cannot be.

    What was measured in different ways, lacks the original's value or has impossible times loses
    its values, with a reason; its cells stay. The second row of a key is left out.

    Raises
    ------
    StatsError
        If there are no rows of metrics that the statistics know, or columns are missing.
    """
    lacking = [column for column in (*KEY, "value") if column not in frame]
    if lacking or not frame["metric"].isin(list(METRICS)).any():
        what = f"lacks the column {', '.join(lacking)}" if lacking else "has no known metric"
        raise StatsError(f"the data frame {what}; a report needs results.")
    rows = frame[frame["metric"].isin(list(METRICS))].reset_index(drop=True)
    doubled = rows.duplicated(KEY)
    sentences = [
        f"{row.entrant} on {row.subject}, repetition {row.repetition}: occurs more than once; the "
        "first is shown."
        for row in rows[doubled].drop_duplicates(KEY[:3]).itertuples()
    ]
    rows = rows[~doubled].copy()
    if "reason" not in rows:
        rows["reason"] = None
    for (subject, metric), part in rows.groupby(["subject", "metric"], sort=False):
        try:
            make_cells(part, str(metric), default_scale(str(metric), "standard"))
        except StatsError as error:
            sentences.append(f"{find_metric(str(metric)).title} on {subject} is left out: {error}")
            measured = [column for column in MEASURED if column in rows]
            rows.loc[part.index, measured] = None
            rows.loc[part.index, "reason"] = part["reason"].fillna(str(error))
    return check(rows), sentences


def metrics_of(frame: pd.DataFrame) -> list[Metric]:
    """Return the metrics with a value, in the registry's order."""
    found = set(frame.loc[frame["value"].notna(), "metric"]) if len(frame) else set()
    return [metric for metric in METRICS.values() if metric.id in found]


# -- one value per entrant -------------------------------------------------------------------------


def effects(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean score of each entrant over its subjects, and how it varies.

    Parameters
    ----------
    frame : DataFrame
    metric : str

    Returns
    -------
    DataFrame
        By entrant: score (higher is better, as in `compare`), deviation (standard deviation of
        that mean from one repetition to the next; NaN for copies and single repetitions),
        subjects.
    """
    cells = make_cells(frame, metric, default_scale(metric, "standard"))
    here = cells.present
    subjects = here.sum(axis=1)
    variance = np.where(here, np.where(cells.copies, 0.0, cells.variance), 0.0)
    copies = (cells.copies | ~here).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(here, 1 / subjects[:, None], 0.0)
        score = (share * np.where(here, cells.mean, 0.0)).sum(axis=1)
        deviation = np.sqrt(variance.sum(axis=1)) / subjects
    return pd.DataFrame(
        {
            "score": np.where(subjects > 0, score, np.nan),
            "deviation": np.where(copies, np.nan, deviation),
            "subjects": subjects,
        },
        index=pd.Index(cells.entrants, name="entrant"),
    )


def effect_text(score: float, deviation: float, metric: Metric) -> str:
    """Return a mean score as it is read: NFR and changes of ASR lower is better, time as time."""
    if np.isnan(score):
        return "-"
    if metric.scoring == "time":
        if np.isnan(deviation):
            return duration(10**-score)
        low, high = 10 ** -(score + deviation), 10 ** -(score - deviation)
        return f"{duration(10**-score)} ({duration(low)} to {duration(high)})"
    text = signless(f"{metric.sign * score:.2f}")
    return text if np.isnan(deviation) else f"{text} ± {deviation:.2f}"


# -- tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """A figure's table: its columns are metrics, its rows entrants."""

    title: str
    metrics: tuple[str, ...]
    front: bool = False


UNITS = {"change": "change, points", "value": "%", "time": "geometric mean"}
EFFECTS = {
    "regression": Effect("Repair against regression", ("nfr", "repair_rate"), front=True),
    "robustness": Effect("Accuracy against attack success", ("asr", "accuracy"), front=True),
    "time": Effect("Time against effect", ("seconds", "repair_rate")),
    "profile": Effect("Profile over the metrics", MAIN),
}


def effect_table(frame: pd.DataFrame, effect: Effect) -> Table:
    """Return mean and deviation of every entrant, and who is on the Pareto front."""
    have = [metric.id for metric in metrics_of(frame)]
    metrics = [find_metric(id) for id in effect.metrics if id in have]
    names = list(frame["entrant"].drop_duplicates())
    found = {metric.id: effects(frame, metric.id).reindex(names) for metric in metrics}
    scores = pd.DataFrame({id: part["score"] for id, part in found.items()}, index=names)
    front = pareto_front(scores) if effect.front and len(metrics) > 1 else None
    rows = []
    for name in names:
        if scores.loc[name].isna().all():
            continue
        parts = {metric.id: found[metric.id].loc[name] for metric in metrics}
        cells = [Cell(name), Cell(category(frame, name))]
        cells += [
            Cell(effect_text(parts[m.id]["score"], parts[m.id]["deviation"], m)) for m in metrics
        ]
        cells.append(Cell(str(int(max(part["subjects"] for part in parts.values())))))
        if front is not None:
            cells.append(Cell("yes" if front[name] else ""))
        rows.append(tuple(cells))
    columns = ["approach", "category", *map(_head, metrics)]
    columns += ["subjects"] + (["not dominated"] if front is not None else [])
    return Table(effect.title, (), tuple(columns), tuple(rows))


def leaderboard(frame: pd.DataFrame, comparisons: Mapping[str, Comparison], by: str) -> Table:
    """Return a row per entrant with mean and letters of every metric, best of `by` first."""
    rates = success_rates(frame)
    orders = {id: c.order.set_index("entrant") for id, c in comparisons.items()}
    first = comparisons[by].order.set_index("entrant") if by in comparisons else pd.DataFrame()
    rows = []
    for name in [*first.index, *(name for name in rates.index if name not in first.index)]:
        cells = [Cell(name)]
        cells.append(Cell(f"{first.loc[name, 'rank']:.0f}" if name in first.index else "-"))
        cells.append(Cell(category(frame, name)))
        cells.append(Cell(f"{rates.loc[name, 'fixed']}/{rates.loc[name, 'attempted']}"))
        for id, order in orders.items():
            known = name in order.index
            cells.append(Cell(_scored(order.loc[name], find_metric(id)) if known else "-"))
        rows.append(tuple(cells))
    heads = [_head(find_metric(id)) for id in comparisons]
    columns = ("approach", "rank", "category", "fixed", *heads)
    return Table("Leaderboard: means and letters", (), columns, tuple(rows))


def _head(metric: Metric) -> str:
    return f"{metric.title} ({UNITS[metric.scoring]})"


def _scored(row: pd.Series, metric: Metric) -> str:
    return f"{effect_text(row['score'], float('nan'), metric)} {row['letters']}".strip()


def values_table(frame: pd.DataFrame, metric: str) -> Table:
    """Return mean and standard deviation (ddof 1) of every cell, entrant by subject."""
    known = find_metric(metric)
    subjects = list(frame["subject"].drop_duplicates())
    cells = frame.groupby(["entrant", "subject"], sort=False)
    texts = {key: _value_text(part, known) for key, part in cells}
    rows = [
        (Cell(name), *(Cell(texts.get((name, subject), "-")) for subject in subjects))
        for name in frame["entrant"].drop_duplicates()
    ]
    title = f"{known.title} by subject{' (%)' if known.percent else ''}"
    return Table(title, (), ("approach", *subjects), tuple(rows))


def _value_text(part: pd.DataFrame, metric: Metric) -> str:
    rows = part[part["metric"] == metric.id]
    values = rows["value"].dropna().tolist()
    if not values:
        return ", ".join(part.loc[part["outcome"] != FIXED, "outcome"].unique()) or "-"
    mean = sum(values) / len(values)
    text = f"{metric.shown * mean:.{metric.decimals}f}"
    equal = len(set(values)) == 1
    copies = equal and rows["deterministic"].all() and not metric.noisy
    if len(values) == 1 or copies:
        return text
    deviation = 0.0 if equal else float(np.std(values, ddof=1))
    return f"{text} ± {metric.shown * deviation:.{metric.decimals}f}"


def category(frame: pd.DataFrame, name: str) -> str:
    """Return the category of an entrant."""
    return str(frame.loc[frame["entrant"] == name, "category"].iloc[0])


def single_repetitions(frame: pd.DataFrame) -> Sequence[str]:
    """Return a sentence where cells have one repetition, and so no deviation."""
    fixed = frame[frame["value"].notna() & ~frame["deterministic"]]
    counts = fixed.groupby(["entrant", "subject"])["repetition"].nunique()
    alone = int((counts == 1).sum())
    if not alone:
        return ()
    return (
        f"{alone} of {len(counts)} cells have a single repetition: they have no deviation, and "
        "pairs with them cannot be tested.",
    )
