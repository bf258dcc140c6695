"""The release gate: whether a new model may take the place of an old one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from modelfix_core import Model, ModelfixError, Split
from modelfix_core.fixing import check_classes, check_images
from modelfix_core.readers import find
from modelfix_core.subject import Subject
from modelfix_metrics.decisions import predicted

ROUNDING = 1e-12  # of a difference of two shares


class Keep(StrEnum):
    """What a new model must not lose."""

    ACCURACY = "accuracy"
    FAIRNESS = "fairness"
    COMPATIBILITY = "compatibility"


@dataclass(frozen=True)
class Limits:
    """What a new model may cost; None is no limit.

    Attributes
    ----------
    nfr : float or None
        Largest negative flip rate, in [0, 1].
    accuracy_loss : float or None
        Largest fall of accuracy, in [0, 1].
    slice_loss : float or None
        Largest fall of accuracy within any one class or group, in [0, 1].
    aaod_rise : float or None
        Largest rise of the average absolute odds difference between the groups, in [0, 1].
    """

    nfr: float | None = None
    accuracy_loss: float | None = None
    slice_loss: float | None = None
    aaod_rise: float | None = None


@dataclass(frozen=True)
class Inputs:
    """Labelled images on which two models are compared.

    Attributes
    ----------
    split : Split
    classes : list of str
        Class names in the order of the labels.
    groups : list of str, or None
        Values of the sensitive attribute, where they are known by name.
    files : list of str, or None
        Path of each image within the data, where images are files.
    """

    split: Split
    classes: Sequence[str]
    groups: Sequence[str] | None = None
    files: Sequence[str] | None = None

    @classmethod
    def read(cls, path: Path, **options: Any) -> "Inputs":
        """Read all of one's own data, with `options` as for `modelfix_core.readers.find`."""
        listing = find(path, **options)
        dataset = listing.whole()
        dataset.validate()
        return cls(dataset["whole"], listing.classes, listing.group_values, listing.files)

    @classmethod
    def of(cls, subject: Subject, name: str = "test") -> "Inputs":
        """Take a split of a prepared subject."""
        dataset = subject.dataset((name,))
        groups = subject.card.provenance.get("groups")
        return cls(dataset[name], dataset.classes, groups)

    def named(self, position: int) -> str:
        """Return how a person finds an image: its file, else its id."""
        return self.files[position] if self.files else str(self.split.ids[position])


@dataclass(frozen=True)
class Answers:
    """What two models say of the same inputs.

    Attributes
    ----------
    inputs : Inputs
    before, after : ndarray of float32, [N, K]
        Logits of the old and of the new model, columns in the order of the classes.
    """

    inputs: Inputs
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def ask(cls, old: Model, new: Model, inputs: Inputs) -> "Answers":
        """Let both models predict.

        Raises
        ------
        ModelfixError
            If a model does not fit the images or their classes.
        """
        needed = max(len(inputs.classes), int(inputs.split.y.max()) + 1)
        for model in (old, new):
            check_images(model, "data", inputs.split)
            check_classes(model, needed, exact=False)
        before, after = (_ordered(model, inputs) for model in (old, new))
        return cls(inputs, before, after)

    @property
    def old(self) -> np.ndarray:
        """Classes that the old model predicts, [N]; -1 where its logits are NaN."""
        return predicted(self.before)

    @property
    def new(self) -> np.ndarray:
        """Classes that the new model predicts, [N]; -1 where its logits are NaN."""
        return predicted(self.after)

    def aaod(self) -> tuple[float, float] | None:
        """Return the odds difference of the old and the new model; None if it has no value."""
        from modelfix_metrics.fairness import aaod_values  # needs scikit-learn, which is slow

        y, group = self.inputs.split.y, self.inputs.split.group
        pair = [aaod_values(y, logits, group)[0].value for logits in (self.before, self.after)]
        return None if np.isnan(pair).any() else (pair[0], pair[1])


def _ordered(model: Model, inputs: Inputs) -> np.ndarray:
    """Return the model's logits with the columns in the order of the data's classes."""
    logits = model.predict(inputs.split)
    labels, classes = model.labels, list(inputs.classes)
    if labels is None or labels == classes or classes == list(map(str, range(len(classes)))):
        return logits
    if set(labels) != set(classes):
        raise ModelfixError(
            f"{model.name}: its classes are {', '.join(labels)} but those of the data are "
            f"{', '.join(classes)}; give the latter in the order of the model's outputs with "
            "--classes."
        )
    return logits[:, [labels.index(name) for name in classes]]


@dataclass(frozen=True)
class Check:
    """A measured cost beside its limit, both in [0, 1]."""

    name: str
    value: float
    limit: float
    words: str

    @property
    def passed(self) -> bool:
        """Whether the cost is within the limit."""
        return self.value <= self.limit + ROUNDING

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Slice:
    """The comparison within one class or one group; accuracies in [0, 1]."""

    kind: Literal["class", "group"]
    name: str
    inputs: int
    accuracy_before: float
    accuracy_after: float
    newly_fixed: int
    newly_broken: int

    @property
    def loss(self) -> float:
        """Fall of accuracy; negative if it rose."""
        return self.accuracy_before - self.accuracy_after


