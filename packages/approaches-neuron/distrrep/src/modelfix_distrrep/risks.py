"""Which misclassifications count, how much, and the score that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from modelfix_core.errors import Unadaptable
from pydantic import BaseModel, ConfigDict, Field, model_validator

PENALTY = 0.5  # of an error rate, per unit of its risk (code)


@dataclass(frozen=True)
class Misclassification:
    """Inputs of one class that are predicted as another class, or as any other.

    Attributes
    ----------
    true : int
        The class of the inputs.
    predicted : int or None
        As what they are predicted; None for any wrong class.
    risk : float
        Share of this misclassification in all risk, in [0, 1].
    """

    true: int
    predicted: int | None
    risk: float

    def __str__(self) -> str:
        wrong = "another class" if self.predicted is None else f"class {self.predicted}"
        return f"class {self.true} predicted as {wrong}"

    def inputs(self, predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the positions of the inputs, [N], that are misclassified so; ascending."""
        wrong = predicted != y if self.predicted is None else predicted == self.predicted
        return np.flatnonzero((y == self.true) & wrong)


@dataclass(frozen=True)
class RiskSetting:
    """What is to be repaired and what is to be kept.

    Attributes
    ----------
    misclassifications : tuple of Misclassification
        Their risks add up to 1.
    precision : mapping of int to float
        For each class that has a misclassification as any other: the weight of its accuracy.
    """

    misclassifications: tuple[Misclassification, ...]
    precision: Mapping[int, float]

    def counted(self, y: np.ndarray) -> np.ndarray:
        """Return the positions of the inputs, [N], on which the score depends; ascending."""
        return np.flatnonzero(np.isin(y, [entry.true for entry in self.misclassifications]))


