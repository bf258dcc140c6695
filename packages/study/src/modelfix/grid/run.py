"""Run a study: prepare what its cells share, give the cells to an engine, keep the books."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from filelock import FileLock
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import explain_write_errors, write_text
from modelfix_core.subject import CARD_FILE
from modelfix_core.subjects.availability import availability
from modelfix_core.subjects.catalogue import CATALOGUE
from pydantic import ValidationError

from modelfix import cells as single
from modelfix.environments import EnvironmentFailed
from modelfix.grid.cell import ATTEMPTS, BUSY, CellResult
from modelfix.grid.engines import Ended, Engine, Started
from modelfix.grid.plan import Cell, Plan
from modelfix.grid.status import Standing, State, is_locked, of_record, save_troubles
from modelfix.grid.store import Store
from modelfix.grid.study import dump
from modelfix.runtimes import Runtimes

STUDY_FILE = "study.yaml"
INTERVAL = 1.0  # seconds between two looks at the engine
AGAIN = 5.0  # seconds until the next look at a cell that runs elsewhere

Watch = Callable[[Cell, Standing], None]


class StudyRun:
    """One run of a study; what is complete is reused, whatever it was that made it.

    Parameters
    ----------
    plan : Plan
    watch : callable, optional
        Gets each cell and its new standing.
    """

    def __init__(self, plan: Plan, watch: Watch | None = None) -> None:
        self.plan = plan
        self.standings = {cell: Standing(State.WAITING) for cell in plan.cells}
        self.watch = watch or (lambda cell, standing: None)
        self._store = None if plan.store is None else Store(plan.store, plan.home)
        self._again: set[Cell] = set()
        self._attempts: Counter[Cell] = Counter()

    def prepare(self, runtimes: Runtimes, again: Collection[Outcome] = ()) -> list[Cell]:
        """Prepare subjects and environments, and return the cells that are to be run.

        What cannot be prepared is the trouble of its cells alone.

        Parameters
        ----------
        runtimes : Runtimes
        again : collection of Outcome
            Complete cells with these outcomes are run again.

        Raises
        ------
        ModelfixError
            If the study's folder cannot be written.
        """
        write_text(self.plan.folder / STUDY_FILE, dump(self.plan.study))
        for subject in self.plan.study.subjects:
            with self._trouble_of(lambda cell: cell.subject == subject):  # noqa: B023  used at once
                prepare_subject(self.plan.home, runtimes, subject)
                if self._store is not None:
                    self._store.push_subject(subject)
        waiting = []
        for cell in self._waiting():
            self._fetch(cell)
            record = self.plan.complete(cell)
            if record is not None and record.outcome not in again:
                self._set(cell, of_record(record))
                continue
            waiting.append(cell)
            if record is not None:
                self._again.add(cell)
        if waiting:
            with self._trouble_of(lambda cell: cell in set(waiting)):
                runtimes.metrics()
        for approach in sorted({cell.entrant.approach for cell in waiting}):
            with self._trouble_of(lambda cell: cell.entrant.approach == approach):  # noqa: B023
                runtimes.approach(approach)
        return [cell for cell in waiting if self.standings[cell].state is State.WAITING]

    def run(self, cells: Collection[Cell], engine: Engine) -> None:
        """Run cells to the end, each at most a few times where its process or machine is lost."""
        named = {cell.name: cell for cell in cells}
        elsewhere: dict[Cell, float] = {}
        unfinished = set(cells)
        try:
            for cell in self.plan.ordered(cells):
                engine.submit(self.plan.work(cell, again=cell in self._again))
            while unfinished:
                for event in engine.wait(INTERVAL):
                    cell = named[event.work.name]
                    if isinstance(event, Started):
                        self._set(cell, Standing(State.RUNNING))
                        continue
                    self._set(cell, self._standing(cell, event))
                    state = self.standings[cell].state
                    if state is State.ELSEWHERE:
                        elsewhere[cell] = time.monotonic() + AGAIN
                    elif state is State.WAITING:
                        engine.submit(event.work)
                    else:
                        unfinished.discard(cell)
                for cell in [cell for cell, due in elsewhere.items() if due <= time.monotonic()]:
                    elsewhere[cell] = time.monotonic() + AGAIN
                    if not is_locked(self.plan, cell):
                        del elsewhere[cell]
                        engine.submit(self.plan.work(cell))
        finally:
            engine.close()
            save_troubles(self.plan, self.standings)

    def _standing(self, cell: Cell, ended: Ended) -> Standing:
        if ended.code == BUSY:
            return Standing(State.ELSEWHERE)
        try:
            result = CellResult.model_validate_json(ended.output.strip().rpartition("\n")[2])
        except ValidationError:  # it had no time for last words
            self._attempts[cell] += 1
            if self._attempts[cell] < ATTEMPTS:
                return Standing(State.WAITING)
            return Standing(State.TROUBLE, _how_it_ended(ended))
        if ended.code == 0 and result.outcome is not None:
            try:
                self._fetch(cell)
            except ModelfixError as error:
                return Standing(State.TROUBLE, str(error))
            return Standing(State(result.outcome), result.reason)
        return Standing(State.TROUBLE, result.reason)

    def _fetch(self, cell: Cell) -> None:
        """Bring a record that was made elsewhere here."""
        if self._store is not None:
            self._store.pull_record(self.plan.job(cell).record)

    def _set(self, cell: Cell, standing: Standing) -> None:
        self.standings[cell] = standing
        self.watch(cell, standing)

    def _waiting(self) -> list[Cell]:
        return [cell for cell, one in self.standings.items() if one.state is State.WAITING]

    @contextmanager
    def _trouble_of(self, concerned: Callable[[Cell], bool]) -> Iterator[None]:
        """Make an error the trouble of the cells that it concerns."""
        try:
            yield
        except (ModelfixError, EnvironmentFailed) as error:
            for cell in filter(concerned, self._waiting()):
                self._set(cell, Standing(State.TROUBLE, str(error)))


def _how_it_ended(ended: Ended) -> str:
    words = ended.output.strip().rpartition("\n")[2]
    how = f"killed by signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return f"its process was lost {ATTEMPTS} times ({words or how})"


def prepare_subject(home: single.Home, runtimes: Runtimes, name: str) -> None:
    """Prepare a subject unless it is there; a second run of the study waits for the first.

    Raises
    ------
    ModelfixError
        If it cannot be prepared.
    """
    with explain_write_errors(home.subjects):
        home.subjects.mkdir(parents=True, exist_ok=True)
    if (home.subject(name) / CARD_FILE).exists():
        return
    with FileLock(home.subjects / f".{name}.study.lock"):
        if (home.subject(name) / CARD_FILE).exists():
            return
        try:
            single.prepare(home, runtimes, name)
        except single.AlreadySaid:
            how = availability(CATALOGUE[name], home.subjects).how
            raise ModelfixError(f"subject {name} cannot be prepared; {how}") from None
