"""The contract between an approach and everything else."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from modelfix_core.dataset import Split
from modelfix_core.errors import BudgetExceeded, ModelfixError
from modelfix_core.model import Model


class Category(StrEnum):
    """Where an approach changes the model."""

    MODEL = "model"
    LAYER = "layer"
    NEURON = "neuron"


class Framework(StrEnum):
    """What an approach computes with; two frameworks never share a process."""

    TENSORFLOW = "tensorflow"
    TORCH = "torch"
    NONE = "none"


class Outcome(StrEnum):
    """How a cell ended."""

    FIXED = "FIXED"
    CORRUPTED = "CORRUPTED"
    FAILURE = "FAILURE"
    UNADAPTABLE = "UNADAPTABLE"


class Need(StrEnum):
    """What an approach takes from its task."""

    TRAIN = "train"
    VALIDATION = "validation"
    REPAIR = "repair"
    HISTORY = "history"
    RISKS = "risks"
    GRADIENTS = "gradients"
    IMAGES = "images"


@dataclass(frozen=True)
class ApproachInfo:
    """What can be known of an approach without running it.

    Attributes
    ----------
    name : str
        As in ``--approach`` and in the folder of the package.
    abbreviation : str
        The study's, heading columns of tables.
    title : str
        The paper's name of the approach.
    category : Category
    framework : Framework
    paper : str
        Authors, title, venue, year.
    summary : str
        One sentence.
    needs : frozenset of Need
    deterministic : bool
        True if the seed changes nothing.
    certainty : str
        How well the algorithm is known: ``code``, ``paper`` or ``study-text``.
    localises : bool
        True if it says which weights, neurons or layers are to blame.
    """

    name: str
    abbreviation: str
    title: str
    category: Category
    framework: Framework
    paper: str
    summary: str
    needs: frozenset[Need]
    deterministic: bool = False
    certainty: str = "code"
    localises: bool = False


class ApproachConfig(BaseModel):
    """Base of every approach's options: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Candidate:
    """A changed model that an approach proposes.

    Attributes
    ----------
    weights : mapping of str to ndarray, or None
        New values of some initializers; empty proposes the original model.
    model : Model or None
        A whole model, where the architecture changed; exactly one of the two is given.
    validation_accuracy : float or None
        As the approach measured it on the whole validation split; the job measures it where None.
    step : int
        Epoch, generation or iteration.
    values : mapping of str to float
        What is worth plotting (fitness, loss).
    """

    weights: Mapping[str, np.ndarray] | None = None
    model: Model | None = None
    validation_accuracy: float | None = None
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.model is None):
            raise ValueError("a candidate has either weights or a model")

    def apply(self, original: Model) -> Model:
        """Return the proposed model."""
        if self.model is not None:
            return self.model
        return original.with_weights(self.weights or {})


@dataclass(frozen=True)
class Localisation:
    """Blamed weights, neurons or layers, one row each.

    Attributes
    ----------
    kind : str
        ``weight``, ``neuron`` (output unit or channel) or ``layer``.
    layer : sequence of str, [D]
        Layer names as in `Model.layers`.
    index : ndarray of int64, [D]
        Position in the flattened weight, output unit or channel, or 0 for a layer.
    score : ndarray of float, [D]
        Larger is more to blame.
    """

    kind: str
    layer: Sequence[str]
    index: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class Evidence:
    """A table that an approach shows for its work: proofs, clusters of failures, growth.

    Attributes
    ----------
    name : str
        Lower-case letters, digits and ``-``; names the file ``evidence/<name>.parquet``.
    summary : str
        One sentence that a person reads above the table.
    columns : mapping of str to sequence
        Columns of one length, of numbers, booleans or text. A column ``sample`` holds ids as in
        `Split.ids`, so that the images can be shown; a column ``cluster`` groups them.
    """

    name: str
    summary: str
    columns: Mapping[str, Sequence[Any] | np.ndarray]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"evidence cannot be named {self.name!r}")
        if len({len(column) for column in self.columns.values()}) != 1:
            raise ValueError(f"the columns of evidence {self.name!r} differ in length")


@dataclass(frozen=True)
class Budget:
    """Limits of one run: `seconds` of work and `memory` in bytes; None is no limit."""

    seconds: float | None = None
    memory: int | None = None

    @property
    def free_memory(self) -> float:
        """Bytes that this process may still take; infinite where there is no limit."""
        if self.memory is None:
            return float("inf")
        import psutil  # only where it matters: metadata is read often

        return max(0.0, float(self.memory - psutil.Process().memory_info().rss))


Reporter = Callable[[int, int, str], None]


@dataclass
class Task:
    """What an approach is given. It never holds the test split.

    Attributes
    ----------
    model : Model
        The original model.
    repair, validation : Split
    train : Split or None
    history : sequence of Path
        ONNX models of the training epochs, oldest first; empty where none are known.
    risks : mapping of int to float, or None
        Weight of a mistake per class.
    seed : int
        Of every draw: use ``modelfix_core.seeds.generator(task.seed, stage=...)``.
    device : str
        ``cpu`` or ``cuda`` (or ``cuda:1``).
    budget : Budget
    folder : Path or None
        Where checkpoints may be kept between an interruption and the next run.
    reporter : callable or None
        Gets ``(done, total, note)``.
    """

    model: Model
    repair: Split
    validation: Split
    train: Split | None = None
    history: Sequence[Path] = ()
    risks: Mapping[int, float] | None = None
    seed: int = 0
    device: str = "cpu"
    budget: Budget = field(default_factory=Budget)
    folder: Path | None = None
    reporter: Reporter | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=perf_counter)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress; call it at least every second or so of work.

        Raises
        ------
        BudgetExceeded
            When the time is used up. Do not catch it.
        """
        if self.reporter is not None:
            self.reporter(done, total, note)
        limit = self.budget.seconds
        if limit is not None and perf_counter() - self._started > limit:
            raise BudgetExceeded(f"the time limit of {limit:g} s was reached")

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Book the block's time under `part` (``conversion`` ...), not under fixing."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - start


class Approach(ABC):
    """One way to fix a model.

    A subclass sets `info`, `Config` and, where it has more than the defaults, `presets`; its module
    imports no framework at the top, so that its metadata can be read anywhere.

    Parameters
    ----------
    preset : str
        One of `presets`.
    **values
        Options that differ from the preset.
    """

    info: ClassVar[ApproachInfo]
    Config: ClassVar[type[ApproachConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    config: Any  # an instance of Config

    def __init__(self, preset: str = "default", **values: Any) -> None:
        if preset not in self.presets:
            raise ModelfixError(
                f"{self.info.name}: has no preset {preset!r}; it has {', '.join(self.presets)}."
            )
        try:
            self.config = self.Config(**{**self.presets[preset], **values})
        except ValidationError as error:
            raise ModelfixError(_explain(self, error)) from error

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise `Unadaptable` with the reason if the task does not fit; reads the graph only."""

    @abstractmethod
    def candidates(self, task: Task) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield the localisation, where there is one, and then better and better candidates.

        Evidence may be yielded at any point; of two of one name the later one is kept.
        """


def _explain(approach: Approach, error: ValidationError) -> str:
    first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"]) or "options"
    if first["type"] == "extra_forbidden":
        known = ", ".join(approach.Config.model_fields)
        return f"{approach.info.name}: has no option {option!r}; it has {known}."
    return f"{approach.info.name}: option {option!r} = {first['input']!r}: {first['msg']}."
