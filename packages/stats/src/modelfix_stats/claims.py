"""Kinds of claims about approaches, and what records say of them.

What a claim compares are means over subjects of the mean over approaches, as in the study's text,
on the subjects that all its sides have.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from modelfix_stats.errors import StatsError
from modelfix_stats.frame import FIXED, Data, Summary, complete
from modelfix_stats.metrics import find_metric
from modelfix_stats.study import ABBREVIATIONS, layers
from modelfix_stats.tables import duration, signless
from modelfix_stats.values import describe

ENOUGH = 2  # approaches that can stand for a group; one, where it has one only
MANY = 8  # of the 16 approaches, that can stand for all

Sides = Mapping[str, str | tuple[str, ...]]  # label to a category or to approaches


class Verdict(StrEnum):
    """What records say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNKNOWN = "not enough records"


@dataclass(frozen=True)
class Claim:
    """A statement over records with its verdict.

    Attributes
    ----------
    statement : str
        What is computed and must be true.
    verdict : Verdict
    sentence : str
        The numbers behind the verdict, or what is missing.
    numbers : DataFrame
        The same numbers, a row for each side of the claim; empty where records are missing.
    """

    statement: str
    verdict: Verdict
    sentence: str
    numbers: pd.DataFrame


# -- what claims are computed from -----------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """What is averaged: a column of `describe`, how it is computed with and how it is written."""

    metric: str
    column: str
    title: str
    unit: str = "%"
    inner: Callable[[pd.Series], pd.Series] = lambda values: values
    outer: Callable[[float], float] = lambda value: value

    def show(self, value: float) -> str:
        """Return an averaged value as text."""
        return duration(value) if self.unit == "s" else f"{signless(f'{value:.2f}')} %"


def _percent(values: pd.Series) -> pd.Series:
    return 100 * values


FIXED_SHARE = Quantity("", "fixed", "outcome", inner=_percent)
ACCURACY = Quantity("accuracy", "gain", "accuracy gain")
REPAIR = Quantity("repair_rate", "mean", "RR", inner=_percent)
NFR = Quantity("nfr", "mean", "NFR", inner=_percent)
ASR = Quantity("asr", "gain", "ASR gain")
ASR_KEPT = Quantity("asr", "gain", "ASR gain", inner=lambda gain: 100.0 * (gain.round(2) >= 0))
AAOD = Quantity("aaod", "gain", "AAOD gain")
SECONDS = Quantity("seconds", "mean", "time", "s", np.log10, lambda value: 10.0**value)


class Missing(Exception):
    """Records that a claim needs are missing; says which."""


class Records:
    """Cells by quantity, one entrant for each approach."""

    def __init__(self, data: Data) -> None:
        self.summary = isinstance(data, Summary)
        frame = data.frame if isinstance(data, Summary) else complete(data)
        self.frame = represented(frame)
        self._cells: dict[str, pd.DataFrame] = {}

    def values(self, quantity: Quantity) -> pd.DataFrame:
        """Return approach (the study's abbreviation), category, subject and value of the cells."""
        cells = self._fixed() if quantity is FIXED_SHARE else self._described(quantity.metric)
        rows = cells[["approach", "category", "subject"]].copy()
        rows["approach"] = rows["approach"].map(ABBREVIATIONS).fillna(rows["approach"])
        rows["value"] = quantity.inner(cells[quantity.column].astype(float))
        rows = rows[cells[quantity.column].notna()]
        if rows.empty:
            raise Missing(f"no record has a value of {quantity.title}")
        return rows

    def _fixed(self) -> pd.DataFrame:
        key = ["subject", "entrant", *([] if self.summary else ["repetition"])]
        cells = self.frame.drop_duplicates(key)
        cells = cells.assign(fixed=(cells["outcome"] == FIXED).astype(float))
        by_cell = cells.groupby(["approach", "category", "subject"], sort=False)["fixed"]
        return by_cell.mean().reset_index()

    def _described(self, metric: str) -> pd.DataFrame:
        if metric not in self._cells:
            rows = self.frame[self.frame["metric"] == metric]
            if rows.empty:
                raise Missing(f"no record has {find_metric(metric).title}")
            try:
                self._cells[metric] = describe(Summary(rows) if self.summary else rows)
            except StatsError as error:
                raise Missing(f"the records cannot be compared: {error}") from error
        return self._cells[metric]


