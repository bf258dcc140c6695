"""What a study will do, before anything runs."""

from dataclasses import dataclass
from typing import Any

from modelfix_core.subjects.availability import availability
from modelfix_core.subjects.catalogue import CATALOGUE
from rich.console import Console
from rich.table import Table

from modelfix.grid.display import duration
from modelfix.grid.plan import Plan, finish_time


@dataclass(frozen=True)
class Row:
    """One entrant on one subject, with all its repetitions.

    Attributes
    ----------
    subject, entrant : str
    needs : list of str
        What the approach takes.
    unfit : str or None
        Why it cannot be applied.
    complete, cells : int
        Repetitions with a record, and all.
    seconds : float or None
        Of one repetition; 0 where the approach cannot be applied.
    source : str
        Where `seconds` comes from.
    """

    subject: str
    entrant: str
    needs: list[str]
    unfit: str | None
    complete: int
    cells: int
    seconds: float | None
    source: str


@dataclass(frozen=True)
class Found:
    """What `look` found.

    Attributes
    ----------
    rows : list of Row
    subjects : dict of str to str
        What each subject still needs; "prepared" where it is there.
    slots : int
        Cells at once on this machine.
    work : float
        Seconds of all that is left, one after the other, as far as known.
    duration : float
        Seconds until all is done here.
    unknown : int
        Cells of whose time nothing is known.
    """

    rows: list[Row]
    subjects: dict[str, str]
    slots: int
    work: float
    duration: float
    unknown: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "rows": [vars(row) for row in self.rows]}


def look(plan: Plan, slots: int) -> Found:
    """Look at every cell of a study; nothing is run, prepared or downloaded."""
    rows = []
    for subject in plan.study.subjects:
        for entrant in plan.study.entrants:
            cells = [c for c in plan.cells if (c.subject, c.entrant) == (subject, entrant)]
            unfit = plan.unfit(subject, entrant)
            estimate = plan.estimate(subject, entrant)
            rows.append(
                Row(
                    subject=subject,
                    entrant=entrant.name,
                    needs=sorted(plan.catalogue.find(entrant.approach).needs),
                    unfit=unfit,
                    complete=sum(plan.complete(cell) is not None for cell in cells),
                    cells=len(cells),
                    seconds=0.0 if unfit else estimate.seconds,
                    source="" if unfit else estimate.source,
                )
            )
    left = [row.seconds for row in rows for _ in range(row.cells - row.complete)]
    known = [seconds for seconds in left if seconds is not None]
    return Found(
        rows=rows,
        subjects={name: _needed(plan, name) for name in plan.study.subjects},
        slots=plan.at_once(slots),
        work=sum(known),
        duration=finish_time(known, plan.at_once(slots)),
        unknown=len(left) - len(known),
    )


def _needed(plan: Plan, subject: str) -> str:
    if subject not in CATALOGUE:
        return "prepared"
    there = availability(CATALOGUE[subject], plan.home.subjects)
    return "prepared" if there.state == "ready" else f"{there.state}: {there.how}"


def show(found: Found) -> None:
    """Print one line per entrant and subject, what subjects need, and how long all takes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("subject", "entrant", "needs", "complete", "one cell", "from"):
        table.add_column(column, overflow="fold")
    for row in found.rows:
        time = "?" if row.seconds is None else duration(row.seconds)
        about = [f"UNADAPTABLE: {row.unfit}"] if row.unfit else [row.source]
        done = f"{row.complete} of {row.cells}"
        table.add_row(
            row.subject, row.entrant, ", ".join(row.needs), done, "-" if row.unfit else time, *about
        )
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table, markup=False)
    console.print()
    for name, needed in found.subjects.items():
        console.print(f"{name}: {needed}", highlight=False, markup=False)
    cells, complete = (
        sum(getattr(row, part) for row in found.rows) for part in ("cells", "complete")
    )
    unfit = sum(row.cells for row in found.rows if row.unfit)
    unknown = f", and {found.unknown} of unknown length" if found.unknown else ""
    console.print(
        f"{cells} cells, {complete} complete, {unfit} not applicable; about "
        f"{duration(found.work)} of work left{unknown}, {duration(found.duration)} on this machine "
        f"({found.slots} at once).",
        highlight=False,
    )
