"""Which approach to use: ranked by what was measured, else by what the study published.

Evidence is taken from the nearest source that has a value for everything asked for: records of the
subjects in question, records of other subjects, the study's tables. Nearer sources stand first.
Within a source, entrants are compared on the subjects they share: the score is the share of the
others that an entrant beats (a tie counts half), averaged over subjects and then over priorities,
so that no sum of percents and seconds is needed and hard subjects cost nothing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from modelfix_stats.errors import StatsError
from modelfix_stats.frame import Data, Summary, complete
from modelfix_stats.metrics import find_metric
from modelfix_stats.study import ABBREVIATIONS, SUBJECTS, layers, published
from modelfix_stats.tables import Cell, Table, duration
from modelfix_stats.values import describe

METRIC_OF = {
    "accuracy": "accuracy",
    "repair": "repair_rate",
    "robustness": "asr",
    "fairness": "aaod",
    "compatibility": "nfr",
    "time": "seconds",
}
TABLE_OF = {
    "accuracy": 3,
    "repair_rate": 3,
    "asr": 5,
    "aaod": 5,
    "nfr": 5,
    "seconds": 6,
}
# Section 7.1 of the study. Of fairness it warns of DTR "like UTKFace", where DTR is UNADAPTABLE;
# its table 5 and Finding 6 say so of 3M.
ADVISED = {
    "accuracy": ("HUDD", "FM", "VERE"),
    "repair": ("AP", "ET", "HUDD"),
    "robustness": ("AP", "ET"),
    "fairness": ("IN",),
    "compatibility": ("RA", "DR", "AR", "VERE"),
    "time": ("3M", "RA", "AR", "IN"),
}
ADVISED_ON_LARGE = {"repair": ("FM", "DR"), "time": ("AR", "IN")}
WARNED = {"fairness": ("DTR", "3M")}
TABLE_NOTE = (
    "Means over subjects; changes from the original to the fixed model, in percentage points (AAOD "
    "in [0, 1]). Nearer evidence stands first, what does not serve the first priority last; within "
    "a source by the share of the others that are beaten on the same subjects."
)
MUCH = 0.005  # of accuracy lost, to be mentioned
LARGE = 69  # layers: the ResNet18 from which on the study saw effectiveness fall


class Source(StrEnum):
    """What a recommendation rests on, the nearest first."""

    RECORDS = "records"
    ELSEWHERE = "records of other subjects"
    ADVICE = "study, section 7.1 and tables"
    TABLES = "study, tables"


@dataclass(frozen=True)
class Choice:
    """An entrant that can be recommended.

    Attributes
    ----------
    rank : int
        From 1.
    entrant, approach, category : str
    score : float
        Share of the others of this source that it beats, in [0, 1]; 0.5 where there are none.
    values : dict of str to float
        By metric, means over subjects: the change towards better for accuracy, ASR and AAOD; the
        value for RR, NFR (shares) and seconds. What is not known is left out.
    source : Source
    evidence : str
        What the line rests on, in words.
    remark : str
        What speaks against it; empty if nothing does.
    """

    rank: int
    entrant: str
    approach: str
    category: str
    score: float
    values: Mapping[str, float]
    source: Source
    evidence: str
    remark: str = ""


@dataclass(frozen=True)
class LeftOut:
    """An entrant or approach that is not recommended, and why."""

    entrant: str
    approach: str
    category: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """What can be recommended, best first, and what cannot.

    Attributes
    ----------
    choices : tuple of Choice
    left_out : tuple of LeftOut
    notes : tuple of str
        What a reader must know.
    """

    choices: tuple[Choice, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()

    @property
    def approaches(self) -> list[str]:
        """Approaches in the order of their best entrant."""
        return list(dict.fromkeys(choice.approach for choice in self.choices))


@dataclass(frozen=True)
class _Candidate:
    """An entrant while it is judged: the cells of its source, and what else to know of it."""

    entrant: str
    approach: str
    category: str
    source: Source
    cells: pd.DataFrame
    remarks: tuple[str, ...] = ()
    limited: tuple[str, ...] = ()

    def mean(self, metric: str) -> float | None:
        """Return the mean over subjects, as shown; None without a value."""
        cells = self.cells[self.cells["metric"] == metric]
        return float(cells["shown"].mean()) if len(cells) else None


def recommend(
    data: Data | None,
    approaches: pd.DataFrame,
    *,
    priorities: Sequence[str] = ("repair",),
    max_nfr: float | None = None,
    max_seconds: float | None = None,
    given: Collection[str] | None = None,
    subjects: Collection[str] = (),
) -> Recommendation:
    """Rank entrants by priorities within limits.

    Parameters
    ----------
    data : DataFrame, Summary or None
        Records as the tables take them; None or without rows: the study alone is asked.
    approaches : DataFrame
        The approaches in question: ``approach``, ``category``, ``needs`` (collection of str) and
        optionally ``blocked`` (why it cannot be used here; None if it can).
    priorities : sequence of {"accuracy", "repair", "robustness", "fairness", "compatibility", \
"time"}
        Of equal weight; the first decides what counts as harm and breaks ties.
    max_nfr : float, optional
        Largest mean negative flip rate, in [0, 1].
    max_seconds : float, optional
        Longest mean time of fixing.
    given : collection of str, optional
        What the user has; approaches that need more are left out. Default: everything.
    subjects : collection of str
        What is to be fixed; their records count before those of others, and of the study's tables
        their column is read where there is one. Default: all subjects alike.

    Returns
    -------
    Recommendation

    Raises
    ------
    StatsError
        For an unknown priority, or data without the columns of the long format.
    """
    priorities = _checked(priorities)
    metrics = [METRIC_OF[priority] for priority in priorities]
    limits = {"nfr": max_nfr, "seconds": max_seconds}
    sources, notes = _sources(data, subjects)
    candidates: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for about in approaches.itertuples():
        found, refused = _evidence(about, sources, metrics)
        obstacle = _obstacle(about, given)
        if obstacle:
            # What was FIXED here in another configuration shows that there is a way.
            found = [own for own in found if own.source is Source.RECORDS and subjects]
            refused = [LeftOut(about.approach, about.approach, about.category, obstacle)]
        left_out += [] if obstacle and found else refused
        for candidate in found:
            try:
                candidates.append(_within(candidate, limits, sources))
            except _OverError as over:
                entrant = candidate.entrant
                left_out.append(LeftOut(entrant, about.approach, about.category, str(over)))
    large = any((layers(subject) or 0) >= LARGE for subject in subjects)
    return Recommendation(
        tuple(_ranked(candidates, priorities, large)), tuple(left_out), tuple(notes)
    )


def _checked(priorities: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in priorities if name not in METRIC_OF]
    if unknown or not priorities:
        words = ", ".join(unknown) or "none"
        raise StatsError(f"priority {words}: choose from {', '.join(METRIC_OF)}.")
    return tuple(dict.fromkeys(priorities))


def _obstacle(about: Any, given: Collection[str] | None) -> str | None:
    """Return why an approach cannot be used as it is."""
    blocked = getattr(about, "blocked", None)
    if isinstance(blocked, str):
        return blocked
    lacking = [] if given is None else sorted(set(about.needs) - set(given))
    return f"needs {', '.join(lacking)}, which is not given" if lacking else None


# -- evidence --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """Cells of one source: entrant, approach, subject, metric, status, reason, n, better, shown.

    `exact` says whether they are of the subjects in question, so that an outcome counts.
    """

    source: Source
    cells: pd.DataFrame
    exact: bool


def _sources(data: Data | None, subjects: Collection[str]) -> tuple[list[_Pool], list[str]]:
    """Return the pools of evidence, the nearest first, and what is wrong with the records."""
    cells, notes = _cells(data)
    ours = cells["subject"].isin(subjects) if subjects else pd.Series(True, index=cells.index)
    study, _ = _cells(published())
    full = {abbreviation: name for name, abbreviation in ABBREVIATIONS.items()}
    study["entrant"] = study["approach"] = study["approach"].map(full)
    columns = {SUBJECTS.get(subject, subject) for subject in subjects}
    column = study["subject"].isin(columns)
    pools = [
        _Pool(Source.RECORDS, cells[ours], bool(subjects)),
        _Pool(Source.ELSEWHERE, cells[~ours], False),
        _Pool(Source.TABLES, study[column] if column.any() else study, bool(column.any())),
    ]
    return pools, notes


def _cells(data: Data | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the cells of the metrics in question; one that cannot be compared is left out."""
    columns = ["entrant", "approach", "subject", "metric", "status", "reason", "n", "better"]
    frame = data.frame if isinstance(data, Summary) else data
    parts, notes = [], []
    if frame is not None and not isinstance(data, Summary) and len(frame):
        frame = complete(frame)
    for metric in METRIC_OF.values():
        rows = None if frame is None or frame.empty else frame[frame["metric"] == metric]
        if rows is None or rows.empty:
            continue
        try:
            described = describe(Summary(rows) if isinstance(data, Summary) else rows)
        except StatsError as error:
            notes.append(f"{find_metric(metric).title} of the records is not used: {error}")
            continue
        change = find_metric(metric).scoring == "change"
        parts.append(described[[*columns]].assign(shown=described["better" if change else "mean"]))
    empty = pd.DataFrame(columns=[*columns, "shown"])
    return (pd.concat(parts, ignore_index=True) if parts else empty), notes