def representatives(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the entrant that stands for each approach on each subject.

    Parameters
    ----------
    frame : DataFrame
        With the columns approach, entrant and subject.

    Returns
    -------
    DataFrame
        approach, subject, entrant: the one of the approach's name (its default preset) where it
        has rows there, else the one with rows on most subjects.
    """
    about = frame[["approach", "subject", "entrant"]].drop_duplicates()
    about = about.assign(
        named=about["entrant"] == about["approach"],
        subjects=about.groupby(["approach", "entrant"])["subject"].transform("size"),
    )
    about = about.sort_values(["named", "subjects", "entrant"], ascending=[False, False, True])
    chosen = about.drop_duplicates(["approach", "subject"]).sort_index()
    return chosen[["approach", "subject", "entrant"]].reset_index(drop=True)


def represented(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the entrants that stand for their approaches."""
    names = ["approach", "subject", "entrant"]
    chosen = pd.MultiIndex.from_frame(representatives(frame))
    return frame[pd.MultiIndex.from_frame(frame[names]).isin(chosen)]


# -- kinds of claims -------------------------------------------------------------------------------


def _claim(
    records: Records,
    quantity: Quantity,
    statement: str,
    judge: Callable[[pd.DataFrame], tuple[bool, str, pd.DataFrame]],
) -> Claim:
    """Return the claim as `judge` finds it; missing records are its sentence."""
    try:
        holds, sentence, numbers = judge(records.values(quantity))
    except Missing as missing:
        return Claim(statement, Verdict.UNKNOWN, f"{missing}.", pd.DataFrame())
    return Claim(statement, Verdict.HOLDS if holds else Verdict.FAILS, f"{sentence}.", numbers)


def ordered(
    records: Records,
    quantity: Quantity,
    statement: str,
    sides: Sides,
    *,
    low_first: bool = False,
    first_only: bool = False,
    last_only: bool = False,
) -> Claim:
    """Claim that the means of the sides fall (rise) from the first to the last.

    With `first_only` the first side is compared with each of the others, with `last_only` the last.
    """
    count = len(sides)
    if first_only:
        pairs = [(0, j) for j in range(1, count)]
    elif last_only:
        pairs = [(i, count - 1) for i in range(count - 1)]
    else:
        pairs = [(i, i + 1) for i in range(count - 1)]
    sign = -1 if low_first else 1

    def holds(values: "pd.Series[float]") -> bool:
        steps = [sign * (values.iloc[i] - values.iloc[j]) for i, j in pairs]
        return all(round(step, 9) > 0 for step in steps)

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        members = {label: _members(rows, who) for label, who in sides.items()}
        by_subject = pd.DataFrame(
            {
                label: own.groupby("subject", sort=False)["value"].mean()
                for label, own in members.items()
            }
        )
        shared = by_subject.dropna()
        _refuse_few(members, sides, list(shared.index))
        mean, everywhere = shared.mean(), by_subject.mean()
        numbers = pd.DataFrame(
            {
                "value": mean.map(quantity.outer),
                "unit": quantity.unit,
                "subjects": len(shared),
                "approaches": [_known(own, shared.index) for own in members.values()],
                "value_everywhere": everywhere.map(quantity.outer),
                "subjects_everywhere": by_subject.notna().sum(),
            }
        ).rename_axis("side")
        agree = sum(holds(row) for _, row in shared.iterrows())
        sentence = f"{_listed(numbers['value'], quantity)} on {_places(shared.index)}"
        if len(shared) > 1:
            sentence += f" (as claimed on {agree} of them)"
        if len(shared) < len(by_subject):
            same = "" if holds(mean) == holds(everywhere) else ", which changes the verdict"
            values = _listed(numbers["value_everywhere"], quantity)
            sentence += f"; each on all its subjects: {values}{same}"
        return holds(mean), sentence, numbers.reset_index()

    return _claim(records, quantity, statement, judge)


def _members(rows: pd.DataFrame, who: str | tuple[str, ...]) -> pd.DataFrame:
    if isinstance(who, str):
        return rows[rows["category"] == who]
    return rows[rows["approach"].isin(who)]


def _known(rows: pd.DataFrame, subjects: pd.Index) -> int:
    return rows.loc[rows["subject"].isin(subjects), "approach"].nunique()


def _refuse_few(members: Mapping[str, pd.DataFrame], sides: Sides, shared: list[str]) -> None:
    """Raise if no subject has a value of every side, or a side is too few approaches."""
    empty = [label for label, rows in members.items() if rows.empty]
    if empty:
        raise Missing(f"no value of {'; of '.join(empty)}")
    if not shared:
        raise Missing(f"no subject has values of {' and of '.join(sides)}")
    for label, who in sides.items():
        needed = min(ENOUGH, ENOUGH if isinstance(who, str) else len(who))
        known = _known(members[label], pd.Index(shared))
        if known < needed:
            have = "approach" if known == 1 else "approaches"
            raise Missing(
                f"{label}: {known} {have} on {_places(shared)}, where every side has values; "
                f"{needed} are needed"
            )


def _places(subjects: Iterable[str]) -> str:
    names = list(subjects)
    return names[0] if len(names) == 1 else f"{len(names)} subjects"


def _listed(values: pd.Series, quantity: Quantity) -> str:
    return "; ".join(f"{label} {quantity.show(value)}" for label, value in values.items())


def never_worse(records: Records, quantity: Quantity, names: tuple[str, ...]) -> Claim:
    """Claim that no cell of these approaches is worse than the original model."""
    metric = find_metric(quantity.metric)
    statement = f"{', '.join(names)}: {metric.title} is nowhere worse than the original model's"

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        own = _members(rows, names)
        missing = [name for name in names if name not in set(own["approach"])]
        if missing:
            raise Missing(f"no value of {', '.join(missing)}")
        if own["subject"].nunique() < 2:
            raise Missing(f"one subject only, {own['subject'].iloc[0]}; stability needs two")
        worse = own["value"].round(2) < 0
        numbers = (
            own.assign(worse=worse)
            .groupby("approach")
            .agg(subjects=("value", "size"), worse=("worse", "sum"), least=("value", "min"))
        )
        sentence = "; ".join(
            f"{name}: worse on {row['worse']:.0f} of {row['subjects']:.0f}, "
            f"least gain {quantity.show(row['least'])}"
            for name, row in numbers.reindex(names).iterrows()
        )
        return not worse.any(), sentence, numbers.reindex(names).reset_index()

    return _claim(records, quantity, statement, judge)


def mostly_kept(records: Records, quantity: Quantity) -> Claim:
    """Claim that most cells are no worse than the original model."""
    title = find_metric(quantity.metric).title

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        _refuse_fewer(rows, MANY)
        kept = rows.assign(kept=rows["value"].round(2) >= 0)
        numbers = kept.groupby("subject", sort=False).agg(
            cells=("kept", "size"), kept=("kept", "sum"), median=("value", "median")
        )
        share = kept["kept"].mean()
        sentence = (
            f"{kept['kept'].sum()} of {len(kept)} cells ({100 * share:.0f} %), median gain "
            f"{quantity.show(rows['value'].median())}"
        )
        return share > 0.5, sentence, numbers.reset_index()

    return _claim(records, quantity, f"{title} does not rise in most cells", judge)


def best_everywhere(records: Records, quantity: Quantity, name: str) -> Claim:
    """Claim that an approach has the largest gain on every subject."""

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        subjects = rows.loc[rows["approach"] == name, "subject"]
        rows = rows[rows["subject"].isin(subjects)]
        if rows.empty:
            raise Missing(f"no value of {name}")
        _refuse_fewer(rows, ENOUGH + 1)
        wide = rows.pivot_table(index="subject", columns="approach", values="value", sort=False)
        others = wide.drop(columns=name)
        numbers = pd.DataFrame(
            {"value": wide[name], "best_other": others.max(axis=1), "other": others.idxmax(axis=1)}
        )
        sentence = "; ".join(
            f"{subject}: {name} {quantity.show(row['value'])}, {row['other']} "
            f"{quantity.show(row['best_other'])}"
            for subject, row in numbers.iterrows()
        )
        holds = bool((numbers["value"] > numbers["best_other"]).all())
        return holds, sentence, numbers.reset_index()

    title = find_metric(quantity.metric).title
    statement = f"{name} has the largest relative {title} gain on every subject"
    return _claim(records, quantity, statement, judge)


def worst_of_all(records: Records, quantity: Quantity, name: str) -> Claim:
    """Claim that the largest loss of all cells is an approach's."""
    title = find_metric(quantity.metric).title

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        if name not in set(rows["approach"]):
            raise Missing(f"no value of {name}")
        _refuse_fewer(rows, ENOUGH + 1)
        numbers = rows.sort_values("value", kind="stable").groupby("approach", sort=False).first()
        (first, worst), (second, next_worst) = list(numbers.iterrows())[:2]
        sentence = (
            f"{first} {quantity.show(worst['value'])} on {worst['subject']}, then {second} "
            f"{quantity.show(next_worst['value'])} on {next_worst['subject']}"
        )
        if name not in (first, second):
            own = numbers.loc[name]
            sentence += f"; {name} {quantity.show(own['value'])} on {own['subject']}"
        return first == name and worst["value"] < 0, sentence, numbers.reset_index()

    return _claim(records, quantity, f"the largest relative loss of {title} is {name}'s", judge)


def _refuse_fewer(rows: pd.DataFrame, needed: int) -> None:
    known = rows["approach"].nunique()
    if known < needed:
        have = "approach has" if known == 1 else "approaches have"
        raise Missing(f"{known} {have} a value; {needed} are needed")


def falling(records: Records, quantity: Quantity, statement: str) -> Claim:
    """Claim that the mean of the approaches falls with the layers of the model."""

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        rows = _sized(rows, 3)
        numbers = rows.groupby("subject").agg(
            layers=("layers", "first"), value=("value", "mean"), approaches=("value", "size")
        )
        few = numbers[numbers["approaches"] < ENOUGH]
        numbers = numbers.drop(index=few.index).sort_values("layers", kind="stable")
        if numbers["layers"].nunique() < 3:
            raise Missing("fewer than three sizes of models with two approaches each")
        varied = numbers["value"].nunique() > 1
        rho = numbers["layers"].corr(numbers["value"], method="spearman") if varied else np.nan
        values = ", ".join(
            f"{subject} ({row['layers']:.0f} layers) {quantity.show(row['value'])}"
            for subject, row in numbers.iterrows()
        )
        rank = f"rank correlation {rho:.2f}" if np.isfinite(rho) else "the same everywhere"
        return bool(rho < 0), f"{values}; {rank}", numbers.reset_index()

    return _claim(records, quantity, statement, judge)


def falling_each(records: Records, quantity: Quantity, statement: str) -> Claim:
    """Claim that the value of most approaches falls with the layers of the model."""

    def judge(rows: pd.DataFrame) -> tuple[bool, str, pd.DataFrame]:
        rows = _sized(rows, 2)
        by_size = rows.groupby(["approach", "layers"])["value"].mean().reset_index()
        several = by_size.groupby("approach").filter(lambda own: len(own) > 1)
        _refuse_fewer(several, MANY)
        slope = several.groupby("approach")[["layers", "value"]].apply(
            lambda own: own["layers"].cov(own["value"]) / own["layers"].var()
        )
        numbers = slope.rename("points_per_layer").reset_index()
        fall = int((slope < 0).sum())
        sentence = f"falls for {fall} of {len(slope)} approaches with models of several sizes"
        return fall > len(slope) / 2, sentence, numbers

    return _claim(records, quantity, statement, judge)


def _sized(rows: pd.DataFrame, sizes: int) -> pd.DataFrame:
    """Return the rows of subjects whose model's number of layers is known, with it."""
    rows = rows.assign(layers=rows["subject"].map(layers)).dropna(subset=["layers"])
    known = rows["layers"].nunique()
    if known < sizes:
        raise Missing(f"models of {known} of the study's sizes; {sizes} are needed")
    return rows
