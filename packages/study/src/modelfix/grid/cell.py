"""``python -m modelfix.grid.cell``: one cell from its job to its evaluated record.

This is the process that engines start. It keeps other processes off the cell, runs the approach and
the evaluation in their environments, tries again what was killed, and ends with one line of JSON:
what came out, and why where there is no complete record.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from filelock import FileLock, Timeout
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import explain_write_errors, remove_leftovers
from modelfix_core.job import Job
from modelfix_core.record import FILE, Record
from pydantic import BaseModel, ConfigDict

from modelfix import cells
from modelfix.environments import EnvironmentFailed
from modelfix.grid.process import tie
from modelfix.grid.store import Store
from modelfix.grid.study import Evaluation
from modelfix.runtimes import Runtimes

ATTEMPTS = 3  # at a process that was killed
ERROR = "error: "
LONGEST = 500  # characters of a reason taken from messages
TAIL = 8192  # bytes of messages in which a reason is looked for
PATIENCE = 2.0  # seconds for a lock that somebody may only be looking at
BUSY = 75
INCOMPLETE = 1
INTERRUPTED = 130
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

Result = TypeVar("Result")


class CellWork(BaseModel):
    """What the process of a cell is told.

    Attributes
    ----------
    job : Job
    evaluation : Evaluation
    cores : int
        How many threads the libraries may use.
    replaces : str or None
        `digest` of the record that is to be made again.
    log : Path
        File for messages.
    store : str or None
        URL from which the subject comes and to which the record goes, where no folder is shared.
    """

    model_config = ConfigDict(extra="forbid")

    job: Job
    evaluation: Evaluation
    cores: int
    replaces: str | None = None
    log: Path
    store: str | None = None


class CellResult(BaseModel):
    """The last line of the process.

    Attributes
    ----------
    outcome : Outcome or None
        Of the record; None where there is none.
    reason : str or None
        Why the outcome is not FIXED, or why the record is missing or not evaluated.
    """

    outcome: Outcome | None = None
    reason: str | None = None


def lock_of(record: Path) -> FileLock:
    """Return the lock that the process of a cell holds while it works."""
    return FileLock(record.with_name(f".{record.name}.cell.lock"))


def digest(record: Path) -> str | None:
    """Return what identifies the very record that is in a folder; None where there is none."""
    try:
        return hashlib.sha256((record / FILE).read_bytes()).hexdigest()
    except OSError:
        return None


def run(work: CellWork) -> CellResult:
    """Make the record of a cell and evaluate it; what is complete is reused.

    Raises
    ------
    Timeout
        If another process is working on the cell.
    ModelfixError
        If there is no complete record for a reason that does not lie in the approach.
    """
    record, home = work.job.record, cells.Home(work.job.record.parents[3])
    os.environ.update(dict.fromkeys(THREADS, str(work.cores)))
    with explain_write_errors(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(record).acquire(timeout=PATIENCE)
    with lock, _messages(work.log) as messages:
        store = None if work.store is None else Store(work.store, home)
        if store is not None:
            store.pull_subject(work.job.subject.name)
            store.pull_record(record)
        if work.replaces is not None and digest(record) == work.replaces:
            with explain_write_errors(record):
                shutil.rmtree(record)
        runtimes = Runtimes()
        found = _fix(home, work.job, runtimes, messages)
        if found.outcome in (Outcome.FIXED, Outcome.CORRUPTED):
            remove_leftovers(record)
            found = _evaluate(work, runtimes, messages)
        if store is not None:
            store.push_record(record)
        return CellResult(outcome=found.outcome, reason=found.reason)


def _fix(home: cells.Home, job: Job, runtimes: Runtimes, messages: "_Messages") -> Record:
    try:
        return _attempt(lambda: cells.fix(home, runtimes, job).record, messages)
    except cells.ProcessFailed as error:
        reason = str(error)
    return _attempt(lambda: cells.record_failure(runtimes, job, reason), messages)


def _evaluate(work: CellWork, runtimes: Runtimes, messages: "_Messages") -> Record:
    how = work.evaluation
    settings = [
        "--device", work.job.device, "--attacked", str(how.attacked),
        *([] if how.attack else ["--no-attack"]), *(["--study"] if how.study else []),
    ]  # fmt: skip
    job = work.job
    return _attempt(
        lambda: cells.evaluate(runtimes, [job.record], job.subject, settings)[0], messages
    )


def _attempt(step: Callable[[], Result], messages: "_Messages") -> Result:
    """Take a step, again where its process was killed; reasons are taken from its messages."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return step()
        except cells.AlreadySaid:
            raise ModelfixError(messages.last()) from None
        except cells.ProcessFailed as error:
            if not error.killed:
                raise cells.ProcessFailed(messages.last() or str(error)) from None
            if not left:
                what, _, _ = str(error).partition(";")
                raise cells.ProcessFailed(f"{what}, {ATTEMPTS} times.") from None
    raise AssertionError


class _Messages:
    """The file that standard error goes to."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.start = self._size

    @property
    def _size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def last(self) -> str:
        """Return the last error among the messages of this process, else their last line."""
        start = max(self.start, self._size - TAIL)
        text = os.pread(self.file.fileno(), TAIL, start).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        found = (errors or lines or [""])[-1]
        return found[:LONGEST]


@contextmanager
def _messages(path: Path) -> Iterator[_Messages]:
    """Let standard error, also that of processes run from here, go to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[bytes] = path.open("a+b", buffering=0)
    except OSError:  # a disk that cannot be written is told by what fails next
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    with file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        yield _Messages(file)


def main(arguments: list[str] | None = None) -> int:
    """Run the cell that the argument describes."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    tie()
    try:
        result, code = run(CellWork.model_validate_json(text)), 0
    except Timeout:
        result, code = CellResult(reason="another process is working on this cell"), BUSY
    except (ModelfixError, EnvironmentFailed) as error:
        result, code = CellResult(reason=str(error)), INCOMPLETE
    except (KeyboardInterrupt, cells.Interrupted):
        result, code = CellResult(reason="interrupted"), INTERRUPTED
    print(f"\n{result.model_dump_json()}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