def _evidence(
    about: Any, pools: Sequence[_Pool], metrics: Sequence[str]
) -> tuple[list[_Candidate], list[LeftOut]]:
    """Return the entrants of an approach from the nearest source that knows all the metrics."""
    name, category = about.approach, about.category
    elsewhere: list[str] = []
    for pool in pools:
        cells = pool.cells[pool.cells["approach"] == name]
        found, refused = [], []
        for entrant, own in cells.groupby("entrant", sort=False):
            known = own[(own["status"] == "OK") & own["better"].notna()]
            if set(metrics) <= set(known["metric"]):
                remarks = (*_failures(own), *elsewhere)
                found.append(_Candidate(entrant, name, category, pool.source, known, remarks))
            elif not (own["status"] == "OK").any():
                outcome = _outcome(own, pool.source)
                if pool.exact:
                    refused.append(LeftOut(entrant, name, category, outcome))
                else:
                    elsewhere.append(outcome)
        if found or refused:
            return found, refused
    titles = ", ".join(find_metric(metric).title for metric in metrics)
    nothing = f"no evidence: neither records nor the study have its {titles}"
    return [], [LeftOut(name, name, category, "; ".join([nothing, *elsewhere]))]


def _failures(cells: pd.DataFrame) -> list[str]:
    """Say where an entrant that works elsewhere did not."""
    failed = cells[~cells["status"].isin(["OK", "ABSENT"])].drop_duplicates("subject")
    return [
        f"{status} on {', '.join(part['subject'])}"
        for status, part in failed.groupby("status", sort=False)
    ]


