"""The plan of a study: its cells, which are complete, which apply, how long they will take."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from modelfix_core.approach import Approach, Outcome, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.job import Job, complete_record, identity
from modelfix_core.record import Record
from modelfix_core.subject import CARD_FILE, Subject
from modelfix_core.subjects.catalogue import CATALOGUE, named
from modelfix_core.subjects.untrained import BUILDERS, untrained
from modelfix_metrics.attacks import AttackOptions
from modelfix_metrics.cell import is_evaluated

from modelfix import fix_card, records
from modelfix.catalogue import Catalogue
from modelfix.cells import Home
from modelfix.grid.cell import CellWork, digest
from modelfix.grid.engines import GIB, Work
from modelfix.grid.study import Entrant, Study

EVALUATION = 3600.0  # seconds that an evaluation certainly does not take
DEFAULT_MEMORY = 2 * GIB  # bytes of a cell of which nothing is known
WIDTH = 1 / 8  # of the model that stands for a subject that is not prepared
IMAGES_PER_CLASS = 500  # black ones, for the same
WITH_MODEL = (Outcome.FIXED, Outcome.CORRUPTED)


@dataclass(frozen=True)
class Cell:
    """One entrant on one subject with one repetition."""

    subject: str
    entrant: Entrant
    repetition: int

    @property
    def name(self) -> str:
        """As its record's folder below ``runs``."""
        return f"{self.subject}/{self.entrant.name}/{self.repetition}"


@dataclass(frozen=True)
class Estimate:
    """How long a cell takes: seconds, None where nothing is known, and where that comes from."""

    seconds: float | None
    source: str


