"""Run an approach on a task: check, time, select the best candidate on validation, outcome."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from modelfix_core.approach import (
    Approach,
    Budget,
    Candidate,
    Evidence,
    Localisation,
    Outcome,
    Reporter,
    Task,
)
from modelfix_core.dataset import Dataset, Split
from modelfix_core.errors import BudgetExceeded, Failure, ModelfixError, Unadaptable
from modelfix_core.model import Model

logger = logging.getLogger(__name__)

CORRUPTED_POINTS = 0.10
# A candidate's own validation accuracy may differ from onnxruntime's by inputs on the boundary.
TOLERATED_DISAGREEMENT = 0.002


@dataclass(frozen=True)
class Fixing:
    """What came of running an approach.

    Attributes
    ----------
    outcome : Outcome
    reason : str or None
        Why, where the outcome is not FIXED or the run was cut short.
    model : Model or None
        The fixed model; None for FAILURE and UNADAPTABLE.
    localisation : Localisation or None
    evidence : sequence of Evidence
        What the approach shows for its work.
    candidates : sequence of dict
        Step, validation accuracy and values of every candidate, in order.
    best : int or None
        Position of the selected candidate.
    validation_accuracy : dict of str to float
        ``before`` and, where there is a fixed model, ``after``; in [0, 1].
    seconds : dict of str to float
        ``fixing``, ``selecting``, and what the approach booked apart (``conversion``).
    """

    outcome: Outcome
    reason: str | None = None
    model: Model | None = None
    localisation: Localisation | None = None
    evidence: Sequence[Evidence] = ()
    candidates: Sequence[dict] = ()
    best: int | None = None
    validation_accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def fix(
    model: Model,
    dataset: Dataset,
    approach: Approach,
    *,
    seed: int = 0,
    device: str = "cpu",
    budget: Budget | None = None,
    history: Sequence[Path] = (),
    reporter: Reporter | None = None,
) -> Fixing:
    """Fix `model` on the repair split of `dataset` with `approach`.

    Parameters
    ----------
    model : Model
        Stays untouched.
    dataset : Dataset
        With ``repair``, ``validation`` and, for approaches that need it, ``train``; a ``test``
        split is not given to the approach.
    approach : Approach
    seed : int
    device : str
        ``cpu`` or ``cuda``.
    budget : Budget, optional
    history : sequence of Path, optional
        Models of the training epochs, oldest first.
    reporter : callable, optional
        Gets ``(done, total, note)``.

    Returns
    -------
    Fixing

    Raises
    ------
    ModelfixError
        If the data do not fit the model.
    """
    check_fits(model, dataset)
    task = Task(
        model=model,
        repair=dataset["repair"],
        validation=dataset["validation"],
        train=dataset.get("train"),
        history=history,
        risks=dataset.risks,
        seed=seed,
        device=device,
        budget=budget or Budget(),
        reporter=reporter,
    )
    return run(approach, task)


def check_fits(model: Model, dataset: Dataset) -> None:
    """Raise `ModelfixError` if images or classes of `dataset` do not fit `model`."""
    for name in ("repair", "validation"):
        dataset[name]
    for name, split in dataset.splits.items():
        check_images(model, f"{name} split", split)
        split.validate(name, len(dataset.classes))
    check_classes(model, len(dataset.classes))


def check_images(model: Model, what: str, split: Split) -> None:
    """Raise `ModelfixError` if the images of `split` have another shape than `model` takes."""
    if split.x.shape[1:] != model.input_shape:
        raise ModelfixError(
            f"{model.name}: takes images of shape {list(model.input_shape)} (channels, height, "
            f"width) but the {what} has {list(split.x.shape[1:])}."
        )


def check_classes(model: Model, classes: int, exact: bool = True) -> None:
    """Raise `ModelfixError` if `model` has fewer classes or, with `exact`, another number."""
    if model.num_classes < classes or (exact and model.num_classes != classes):
        raise ModelfixError(
            f"{model.name}: predicts {model.num_classes} classes but the data have {classes}; use "
            "the data the model was trained for."
        )


def run(
    approach: Approach,
    task: Task,
    *,
    corrupted: Literal["points", "relative"] = "points",
    on_candidate: Callable[[dict], None] | None = None,
) -> Fixing:
    """Run `approach` on `task`; every end is an outcome, only user mistakes are raised.

    Parameters
    ----------
    approach : Approach
    task : Task
    corrupted : {"points", "relative"}
        Whether a fall of validation accuracy by more than 10 points or by more than 10 % counts
        as CORRUPTED.
    on_candidate : callable, optional
        Gets each candidate's entry as it arrives.
    """
    try:
        approach.check(task)
    except Unadaptable as error:
        return Fixing(Outcome.UNADAPTABLE, str(error))
    selection = _Selection(task, on_candidate)
    reason: str | None = None
    try:
        selection.consume(approach)
    except Unadaptable as error:
        return Fixing(Outcome.UNADAPTABLE, str(error), seconds=selection.seconds)
    except (BudgetExceeded, MemoryError) as error:
        reason = str(error) or "out of memory"
    except Failure as error:
        return Fixing(Outcome.FAILURE, str(error), seconds=selection.seconds)
    except Exception as error:
        logger.exception("%s failed", approach.info.name)
        text = f"{type(error).__name__}: {error}"
        return Fixing(Outcome.FAILURE, text, seconds=selection.seconds)
    return selection.finish(reason, corrupted)


class _Selection:
    """Keeps the best candidate on validation and the books of time."""

    def __init__(self, task: Task, on_candidate: Callable[[dict], None] | None) -> None:
        self.task = task
        self.on_candidate = on_candidate
        self.localisation: Localisation | None = None
        self.evidence: dict[str, Evidence] = {}
        self.entries: list[dict] = []
        self.best: int | None = None
        self.best_candidate: Candidate | None = None
        self.working = 0.0
        self.selecting = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        apart = sum(self.task.seconds.values())
        return {
            "fixing": self.working - apart,
            "selecting": self.selecting,
            **self.task.seconds,
        }

    def consume(self, approach: Approach) -> None:
        proposals = approach.candidates(self.task)
        while True:
            start = perf_counter()
            try:
                proposal = next(proposals, None)
            finally:
                self.working += perf_counter() - start
            if proposal is None:
                return
            if isinstance(proposal, Localisation):
                self.localisation = proposal
            elif isinstance(proposal, Evidence):
                self.evidence[proposal.name] = proposal
            else:
                self._add(proposal)

    def _add(self, candidate: Candidate) -> None:
        start = perf_counter()
        accuracy = candidate.validation_accuracy
        if accuracy is None:
            accuracy = candidate.apply(self.task.model).accuracy(self.task.validation)
        entry = {
            "step": candidate.step,
            "validation_accuracy": accuracy,
            "seconds": round(self.working, 3),
            **{key: float(value) for key, value in candidate.values.items()},
        }
        self.entries.append(entry)
        # On equal accuracy the later one wins: approaches propose better and better models.
        if self.best is None or accuracy >= self.entries[self.best]["validation_accuracy"]:
            self.best, self.best_candidate = len(self.entries) - 1, candidate
        if self.on_candidate is not None:
            self.on_candidate(entry)
        self.selecting += perf_counter() - start

    def finish(self, reason: str | None, corrupted: str) -> Fixing:
        if self.best_candidate is None or self.best is None:
            return self._failure(reason or "the approach proposed no candidate")
        start = perf_counter()
        model = self.best_candidate.apply(self.task.model)
        before = self.task.model.accuracy(self.task.validation)
        logits = model.predict(self.task.validation)
        after = float(np.mean(logits.argmax(axis=1) == self.task.validation.y))
        self.selecting += perf_counter() - start
        problem = self._disagreement(after) or _broken(logits)
        if problem:
            return self._failure(problem)
        limit = CORRUPTED_POINTS * (before if corrupted == "relative" else 1.0)
        outcome = Outcome.FIXED
        if before - after > limit:
            outcome = Outcome.CORRUPTED
            fall = f"validation accuracy fell from {before:.2%} to {after:.2%}"
            reason = f"{fall}; {reason}" if reason else fall
        return Fixing(
            outcome,
            reason,
            model,
            self.localisation,
            list(self.evidence.values()),
            self.entries,
            self.best,
            {"before": before, "after": after},
            self.seconds,
        )

    def _failure(self, reason: str) -> Fixing:
        evidence = list(self.evidence.values())
        return Fixing(
            Outcome.FAILURE, reason, None, self.localisation, evidence, seconds=self.seconds
        )

    def _disagreement(self, after: float) -> str | None:
        claimed = self.entries[self.best or 0]["validation_accuracy"]
        allowed = max(TOLERATED_DISAGREEMENT, 1.5 / len(self.task.validation))
        if abs(claimed - after) <= allowed:
            return None
        return (
            f"the approach measured a validation accuracy of {claimed:.4f} but the fixed model "
            f"has {after:.4f} in onnxruntime"
        )


def _broken(logits: np.ndarray) -> str | None:
    return None if np.isfinite(logits).all() else "the fixed model gives NaN or infinite logits"
