"""The job: one cell as a process of its own, ``job.json`` in, a record folder out.

``python -m modelfix_core.job path/to/job.json`` runs in the approach's environment; with ``--failed
REASON`` it runs nothing and records a FAILURE, for a job that died each time. Everything is written
into a folder ``<repetition>.partial`` that takes its place, whole, when the record is
complete; killed at any moment, a job leaves no record and the same command goes on.
"""

import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelfix_core.approach import Approach, Budget, Outcome, Task
from modelfix_core.errors import ModelfixError
from modelfix_core.files import (
    explain_write_errors,
    remove_leftovers,
    replace_folder,
    write_text,
)
from modelfix_core.fixing import Fixing, check_fits, run
from modelfix_core.model import Model
from modelfix_core.progress import ProgressReporter
from modelfix_core.record import (
    Entrant,
    Record,
    cell_hash,
    check_fixed,
    peak_memory,
    provenance,
    save_evidence,
    save_localisation,
)
from modelfix_core.registry import Registry
from modelfix_core.seeds import seed_for
from modelfix_core.subject import Subject

JOB_FILE = "job.json"
SPLITS_OF_A_TASK = ("train", "validation", "repair")  # never the test split
FAILED = "--failed"
GRACE = 10.0  # seconds past the time limit until a job that does not report is ended
USER_ERROR = 2
INTERRUPTED = 130