@dataclass(frozen=True)
class Verdict:
    """The comparison of two models on the same inputs.

    Attributes
    ----------
    inputs : int
    accuracy_before, accuracy_after, repair_rate, nfr : float
        In [0, 1]; the repair rate is NaN where the old model makes no mistake.
    aaod : tuple of float, or None
        Average absolute odds difference before and after, where there are groups.
    newly_fixed, newly_broken : list of int
        Positions of the inputs in the data.
    slices : list of Slice
        Every class, then every group.
    checks : list of Check
        One per limit that was set.
    """

    inputs: int
    accuracy_before: float
    accuracy_after: float
    repair_rate: float
    nfr: float
    aaod: tuple[float, float] | None
    newly_fixed: list[int]
    newly_broken: list[int]
    slices: list[Slice] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the new model may be released."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why it may not."""
        return [check.words for check in self.checks if not check.passed]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an undefined repair rate is null."""
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            **asdict(self),
            "repair_rate": None if np.isnan(self.repair_rate) else self.repair_rate,
            "checks": [check.as_dict() for check in self.checks],
        }


def parse_share(text: str, option: str) -> float:
    """Read ``0.5%`` or ``0.005`` as a share in [0, 1]."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ModelfixError(f"{option} {text!r}: expected a share such as 0.5% or 0.005.")
    return value


def parse_limits(
    nfr: str | None, accuracy_loss: str | None, slice_loss: str | None, aaod_rise: str | None
) -> Limits:
    """Read the limits as they are given on the command line."""
    given = {
        "--max-nfr": nfr,
        "--max-accuracy-loss": accuracy_loss,
        "--max-slice-loss": slice_loss,
        "--max-aaod-rise": aaod_rise,
    }
    shares = (None if x is None else parse_share(x, option) for option, x in given.items())
    return Limits(*shares)


def judge(answers: Answers, limits: Limits) -> Verdict:
    """Compare what two models answered and hold it against `limits`.

    Raises
    ------
    ModelfixError
        If a limit is set on what the data do not tell.
    """
    y = answers.inputs.split.y
    before, after = answers.old == y, answers.new == y
    fixed, broken = ~before & after, before & ~after
    mistakes = int((~before).sum())
    has_groups = answers.inputs.split.group is not None
    aaod = answers.aaod() if has_groups else None
    slices = _slices(answers.inputs, before, after)
    nfr, loss = float(broken.mean()), float(before.mean() - after.mean())
    return Verdict(
        inputs=len(y),
        accuracy_before=float(before.mean()),
        accuracy_after=float(after.mean()),
        repair_rate=float(fixed.sum() / mistakes) if mistakes else float("nan"),
        nfr=nfr,
        aaod=aaod,
        newly_fixed=[int(i) for i in np.flatnonzero(fixed)],
        newly_broken=[int(i) for i in np.flatnonzero(broken)],
        slices=slices,
        checks=list(_checks(limits, nfr, loss, slices, aaod)),
    )


def _checks(
    limits: Limits,
    nfr: float,
    loss: float,
    slices: Sequence[Slice],
    aaod: tuple[float, float] | None,
) -> list[Check]:
    found = []

    def hold(name: str, value: float, limit: float | None, words: Callable[[float], str]) -> None:
        if limit is not None:
            found.append(Check(name, value, limit, words(limit)))

    hold("nfr", nfr, limits.nfr, lambda x: f"NFR {nfr:.2%} exceeds the limit of {x:.2%}")
    hold(
        "accuracy", loss, limits.accuracy_loss,
        lambda x: f"accuracy fell by {loss:.2%}, more than {x:.2%}",
    )  # fmt: skip
    worst = max(slices, key=lambda part: part.loss)
    hold(
        "slices", worst.loss, limits.slice_loss,
        lambda x: f"accuracy on {worst.kind} {worst.name} fell by {worst.loss:.2%}, "
        f"more than {x:.2%}",
    )  # fmt: skip
    if limits.aaod_rise is not None:
        if aaod is None:
            raise ModelfixError(
                "--max-aaod-rise: the data name no two groups; give them with --group-column."
            )
        rise = aaod[1] - aaod[0]
        hold(
            "aaod", rise, limits.aaod_rise,
            lambda x: f"AAOD rose by {rise:.2%}, more than {x:.2%}",
        )  # fmt: skip
    return found


def _slices(inputs: Inputs, before: np.ndarray, after: np.ndarray) -> list[Slice]:
    y, group = inputs.split.y, inputs.split.group
    found = _kind("class", y, inputs.classes, before, after)
    if group is not None:
        found += _kind("group", group, inputs.groups, before, after)
    return found


def _kind(
    kind: Literal["class", "group"],
    values: np.ndarray,
    names: Sequence[str] | None,
    before: np.ndarray,
    after: np.ndarray,
) -> list[Slice]:
    """Count within every value that occurs."""
    present, position = np.unique(values, return_inverse=True)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.bincount(position, weights=mask, minlength=len(present))

    counts = zip(
        present,
        count(np.ones(len(values))),
        *(count(mask) for mask in (before, after, ~before & after, before & ~after)),
        strict=True,
    )
    return [
        Slice(
            kind,
            str(names[value]) if names and value < len(names) else str(value),
            int(n), float(old / n), float(new / n), int(fixed), int(broken),
        )
        for value, n, old, new, fixed, broken in counts
    ]  # fmt: skip