def _outcome(cells: pd.DataFrame, source: Source) -> str:
    where = "in the study " if source is Source.TABLES else ""
    parts = []
    for (status, reason), part in cells.groupby(["status", "reason"], sort=False, dropna=False):
        why = f" ({reason})" if isinstance(reason, str) and reason else ""
        places = ", ".join(part["subject"].drop_duplicates())
        parts.append(f"{status} {where}on {places}{why}")
    return "; ".join(dict.fromkeys(parts))


class _OverError(Exception):
    """An entrant is over a limit; says which and by what evidence."""


def _within(
    candidate: _Candidate, limits: Mapping[str, float | None], pools: Sequence[_Pool]
) -> _Candidate:
    """Hold an entrant against the limits, by the nearest source that knows, and say by which."""
    for metric, limit in limits.items():
        if limit is None:
            continue
        shown: Callable[[float], str] = duration if metric == "seconds" else _percent
        title = find_metric(metric).title
        for pool in pools:
            cells = pool.cells[pool.cells["entrant"] == candidate.entrant]
            cells = cells[(cells["metric"] == metric) & (cells["status"] == "OK")]
            if len(cells):
                break
        else:
            raise _OverError(f"no evidence of its {title}, so it may be over {shown(limit)}")
        place = _place(cells, pool.source)
        value = float(cells["shown"].mean())
        if value > limit:
            raise _OverError(f"{title} {shown(value)} is over {shown(limit)} ({place})")
        if pool.source is not candidate.source:
            others = candidate.cells[candidate.cells["metric"] != metric]
            candidate = replace(
                candidate,
                cells=pd.concat([others, cells]),
                limited=(*candidate.limited, f"{title} in {place}"),
            )
    return candidate


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