@dataclass
class Plan:
    """What a study asks for, beside what is there.

    Attributes
    ----------
    study : Study
    home : Home
    store : str or None
        URL by way of which machines that share no folder work together.
    """

    study: Study
    home: Home
    store: str | None = None
    catalogue: Catalogue = field(default_factory=Catalogue)

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of the study."""
        return [
            Cell(subject, entrant, repetition)
            for subject in self.study.subjects
            for entrant in self.study.entrants
            for repetition in range(1, self.study.repetitions + 1)
        ]

    @property
    def folder(self) -> Path:
        """Where the study's own files are."""
        return self.home.root / "studies" / self.study.name

    def job(self, cell: Cell) -> Job:
        """Return the job of a cell."""
        return self.study.job(self.home, cell.subject, cell.entrant, cell.repetition)

    def at_once(self, slots: int) -> int:
        """Return how many cells run at once where `slots` works of one core would."""
        return max(1, slots // self.study.resources.cores)

    def complete(self, cell: Cell) -> Record | None:
        """Return the record of a cell if nothing is left to do, as far as can be told from here."""
        job = self.job(cell)
        try:
            subject, approach = self._subject(cell.subject), self._approach(cell.entrant)
            if subject is None or approach is None:
                return None
            record = complete_record(job.record, identity(job, subject, approach), subject.model)
            if record is None or record.outcome not in WITH_MODEL:
                return record
            evaluated = is_evaluated(
                job.record, subject.folder, attacked=self.study.evaluation.attacked,
                attack=self._attack,
            )  # fmt: skip
        except ModelfixError:
            return None
        return record if evaluated and (job.record / fix_card.FILE).exists() else None

    def work(self, cell: Cell, again: bool = False) -> Work:
        """Return what an engine runs for a cell; `again` makes the record that is there anew."""
        study, job = self.study, self.job(cell)
        log = self.folder / "log" / f"{cell.name.replace('/', '+')}.txt"
        told = CellWork(
            job=job,
            evaluation=study.evaluation,
            cores=study.resources.cores,
            replaces=digest(job.record) if again else None,
            log=log,
            store=self.store,
        )
        return Work(
            name=cell.name,
            arguments=("-m", "modelfix.grid.cell", told.model_dump_json()),
            cores=study.resources.cores,
            gpus=study.gpus,
            memory=self.memory(cell),
            seconds=None if job.seconds is None else job.seconds + EVALUATION,
        )

    # -- before anything runs ----------------------------------------------------------------------

    def unfit(self, subject: str, entrant: Entrant) -> str | None:
        """Return why an approach cannot be applied to a subject; None where it can, or who knows.

        The model's graph decides: of a subject that is not prepared it is made without weights.
        """
        approach = self._approach(entrant)
        task = self._task(subject)
        if approach is None or task is None:
            return None
        try:
            approach.check(task)
        except Unadaptable as reason:
            return str(reason)
        return None

    def memory(self, cell: Cell) -> int:
        """Return how many bytes a cell is expected to take."""
        stated = self.study.resources.memory or self.study.limits.memory
        if stated is not None:
            return int(stated * GIB)
        same = self._past.get((cell.subject, cell.entrant.name))
        peaks = [one.provenance.get("peak_memory") for one in same or ()]
        return max([int(peak) for peak in peaks if peak], default=DEFAULT_MEMORY)

    def estimate(self, subject: str, entrant: Entrant) -> Estimate:
        """Return how long one repetition takes, from the records at hand, else from the study."""
        same = self._past.get((subject, entrant.name))
        if same:
            return Estimate(median(map(_seconds, same)), "records of the same cell")
        others = {where: past for (where, name), past in self._past.items() if name == entrant.name}
        if others:
            where, past = max(others.items(), key=lambda item: median(map(_seconds, item[1])))
            return Estimate(median(map(_seconds, past)), f"records on {where}")
        return self._published(subject, entrant)

    def _published(self, subject: str, entrant: Entrant) -> Estimate:
        if subject in CATALOGUE:
            abbreviation = self.catalogue.find(entrant.approach).abbreviation
            architecture = named(subject).architecture
            for dataset, like in _study_subjects().items():
                seconds = _published_times().get((abbreviation, dataset))
                if seconds and (subject == like or named(like).architecture == architecture):
                    return Estimate(seconds, f"the study's table 6, {dataset}")
        return Estimate(None, "nothing known")

    def ordered(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return cells, those that take longest first; of what nothing is known comes before."""
        known = {
            (cell.subject, cell.entrant.name): self.estimate(cell.subject, cell.entrant).seconds
            for cell in self.cells
        }

        def length(cell: Cell) -> float:
            seconds = known[cell.subject, cell.entrant.name]
            return -float("inf") if seconds is None else -seconds

        return sorted(cells, key=length)

    @cached_property
    def _past(self) -> Mapping[tuple[str, str], list[Record]]:
        """Records with a time, by subject and name of the entrant."""
        runs = self.home.root / "runs"
        found = records.find([runs])[0] if runs.exists() else []
        past = defaultdict(list)
        for item in found:
            if item.record.outcome in WITH_MODEL and item.record.seconds.get("total"):
                past[item.record.subject, item.entrant].append(item.record)
        return past

    @cached_property
    def _attack(self) -> AttackOptions:
        how = self.study.evaluation
        metrics = ("asr", "asr_margin", *(("asr_study",) if how.study else ()))
        return AttackOptions(metrics=metrics if how.attack else ())

    def _approach(self, entrant: Entrant) -> Approach | None:
        if entrant.approach not in self.catalogue.installed:
            return None
        return self.catalogue.registry.load(entrant.approach)(entrant.preset, **entrant.config)

    def _subject(self, name: str) -> Subject | None:
        if name not in self._subjects:
            folder = self.home.subject(name)
            there = (folder / CARD_FILE).exists()
            if not there:
                return None  # it may be prepared later
            self._subjects[name] = Subject.load(folder)
        return self._subjects[name]

    @cached_property
    def _subjects(self) -> dict[str, Subject]:
        return {}

    def _task(self, name: str) -> Task | None:
        if name not in self._tasks:
            subject = self._subject(name)
            self._tasks[name] = self._unprepared(name) if subject is None else _task(subject)
        return self._tasks[name]

    def _unprepared(self, name: str) -> Task | None:
        """Return a task with the structure of what a subject will be, without its data."""
        definition = CATALOGUE[name]
        if definition.architecture not in BUILDERS:
            return None
        classes = len(definition.origin.classes)
        size = IMAGES_PER_CLASS * classes
        x = np.broadcast_to(np.uint8(0), (size, *definition.input_shape))
        split = Split(x, np.arange(size) % classes)
        history = [] if definition.recipe is None else [1, 2]
        files = [Path(self._scratch.name) / f"{name}-{epoch}.onnx" for epoch in history]
        for epoch, path in zip(history, files, strict=True):
            untrained(name, WIDTH, seed=epoch).save(path)
        return Task(
            model=untrained(name, WIDTH),
            repair=split,
            validation=split,
            train=split,
            history=files,
            risks=definition.class_risks,
        )

    @cached_property
    def _scratch(self) -> TemporaryDirectory:
        return TemporaryDirectory()

    @cached_property
    def _tasks(self) -> dict[str, Task | None]:
        return {}


def finish_time(seconds: Sequence[float], slots: int) -> float:
    """Return when the last of some works ends if `slots` run at once, longest first."""
    ends = [0.0] * max(1, slots)
    for one in sorted(seconds, reverse=True):
        ends[int(np.argmin(ends))] += one
    return max(ends)


@cache
def _study_subjects() -> dict[str, str]:
    """Return subjects by the study's names for them."""
    from modelfix_stats.study import SUBJECTS  # statistics take seconds to import

    return {dataset: name for name, dataset in SUBJECTS.items()}


@cache
def _published_times() -> dict[tuple[str, str], float]:
    """Return the study's mean seconds by abbreviation and data set."""
    from modelfix_stats.study import read_table

    times = read_table("table6_time").dropna(subset="seconds")
    return times.set_index(["approach", "dataset"])["seconds"].astype(float).to_dict()


def _seconds(record: Record) -> float:
    evaluation: dict[str, Any] = record.evaluation or {}
    return record.seconds["total"] + evaluation.get("seconds", {}).get("total", 0.0)


def _task(subject: Subject) -> Task:
    dataset = subject.dataset(("train", "validation", "repair"))
    return Task(
        model=subject.model,
        repair=dataset["repair"],
        validation=dataset["validation"],
        train=dataset.get("train"),
        history=subject.history,
        risks=dataset.risks,
    )
