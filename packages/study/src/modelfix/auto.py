"""``--approach auto``: try the approaches that apply, keep the best model that passes the gate.

The gate judges the validation split; the test split is left for the report on the one model that
was chosen, and the order of the approaches comes from other subjects' records, or the study.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelfix_core.errors import ModelfixError
from modelfix_core.job import JOB_FILE, Job
from modelfix_core.model import Model
from modelfix_core.record import Record, check_fixed
from modelfix_core.subject import Subject

from modelfix import __version__, cells
from modelfix.environments import EnvironmentFailed
from modelfix.gate import Answers, Inputs, Keep, Limits, Verdict, judge
from modelfix.recommending import advise
from modelfix.runtimes import Runtimes

AUTO = "auto"
SHARES = 2  # even shares of the time left that an approach may use
LEAST = 5.0  # seconds, with less left nothing is begun
NFR = 0.01  # the most that counts as kept predictions, unless a limit is given


@dataclass(frozen=True)
class Trial:
    """What came of one approach.

    Attributes
    ----------
    approach : str
    folder : Path or None
        Its record, where it has one.
    record : Record or None
    verdict : Verdict or None
        Of the gate, on the validation split; None where there is no fixed model.
    rejected : str or None
        Why its model is not taken; None if it passes.
    reused : bool
        Whether its record was complete already.
    """

    approach: str
    folder: Path | None = None
    record: Record | None = None
    verdict: Verdict | None = None
    rejected: str | None = None
    reused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "approach": self.approach,
            "folder": None if self.folder is None else str(self.folder),
            "outcome": None if self.record is None else str(self.record.outcome),
            "seconds": None if self.record is None else self.record.seconds.get("fixing"),
            "validation": None if self.verdict is None else self.verdict.as_dict(),
            "rejected": self.rejected,
            "reused": self.reused,
        }


@dataclass(frozen=True)
class Search:
    """All trials, in the order in which they were made.

    Attributes
    ----------
    trials : sequence of Trial
    best : Trial or None
        The one whose model is taken: of those that pass, the most accurate on the validation split;
        of equals the one that breaks less, then the earlier one.
    """

    trials: Sequence[Trial]

    @property
    def best(self) -> Trial | None:
        """Return the trial whose model is taken, if any passes."""
        passing = [(t.verdict, t) for t in self.trials if t.verdict and t.rejected is None]
        ranked = sorted(passing, key=lambda pair: (-pair[0].accuracy_after, pair[0].nfr))
        return ranked[0][1] if ranked else None


def limits_for(keep: Sequence[Keep], given: Limits, subject: Subject) -> Limits:
    """Return the gate's limits: nothing of what is to be kept may get worse, unless `given` says.

    Raises
    ------
    ModelfixError
        If fairness is to be kept and the subject has no groups.
    """
    fair = Keep.FAIRNESS in keep or given.aaod_rise is not None
    if fair and subject.card.sensitive_attribute is None:
        raise ModelfixError(
            f"--keep fairness: {subject.card.name} has no groups; prepare it with --group-column."
        )

    def limit(what: Keep, stated: float | None, default: float) -> float | None:
        return default if what in keep and stated is None else stated

    return replace(
        given,
        accuracy_loss=limit(Keep.ACCURACY, given.accuracy_loss, 0.0),
        aaod_rise=limit(Keep.FAIRNESS, given.aaod_rise, 0.0),
        nfr=limit(Keep.COMPATIBILITY, given.nfr, NFR),
    )


def order(
    home: cells.Home, subject: Subject, keep: Sequence[Keep], hurry: bool = False
) -> tuple[list[str], list[str]]:
    """Return the approaches to try, the most promising first, and why others are left out.

    The subject's own records were evaluated on its test split and are not looked at. In a `hurry`
    quick approaches come earlier.
    """
    others = [run for run in (home.root / "runs").glob("*") if run.name != subject.card.name]
    priorities = ["repair", *keep, *(["time"] if hurry else [])]
    advice = advise(others, subject=subject, priorities=priorities)
    left_out = [f"{one.approach}: {one.reason}" for one in advice.left_out]
    return list(advice.approaches), left_out


def search(
    home: cells.Home,
    runtimes: Runtimes,
    subject: Subject,
    approaches: Sequence[str],
    limits: Limits,
    job: Callable[[str, float | None], Job],
    seconds: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Search:
    """Try `approaches` in turn until all are tried or the time is up.

    A trial is a cell as any other: complete ones are reused, so the same command goes on.

    Parameters
    ----------
    home : Home
    runtimes : Runtimes
    subject : Subject
    approaches : sequence of str
    limits : Limits
        Of the gate, on the validation split.
    job : callable
        Makes the job of an approach with its time limit in seconds.
    seconds : float, optional
        For all trials together; one may use two even shares of what is left.
    report : callable
        Gets a line of progress.
    """
    inputs = Inputs.of(subject, "validation")
    before = subject.model.predict(inputs.split)
    deadline = None if seconds is None else time.monotonic() + seconds
    trials = []
    for number, approach in enumerate(approaches, 1):
        report(f"{number} of {len(approaches)}: {approach}")
        left = None if deadline is None else max(LEAST, deadline - time.monotonic())
        share = None if left is None else min(left, SHARES * left / (len(approaches) - number + 1))
        if left == LEAST:
            trial = _reused(job(approach, LEAST), subject)
        else:
            trial = _try(home, runtimes, job(approach, share), subject)
        trials.append(_judged(trial, subject, inputs, before, limits))
    return Search(trials)


def _reused(job: Job, subject: Subject) -> Trial:
    cell = known(job, subject)
    if cell is None:
        return Trial(job.approach, rejected="not tried: the time was up")
    return Trial(job.approach, cell.folder, cell.record, reused=True)


def _try(home: cells.Home, runtimes: Runtimes, job: Job, subject: Subject) -> Trial:
    try:
        cell = known(job, subject) or cells.fix(home, runtimes, job)
    except (ModelfixError, EnvironmentFailed) as error:
        return Trial(job.approach, rejected=str(error))
    except cells.AlreadySaid:
        return Trial(job.approach, rejected="it refused the task, with the message above")
    return Trial(job.approach, cell.folder, cell.record, reused=cell.reused)


def known(job: Job, subject: Subject) -> cells.Cell | None:
    """Return the record that is there already, if it says all that this job could find out.

    It may come from another time limit: a record that was not cut short holds for every limit, and
    one that was holds for all shorter ones.
    """
    aside = {"seconds", "subject", "record"}
    try:
        record, made_by = Record.load(job.record), Job.load(job.record / JOB_FILE)
        if check_fixed(job.record, record, subject.model):
            return None
    except ModelfixError:
        return None
    same = made_by.model_dump(exclude=aside) == job.model_dump(exclude=aside)
    same &= record.hashes.get("data") == subject.card.data_hash
    same &= all(part.endswith(f" {__version__}") for part in record.entrant.version.split(", "))
    cut_short = "time limit" in (record.reason or "")
    enough = not cut_short or (made_by.seconds or 0.0) >= (job.seconds or float("inf"))
    return cells.Cell(job.record, record, True) if same and enough else None


def _judged(trial: Trial, subject: Subject, inputs: Inputs, before: Any, limits: Limits) -> Trial:
    """Hold a trial's model, if it has one, against the limits."""
    if trial.record is None or trial.folder is None:
        return trial
    fixed = trial.folder / "fixed.onnx"
    if not fixed.exists():
        return replace(trial, rejected=trial.record.reason)
    answers = Answers(inputs, before, Model.load(fixed).predict(inputs.split))
    verdict = judge(answers, limits)
    reasons = verdict.reasons
    if not verdict.newly_fixed:
        reasons = ["it repairs none of the validation inputs", *reasons]
    return replace(trial, verdict=verdict, rejected="; ".join(reasons) or None)