# -- ranking ---------------------------------------------------------------------------------------


def _ranked(
    candidates: Sequence[_Candidate], priorities: Sequence[str], large: bool
) -> list[Choice]:
    first = priorities[0]
    advised = ADVISED_ON_LARGE.get(first, ADVISED[first]) if large else ADVISED[first]
    rows = []
    for candidate, scores in zip(candidates, _scores(candidates, priorities), strict=True):
        abbreviation = ABBREVIATIONS.get(candidate.approach, candidate.approach)
        against = _harm(candidate, first)
        own = candidate.cells[candidate.cells["metric"] == METRIC_OF[first]]
        source, evidence = candidate.source, _place(own, candidate.source)
        if source is Source.TABLES:
            tables = sorted({TABLE_OF[METRIC_OF[priority]] for priority in priorities})
            evidence = f"{_tables(tables)} of {evidence}"
            if abbreviation in advised:
                source = Source.ADVICE
                evidence += "; advised in its section 7.1"
            if abbreviation in WARNED.get(first, ()):
                against.append("the study warns of it")
        order = (bool(against), list(Source).index(source), *(-round(s, 9) for s in scores))
        rows.append((order, candidate, source, evidence, scores[0], against))
    rows.sort(key=lambda row: (row[0], row[1].entrant))
    return [
        Choice(
            rank=rank,
            entrant=candidate.entrant,
            approach=candidate.approach,
            category=candidate.category,
            score=score,
            values={
                metric: value
                for metric in METRIC_OF.values()
                if (value := candidate.mean(metric)) is not None
            },
            source=source,
            evidence="; ".join([evidence, *candidate.limited]),
            remark="; ".join([*against, *_cost(candidate), *candidate.remarks]),
        )
        for rank, (_, candidate, source, evidence, score, against) in enumerate(rows, 1)
    ]


def _scores(
    candidates: Sequence[_Candidate], priorities: Sequence[str]
) -> list[tuple[float, float]]:
    """Return each candidate's share of wins within its source: over all priorities, the first."""
    if not candidates:
        return []
    cells = pd.concat([own.cells.assign(row=row) for row, own in enumerate(candidates)])
    sources = np.array([own.source for own in candidates])
    wins = np.empty((len(candidates), len(priorities)))
    for column, priority in enumerate(priorities):
        values = cells[cells["metric"] == METRIC_OF[priority]]
        wide = values.pivot(index="subject", columns="row", values="better").astype(float)
        for source in set(sources):
            rows = np.flatnonzero(sources == source)
            wins[rows, column] = _win_rates(wide[rows])
    return list(zip(wins.mean(axis=1).tolist(), wins[:, 0].tolist(), strict=True))


def _win_rates(cells: pd.DataFrame) -> pd.Series:
    """Return the share of the others that each column beats, averaged over its rows."""
    ranks = cells.round(9).rank(axis=1)  # 1 is the worst; ties share their mean rank
    others = cells.notna().sum(axis=1) - 1
    shares = ranks.sub(1).div(others.where(others > 0), axis=0)
    return shares.mean().fillna(0.5)


