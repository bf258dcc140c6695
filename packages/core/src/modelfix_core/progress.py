"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
from time import perf_counter
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class ProgressReporter:
    """Shows ``(done, total, note)``; use it as a context manager and call it.

    Parameters
    ----------
    title : str
        What is being done.
    stream : TextIO, optional
        Default standard error, so that standard output stays clean.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._last = 0.0

    def __enter__(self) -> "ProgressReporter":
        if self.stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self.stream),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are finished."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        now = perf_counter()
        if now - self._last >= PLAIN_INTERVAL:
            self._last = now
            print(f"{self.title}: {done}/{total} {note}".rstrip(), file=self.stream, flush=True)