class Job(BaseModel):
    """What ``job.json`` says.

    Paths are absolute or relative to the working directory of the job.
    """

    model_config = ConfigDict(extra="forbid")

    approach: str
    preset: str = "default"
    config: dict[str, Any] = Field(default_factory=dict)
    subject: Path
    record: Path
    repetition: int = 1
    seed: int = 0
    device: str = "cpu"
    seconds: float | None = Field(default=None, gt=0)
    memory: int | None = Field(default=None, gt=0)
    corrupted: Literal["points", "relative"] = "points"

    @property
    def partial(self) -> Path:
        """Where the job works until its record is complete."""
        return self.record.with_name(f"{self.record.name}.partial")

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job file; an error names the file and the first wrong entry."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelfixError(f"{path}: does not exist; give the path of a job file.") from None
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(str(part) for part in first["loc"]) or "content"
            raise ModelfixError(f"{path}: {entry}: {first['msg']}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ModelfixError(f"{path}: cannot be read ({error}); make it anew.") from error

    def save(self) -> Path:
        """Write the job into its partial folder; leftovers of another job there are removed."""
        path = self.partial / JOB_FILE
        text = self.model_dump_json(indent=2)
        if self.partial.exists() and (not path.exists() or path.read_text() != text):
            shutil.rmtree(self.partial)
        write_text(path, text)
        return path


def run_job(job: Job) -> tuple[Record, bool]:
    """Run one cell, or reuse its record.

    Returns
    -------
    record : Record
    reused : bool
        Whether a complete record with the same content hash was there already.

    Raises
    ------
    ModelfixError
        For a user's mistake; nothing is recorded then.
    """
    with _only_one(job):
        subject = Subject.load(job.subject)
        approach = Registry().load(job.approach)(job.preset, **job.config)
        record = _new_record(job, subject, approach)
        known = complete_record(job.record, record.cell, subject.model)
        if known is not None:
            shutil.rmtree(job.partial, ignore_errors=True)
            return known, True
        return _work(job, subject, approach, record), False


def record_failure(job: Job, reason: str) -> Record:
    """Record a FAILURE without running anything.

    Parameters
    ----------
    job : Job
    reason : str
        How the job's process ended.
    """
    with _only_one(job):
        subject = Subject.load(job.subject)
        approach = Registry().load(job.approach)(job.preset, **job.config)
        record = _new_record(job, subject, approach)
        record.hashes = _hashes(subject)
        job.save()
        remove_leftovers(job.partial)
        return _finish(job, record, Fixing(Outcome.FAILURE, reason), subject)


def _seed(job: Job, subject: Subject) -> int:
    return seed_for(
        seed=job.seed,
        subject=subject.card.name,
        repetition=job.repetition,
        approach=job.approach,
    )


def identity(job: Job, subject: Subject, approach: Approach) -> str:
    """Return the content hash of the cell that `job` makes."""
    hashes = {"model": subject.card.model_hash, "data": subject.card.data_hash}
    limits = [job.seconds, job.memory, job.corrupted]
    return cell_hash(Entrant.of(approach, job.preset), hashes, _seed(job, subject), limits)


def _new_record(job: Job, subject: Subject, approach: Approach) -> Record:
    return Record(
        cell=identity(job, subject, approach),
        entrant=Entrant.of(approach, job.preset),
        subject=subject.card.name,
        repetition=job.repetition,
        seed=job.seed,
        outcome=Outcome.FAILURE,
        provenance=provenance(job.device),
    )


def complete_record(folder: Path, cell: str, original: Model) -> Record | None:
    """Return the record of `folder` if it is that of `cell` and its models are intact."""
    try:
        record = Record.load(folder)
        intact = record.cell == cell and not check_fixed(folder, record, original)
    except ModelfixError:
        return None
    return record if intact else None


@contextmanager
def _only_one(job: Job) -> Iterator[None]:
    """Keep a second process off the same cell."""
    with explain_write_errors(job.record):
        job.record.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(job.record.with_name(f".{job.record.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ModelfixError(
            f"{job.record}: another process is working on this cell; wait for it to end."
        ) from None


def _work(job: Job, subject: Subject, approach: Approach, record: Record) -> Record:
    dataset = subject.dataset(SPLITS_OF_A_TASK)
    original = subject.model
    check_fits(original, dataset)
    job.save()
    remove_leftovers(job.partial)
    record.hashes = _hashes(subject)
    started = time.perf_counter()

    def close(fixing: Fixing) -> Record:
        record.seconds = {"total": time.perf_counter() - started}
        return _finish(job, record, fixing, subject)

    limits = Watchdog(job, lambda reason: close(Fixing(Outcome.FAILURE, reason)))
    title = f"{approach.info.title} on {subject.card.name}, repetition {job.repetition}"
    package = type(approach).__module__.partition(".")[0]
    log = _logging(job.partial / "log.txt", package)
    with log, ProgressReporter(title) as reporter, limits:
        task = Task(
            model=original,
            repair=dataset["repair"],
            validation=dataset["validation"],
            train=dataset.get("train"),
            history=subject.history,
            risks=dataset.risks,
            seed=_seed(job, subject),
            device=job.device,
            budget=Budget(job.seconds, job.memory),
            folder=job.partial / "checkpoint",
            reporter=reporter,
        )
        with (job.partial / "candidates.jsonl").open("w", encoding="utf-8") as lines:

            def note(entry: dict) -> None:
                print(json.dumps(entry), file=lines, flush=True)

            fixing = run(approach, task, corrupted=job.corrupted, on_candidate=note)
    return close(fixing)


def _hashes(subject: Subject) -> dict[str, str]:
    return {"original": subject.model.hash, "data": subject.card.data_hash}


def _finish(job: Job, record: Record, fixing: Fixing, subject: Subject) -> Record:
    """Write the record folder and put it in its place."""
    with explain_write_errors(job.record):
        if Model.load(job.subject / "model.onnx").hash != subject.card.model_hash:
            raise ModelfixError(
                f"{job.subject / 'model.onnx'}: was changed while it was being fixed; prepare the "
                "subject again."
            )
        record.outcome, record.reason = fixing.outcome, fixing.reason
        record.validation_accuracy = fixing.validation_accuracy
        record.candidates, record.best = len(fixing.candidates), fixing.best
        record.seconds = {**fixing.seconds, **record.seconds}
        record.provenance["peak_memory"] = peak_memory()
        if fixing.model is not None:
            fixed = fixing.model.with_metadata(
                fixed_by=record.entrant.approach,
                fixed_from=record.hashes["original"],
                cell=record.cell,
            )
            fixed.save(job.partial / "fixed.onnx")
            record.hashes["fixed"] = fixed.hash
        if fixing.localisation is not None:
            save_localisation(fixing.localisation, job.partial / "localisation.parquet")
        for evidence in fixing.evidence:
            save_evidence(evidence, job.partial)
        shutil.rmtree(job.partial / "checkpoint", ignore_errors=True)
        record.save(job.partial)
        replace_folder(job.partial, job.record)
    return record


class Watchdog(threading.Thread):
    """Ends a job that outgrows its memory or does not notice that its time is up.

    Parameters
    ----------
    job : Job
    on_violation : callable
        Gets the reason; writes the FAILURE record.
    """

    def __init__(self, job: Job, on_violation: Callable[[str], Any]) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.on_violation = on_violation
        self.done = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.job.memory or self.job.seconds:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Watch until the block ends."""
        process, start = psutil.Process(), time.monotonic()
        while not self.done.wait(0.2):
            reason = self._violation(process, time.monotonic() - start)
            if reason is not None:
                self.on_violation(reason)
                os._exit(0)

    def _violation(self, process: psutil.Process, elapsed: float) -> str | None:
        if self.job.memory is not None:
            used = process.memory_info().rss
            if used > self.job.memory:
                return f"the memory limit of {self.job.memory:,} bytes was exceeded ({used:,} used)"
        if self.job.seconds is not None and elapsed > self.job.seconds + GRACE:
            return f"the time limit of {self.job.seconds:g} s was exceeded"
        return None


@contextmanager
def _logging(path: Path, package: str) -> Iterator[None]:
    """Write what core and the approach's package log into `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("modelfix_core", package)]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the job of the file named on the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) not in (1, 3) or arguments[1:2] not in ([], [FAILED]):
        print(f"usage: python -m modelfix_core.job JOB.json [{FAILED} REASON]", file=sys.stderr)
        return USER_ERROR
    try:
        job = Job.load(Path(arguments[0]))
        if arguments[1:]:
            record, reused = record_failure(job, arguments[2]), False
        else:
            record, reused = run_job(job)
    except ModelfixError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(f"{record.outcome}{' (complete already)' if reused else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
