"""Where the cells of a study stand, read from the records, and the matrix that shows it."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import Timeout
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.record import Record
from rich.console import Group
from rich.table import Table
from rich.text import Text

from modelfix.grid.cell import lock_of
from modelfix.grid.plan import WITH_MODEL, Cell, Plan

TROUBLES = "troubles.json"


class State(StrEnum):
    """Where a cell stands."""

    FIXED = "FIXED"
    CORRUPTED = "CORRUPTED"
    FAILURE = "FAILURE"
    UNADAPTABLE = "UNADAPTABLE"
    RUNNING = "running"
    ELSEWHERE = "running elsewhere"
    WAITING = "waiting"
    TROUBLE = "no record"


SIGNS = {
    State.FIXED: ("F", "green"),
    State.CORRUPTED: ("C", "red"),
    State.FAILURE: ("X", "red"),
    State.UNADAPTABLE: ("u", "yellow"),
    State.RUNNING: (">", "bold cyan"),
    State.ELSEWHERE: ("~", "cyan"),
    State.WAITING: (".", "dim"),
    State.TROUBLE: ("!", "bold red"),
}
COMPLETE = {State(outcome) for outcome in Outcome}


@dataclass(frozen=True)
class Standing:
    """Where a cell stands and why: the reason of an outcome, or of a missing record."""

    state: State
    reason: str | None = None


def of_record(record: Record) -> Standing:
    """Return the standing of a cell with a complete record."""
    return Standing(State(record.outcome), record.reason)


def read(plan: Plan) -> dict[Cell, Standing]:
    """Return where every cell stands: records, locks of running cells, noted troubles."""
    troubles = load_troubles(plan)
    return {cell: _standing(plan, cell, troubles) for cell in plan.cells}


def _standing(plan: Plan, cell: Cell, troubles: Mapping[str, str]) -> Standing:
    if is_locked(plan, cell):
        return Standing(State.RUNNING)
    try:
        record = Record.load(plan.job(cell).record)
    except ModelfixError:
        record = None
    if record is not None and (record.outcome not in WITH_MODEL or record.evaluation is not None):
        return of_record(record)
    reason = troubles.get(cell.name)
    return Standing(State.WAITING) if reason is None else Standing(State.TROUBLE, reason)


def is_locked(plan: Plan, cell: Cell) -> bool:
    """Return whether a process on this machine, or one that shares the folder, works on a cell."""
    lock = lock_of(plan.job(cell).record)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False


def load_troubles(plan: Plan) -> dict[str, str]:
    """Return why cells have no record, by name, as the last run noted it."""
    try:
        return json.loads((plan.folder / TROUBLES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def save_troubles(plan: Plan, standings: Mapping[Cell, Standing]) -> None:
    """Note why cells have no record, for the next look; a full disk is no reason to stop."""
    troubles = {
        cell.name: one.reason for cell, one in standings.items() if one.state is State.TROUBLE
    }
    with contextlib.suppress(ModelfixError):
        write_text(plan.folder / TROUBLES, json.dumps(troubles, indent=2))


def matrix(plan: Plan, standings: Mapping[Cell, Standing]) -> Group:
    """Return entrants by subjects, one sign per repetition, with what the signs mean."""
    subjects = plan.study.subjects
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for subject in subjects:
        table.add_column(subject)
    for entrant in plan.study.entrants:
        row: list[str | Text] = [entrant.name]
        for subject in subjects:
            states = [
                standings[cell].state
                for cell in plan.cells
                if cell.subject == subject and cell.entrant == entrant
            ]
            row.append(_signs(states))
        table.add_row(*row)
    states = [standing.state for standing in standings.values()]
    return Group(table, Text(), legend(states))


def _signs(states: Sequence[State]) -> Text:
    return Text.assemble(*(SIGNS[state] for state in states))


def legend(states: Sequence[State]) -> Text:
    """Return how many cells stand where: ``F 3 FIXED  . 2 waiting``."""
    parts: list[str | tuple[str, str]] = []
    for state, (sign, style) in SIGNS.items():
        if state in states:
            parts += [(sign, style), f" {states.count(state)} {state}   "]
    return Text.assemble(*parts)


def as_rows(plan: Plan, standings: Mapping[Cell, Standing]) -> list[dict]:
    """Return JSON values, one row per cell."""
    return [
        {
            "subject": cell.subject,
            "entrant": cell.entrant.name,
            "repetition": cell.repetition,
            "state": str(standing.state),
            "reason": standing.reason,
            "record": str(plan.job(cell).record),
        }
        for cell, standing in standings.items()
    ]