class RiskTable(BaseModel):
    """A risk setting as people write it; the names are those of the authors' manual."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_misclassifications: dict[str, list[str]] = Field(
        {}, description="For a class, as which classes its inputs must not be predicted."
    )
    general_misclassifications: list[str] = Field(
        [], description="Classes whose inputs must not be predicted as any other class."
    )
    weights_precisions: dict[str, float] = Field(
        {}, description="How much the accuracy on a class counts; for all general classes."
    )
    weights_misclassifications: dict[str, float] = Field(
        {}, description='Risk of a general class, or of a target as "true,predicted"; else 0.'
    )

    @property
    def entries(self) -> dict[str, tuple[str, str | None]]:
        """True and predicted class of every misclassification, under its key in the weights."""
        targets = {
            f"{true},{predicted}": (true, predicted)
            for true, wrong in self.target_misclassifications.items()
            for predicted in wrong
        }
        return {**{true: (true, None) for true in self.general_misclassifications}, **targets}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.entries:
            raise ValueError("names no misclassification, neither a target nor a general one")
        for true, predicted in self.entries.values():
            if true == predicted:
                raise ValueError(f"{true!r} predicted as itself is no misclassification")
        for name in self.general_misclassifications:
            if name not in self.weights_precisions:
                raise ValueError(f"weights_precisions lacks the general class {name!r}")
        for key in self.weights_misclassifications:
            if key not in self.entries:
                raise ValueError(f"weights_misclassifications: {key!r} is none of the named ones")
        tables = [self.weights_misclassifications]
        if self.general_misclassifications:
            tables.append(self.weights_precisions)
        for weights in tables:
            if min(weights.values(), default=0.0) < 0 or not sum(weights.values()) > 0:
                raise ValueError("weights must be 0 or more, and not all of a table 0")
        return self


def from_table(table: RiskTable, labels: Sequence[str]) -> RiskSetting:
    """Read a table; each of its two tables of weights is divided by its sum.

    Parameters
    ----------
    table : RiskTable
    labels : sequence of str
        Class names by label.

    Raises
    ------
    Unadaptable
        If a class is unknown.
    """
    number = {name: label for label, name in enumerate(labels)}

    def label(name: str) -> int:
        if name not in number:
            known = ", ".join(labels)
            raise Unadaptable(f"its risk setting names a class {name!r}; the classes are {known}")
        return number[name]

    risks, precisions = table.weights_misclassifications, table.weights_precisions
    total = sum(risks.values())
    entries = tuple(
        Misclassification(
            label(true),
            None if predicted is None else label(predicted),
            risks.get(key, 0.0) / total,
        )
        for key, (true, predicted) in table.entries.items()
    )
    weights = {
        label(name): weight / sum(precisions.values()) for name, weight in precisions.items()
    }
    generals = [entry.true for entry in entries if entry.predicted is None]
    return RiskSetting(entries, {true: weights[true] for true in generals})


def from_classes(
    risks: Mapping[int, float], predicted: np.ndarray, y: np.ndarray, classes: int | None = None
) -> RiskSetting:
    """Make a setting of class risks: each class as any other, and as its most frequent error.

    Parameters
    ----------
    risks : mapping of int to float
        Weight of a mistake per class, at least one above 0; classes of weight 0 do not count.
    predicted, y : ndarray of int64, [N]
        Of the repair split.
    classes : int, optional
        At most so many classes: those of largest risk, then those with most errors.
    """
    wrong = predicted != y
    errors = {true: int((wrong & (y == true)).sum()) for true in risks}
    ranked = sorted((-risk, -errors[true], true) for true, risk in risks.items() if risk > 0)
    chosen = sorted(true for *_, true in ranked[:classes])
    pairs: list[tuple[int, int | None]] = [(true, None) for true in chosen]
    for true in chosen:
        if errors[true]:
            pairs.append((true, int(np.bincount(predicted[wrong & (y == true)]).argmax())))
    weights = np.array([risks[true] for true, _ in pairs], dtype=np.float64)
    weights /= weights.sum()
    total = sum(risks[true] for true in chosen)
    return RiskSetting(
        tuple(Misclassification(*pair, w) for pair, w in zip(pairs, weights.tolist(), strict=True)),
        {true: risks[true] / total for true in chosen},
    )


class Score:
    """How good predictions are under a risk setting.

    For a general misclassification of class t with error rate e, precision weight p and risk r,
    ``p (1 - e) - r e / 2``; for a target, ``- r e / 2`` with e the share of the inputs of class t
    that are predicted so. Rates are exact counts over the inputs of a class; a misclassification
    of a class without inputs does not count.

    Parameters
    ----------
    setting : RiskSetting
    y : ndarray of int64, [n]
    """

    def __init__(self, setting: RiskSetting, y: np.ndarray) -> None:
        self._entries = setting.misclassifications
        self._rows = [np.flatnonzero(y == entry.true) for entry in self._entries]
        self._sizes = np.array([max(1, len(rows)) for rows in self._rows])
        self._risk = PENALTY * np.array([entry.risk for entry in self._entries])
        self._precision = np.array(
            [0.0 if e.predicted is not None else setting.precision[e.true] for e in self._entries]
        )
        for weights in (self._risk, self._precision):
            weights[[not len(rows) for rows in self._rows]] = 0.0

    def errors(self, predicted: np.ndarray) -> np.ndarray:
        """Count the errors of each misclassification, int64 [P, M], in predictions [P, n]."""
        counts = np.zeros((len(predicted), len(self._entries)), dtype=np.int64)
        for m, (entry, rows) in enumerate(zip(self._entries, self._rows, strict=True)):
            part = predicted[:, rows]
            wrong = part != entry.true if entry.predicted is None else part == entry.predicted
            counts[:, m] = np.count_nonzero(wrong, axis=1)
        return counts

    def __call__(self, errors: np.ndarray) -> np.ndarray:
        """Return the score of models with so many errors [P, M], float64 [P]; in [-0.5, 1]."""
        rates = errors / self._sizes
        # Summed row by row: a product of matrices may round a row by its company.
        return (self._precision * (1 - rates) - self._risk * rates).sum(axis=1)
