"""One cell after the other: prepare, fix and evaluate, each in its environment."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfix_core.errors import ModelfixError
from modelfix_core.foreign import kind_of
from modelfix_core.job import FAILED, GRACE, INTERRUPTED, USER_ERROR, Job
from modelfix_core.record import Record, config_digest
from modelfix_core.subject import Subject

from modelfix import fix_card
from modelfix.own import Own
from modelfix.runtimes import Runtimes, run_module

PREPARED = "subject.json"
DEAF = 5 * GRACE  # seconds past the time limit until a job that cannot end itself is killed


@dataclass(frozen=True)
class Home:
    """Where subjects and runs are kept.

    Attributes
    ----------
    root : Path
        Holds ``subjects/`` and ``runs/``.
    """

    root: Path

    @property
    def subjects(self) -> Path:
        """Folder of the prepared subjects."""
        return self.root / "subjects"

    def subject(self, name: str) -> Path:
        """Folder of one prepared subject."""
        return self.subjects / name

    def record(self, subject: str, entrant: str, repetition: int) -> Path:
        """Folder of one cell's record."""
        return self.root / "runs" / subject / entrant / str(repetition)


@dataclass(frozen=True)
class Cell:
    """A finished cell: where its record is and whether it was there already."""

    folder: Path
    record: Record
    reused: bool


class Interrupted(Exception):
    """The user interrupted a process that was run."""


def _check(code: int, what: str) -> None:
    """Raise for a process that ended badly; one that made a user error has said so itself."""
    if code in (INTERRUPTED, -2):
        raise Interrupted
    if code == USER_ERROR:
        raise AlreadySaid
    if code < 0:
        raise ProcessFailed(
            f"{what} was killed by signal {-code} (out of memory?); nothing half-written was kept, "
            "run the same command again.",
            killed=True,
        )
    if code:
        raise ProcessFailed(f"{what} ended with exit code {code}; its messages are above.")


class ProcessFailed(ModelfixError):
    """A process ended badly.

    Attributes
    ----------
    killed : bool
        By a signal: another try may go well.
    """

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class AlreadySaid(Exception):
    """A process that was run has already told the user what is wrong."""


def entrant_name(approach: str, preset: str, config: dict) -> str:
    """Return the folder name of an entrant: approach, preset, and a digest of the user's values."""
    parts = [approach]
    if preset != "default":
        parts.append(preset)
    if config:
        parts.append(config_digest(config))
    return "-".join(parts)


def prepare(home: Home, runtimes: Runtimes, name: str, arguments: Sequence[str] = ()) -> Path:
    """Prepare a named subject unless it is complete, and return its folder."""
    folder = home.subject(name)
    done = run_module(
        runtimes.subjects(),
        "modelfix_core.subjects",
        name,
        "--root",
        str(home.subjects),
        *arguments,
    )
    _check(done.returncode, f"preparing {name}")
    return folder


def load_subject(home: Home, runtimes: Runtimes, name: str) -> Subject:
    """Open a prepared subject; one that is named but not prepared is prepared now."""
    folder = home.subject(name)
    if not (folder / PREPARED).exists():
        from modelfix_core.subjects.catalogue import named

        prepare(home, runtimes, named(name).name)
    return Subject.load(folder)


def prepare_own(home: Home, runtimes: Runtimes, own: Own, seed: int = 0) -> str:
    """Make a subject of the user's own model and data, and return its name."""
    name, model = own.check()
    done = run_module(
        runtimes.own(kind_of(model)),
        "modelfix_core.subjects",
        "own",
        *own.arguments(),
        f"--seed={seed}",
        f"--root={home.subjects}",
    )
    _check(done.returncode, f"preparing {name}")
    return name


def convert(
    runtimes: Runtimes, source: str, images: Path, target: Path, arguments: Sequence[str] = ()
) -> None:
    """Write a foreign model as ONNX to `target`, compared with the original on `images` (NPZ)."""
    done = run_module(
        runtimes.own(kind_of(source)),
        "modelfix_core.conversion",
        source,
        f"--images={images}",
        f"--to={target}",
        *arguments,
    )
    _check(done.returncode, f"converting {source}")


def fix(home: Home, runtimes: Runtimes, job: Job) -> Cell:
    """Run one cell in its approach's environment, or reuse its record."""
    path, what = job.save(), f"{job.approach} on {job.subject.name}"
    limit = None if job.seconds is None else job.seconds + DEAF
    python = runtimes.approach(job.approach)
    try:
        done = run_module(python, "modelfix_core.job", str(path), timeout=limit)
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"{what} hung past the time limit of {job.seconds:g} s.") from None
    _check(done.returncode, what)
    return Cell(job.record, Record.load(job.record), "complete already" in done.stdout)


def record_failure(runtimes: Runtimes, job: Job, reason: str) -> Record:
    """Record that a cell's process died, in its approach's environment, and return the record."""
    python, path = runtimes.approach(job.approach), job.save()
    done = run_module(python, "modelfix_core.job", str(path), FAILED, reason)
    _check(done.returncode, f"recording the failure of {job.approach}")
    return Record.load(job.record)


def evaluate(
    runtimes: Runtimes, records: Sequence[Path], subject: Path, arguments: Sequence[str] = ()
) -> list[Record]:
    """Evaluate records of one subject in the metrics environment; complete ones are reused.

    Every evaluated record gets its fix card.
    """
    named = [part for record in records for part in ("--record", str(record))]
    done = run_module(
        runtimes.metrics(), "modelfix_metrics", *named, "--subject", str(subject), *arguments
    )
    _check(done.returncode, f"evaluating {subject.name}")
    for record in records:
        fix_card.write(record)
    return [Record.load(record) for record in records]


def post_process(
    runtimes: Runtimes,
    runs: Sequence[Path],
    subject: Path,
    methods: Sequence[str],
    arguments: Sequence[str] = (),
) -> list[list[Path]]:
    """Post-process evaluated records of one subject in the metrics environment.

    Returns
    -------
    list of list of Path
        For every run the record folders of the methods; complete ones are reused.
    """
    named = [part for run in runs for part in ("--record", str(run))]
    named += [part for method in methods for part in ("--method", method)]
    module = "modelfix_metrics.post_processing"
    done = run_module(runtimes.metrics(), module, *named, "--subject", str(subject), *arguments)
    _check(done.returncode, f"post-processing {subject.name}")
    folders = [Path(line.partition("\t")[0]) for line in done.stdout.splitlines()]
    return [folders[i : i + len(methods)] for i in range(0, len(folders), len(methods))]
