"""What a run of a study shows: a live matrix on a terminal, a line per event elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelfix.grid.plan import Cell, Plan, finish_time
from modelfix.grid.status import COMPLETE, Standing, State, matrix

SHOWN = 8  # running cells that are named


class Display:
    """Shows where a running study stands, on standard error; use it as a context manager.

    Parameters
    ----------
    plan : Plan
    standings : mapping of Cell to Standing
        As the run keeps them.
    slots : int
        Cells at once, for the estimate.
    """

    def __init__(self, plan: Plan, standings: Mapping[Cell, Standing], slots: int) -> None:
        self.plan, self.standings, self.slots = plan, standings, plan.at_once(slots)
        self._since: dict[Cell, float] = {}
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, cell: Cell, standing: Standing) -> None:
        """Take note of a cell's new standing."""
        started = self._since.pop(cell, None)
        if standing.state is State.RUNNING:
            self._since[cell] = time.monotonic()
        if self._live is not None:
            return
        took = "" if started is None else f" after {duration(time.monotonic() - started)}"
        why = f": {standing.reason}" if standing.reason else ""
        counts = f"[{self._complete}/{len(self.standings)}]"
        print(f"{counts} {cell.name} {standing.state}{took}{why}", file=sys.stderr, flush=True)

    @property
    def _complete(self) -> int:
        return sum(one.state in COMPLETE for one in self.standings.values())

    def _render(self) -> Group:
        now, running = time.monotonic(), sorted(self._since.items(), key=lambda item: item[1])
        table = Table(box=None, pad_edge=False, show_header=False)
        for cell, since in running[:SHOWN]:
            table.add_row(cell.name, duration(now - since))
        head = f"study {self.plan.study.name}: {self._complete} of {len(self.standings)} cells"
        return Group(
            Text(f"{head} complete{self._left()}", style="bold"),
            Text(),
            matrix(self.plan, self.standings),
            Text(),
            table,
        )

    def _left(self) -> str:
        cells = [cell for cell, one in self.standings.items() if one.state is State.WAITING]
        known = [self.plan.estimate(cell.subject, cell.entrant).seconds for cell in cells]
        seconds = [one for one in known if one is not None]
        if not seconds:
            return ""
        return f", about {duration(finish_time(seconds, self.slots))} of waiting cells left"


def duration(seconds: float) -> str:
    """Return seconds as a person says them: ``8 s``, ``3 min``, ``2 h 05 min``, ``9 d 4 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