def _harm(candidate: _Candidate, priority: str) -> list[str]:
    """Say where the first priority was not served: it then stands below all that serve it."""
    value = candidate.mean(METRIC_OF[priority])
    if priority == "repair" and value == 0:
        return ["repairs nothing"]
    worse = {"accuracy": "loses accuracy", "robustness": "raises ASR", "fairness": "raises AAOD"}
    if priority in worse and value is not None and round(value, 4) < 0:
        return [worse[priority]]
    return []


def _cost(candidate: _Candidate) -> list[str]:
    """Say what a fix cost in accuracy, where that is much."""
    change = candidate.mean("accuracy")
    if change is None or change > -MUCH:
        return []
    return [f"accuracy falls by {-100 * change:.1f} points"]


def _place(cells: pd.DataFrame, source: Source) -> str:
    """Say where cells of one metric were measured."""
    subjects = list(cells["subject"])
    if source is Source.TABLES:
        return f"the study on {', '.join(subjects)}"
    count = int(cells["n"].sum())
    names = ", ".join(subjects[:3]) + (f" and {len(subjects) - 3} more" if subjects[3:] else "")
    return f"{count} record{'' if count == 1 else 's'} of {names}"


def _tables(numbers: Sequence[int]) -> str:
    words = " and ".join(map(str, numbers))
    return f"table{'s' if len(numbers) > 1 else ''} {words}"


# -- writing ---------------------------------------------------------------------------------------


def recommendation_table(
    recommendation: Recommendation, priorities: Sequence[str] = ("repair",)
) -> Table:
    """Return the choices as a table: what was asked for, NFR, time, and what each rests on.

    Parameters
    ----------
    recommendation : Recommendation
    priorities : sequence of str
        As given to `recommend`.

    Returns
    -------
    Table
    """
    asked = [METRIC_OF[priority] for priority in _checked(priorities)]
    metrics = list(dict.fromkeys([*asked, "nfr", "seconds"]))
    rows = [
        (
            Cell(str(choice.rank)),
            Cell(choice.entrant),
            Cell(choice.category),
            *(Cell(_shown(choice.values.get(metric), metric)) for metric in metrics),
            Cell(str(choice.source)),
            Cell(choice.evidence),
            Cell(choice.remark),
        )
        for choice in recommendation.choices
    ]
    heads = tuple(_change(metric) + find_metric(metric).title for metric in metrics)
    narrow = (0.03, 0.12, 0.06, *(0.07 for _ in metrics))
    rest = (1 - sum(narrow)) / 5
    return Table(
        title=f"Recommended for {', '.join(priorities)}",
        groups=(),
        columns=("", "entrant", "category", *heads, "rests on", "evidence", "against it"),
        rows=tuple(rows),
        notes=(TABLE_NOTE, *recommendation.notes),
        widths=tuple(round(width, 3) for width in (*narrow, rest, 2 * rest, 1.5 * rest)),
    )


def left_out_table(recommendation: Recommendation) -> Table:
    """Return what is not recommended, with the reasons."""
    return Table(
        title="Left out",
        groups=(),
        columns=("entrant", "category", "reason"),
        rows=tuple(
            (Cell(own.entrant), Cell(own.category), Cell(own.reason))
            for own in recommendation.left_out
        ),
        widths=(0.15, 0.08, 0.7),
    )


def _change(metric: str) -> str:
    return "change of " if find_metric(metric).scoring == "change" else ""


def _shown(value: float | None, metric: str) -> str:
    """Return a value as printed; a change with the sign of the metric itself."""
    known = find_metric(metric)
    if value is None:
        return "-"
    if metric == "seconds":
        return duration(value)
    if known.scoring == "change":
        change = round(known.sign * known.shown * value, known.decimals)
        return f"{change + 0.0:+.{known.decimals}f}"  # + 0.0: no negative zero
    return _percent(value)
