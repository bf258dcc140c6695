"""Metrics of the predicted classes: accuracy, repair rate, negative flip rate."""

from dataclasses import dataclass

import numpy as np
from modelfix_core.errors import ModelfixError

from modelfix_metrics.value import MetricValue

NO_CLASS = -1  # predicted where logits are NaN; equals no label
SUM_TOLERANCE = 1e-3


def predicted(logits: np.ndarray) -> np.ndarray:
    """Return the predicted classes: the largest logit, the lowest index on ties.

    Parameters
    ----------
    logits : ndarray of float, [N, K]

    Returns
    -------
    ndarray of int64, [N]
        `NO_CLASS` for rows that hold NaN, so that they count as wrong.
    """
    return np.where(np.isnan(logits).any(axis=1), NO_CLASS, logits.argmax(axis=1))


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the rows of `outputs` [N, K] are non-negative and sum to 1, as after a softmax."""
    sums = outputs.sum(axis=1)
    return bool((outputs >= 0).all() and (np.abs(sums - 1) < SUM_TOLERANCE).all())


def nan_warning(pred: np.ndarray, which: str) -> tuple[str, ...]:
    """Return the warning about NaN logits, if there are any."""
    count = int((pred == NO_CLASS).sum())
    if not count:
        return ()
    return (
        f"{count} of {len(pred)} inputs have NaN logits in the {which} model: counted as wrong",
    )


@dataclass(frozen=True)
class Flips:
    """How many inputs are right or wrong before and after the fix."""

    stayed_wrong: int
    repaired: int
    regressed: int
    stayed_right: int

    @classmethod
    def count(cls, y: np.ndarray, before: np.ndarray, after: np.ndarray) -> "Flips":
        """Count from labels and predicted classes, [N] each.

        Raises
        ------
        ModelfixError
            If there are no inputs or the arrays differ in length.
        """
        if len(y) == 0:
            raise ModelfixError("there are no inputs to evaluate on; give at least one.")
        if not len(y) == len(before) == len(after):
            raise ModelfixError(
                f"there are {len(y)} labels but {len(before)} predictions of the original and "
                f"{len(after)} of the fixed model; evaluate both on the same inputs."
            )
        from sklearn.metrics import confusion_matrix  # importing it takes seconds

        table = confusion_matrix(before == y, after == y, labels=[False, True])
        return cls(*(int(count) for count in table.ravel()))

    @property
    def inputs(self) -> int:
        """All inputs, N."""
        return self.stayed_wrong + self.repaired + self.regressed + self.stayed_right

    @property
    def wrong_before(self) -> int:
        """Mispredictions of the original model, W."""
        return self.stayed_wrong + self.repaired


def accuracy(
    y: np.ndarray, pred: np.ndarray, split: str = "test", which: str = "fixed"
) -> MetricValue:
    """Return the share of inputs whose predicted class is the label (formula 5)."""
    if len(y) == 0:
        raise ModelfixError("there are no inputs to evaluate on; give at least one.")
    right = int((pred == y).sum())
    return MetricValue.ratio("accuracy", right, len(y), split, warnings=nan_warning(pred, which))


def repair_rate(flips: Flips, split: str = "test") -> MetricValue:
    """Return the share of mispredictions of the original model that the fixed model gets right.

    The study divides by the mispredictions, other than its formula 6 prints; see
    `repair_rate_printed`.
    """
    if flips.wrong_before == 0:
        return MetricValue.undefined(
            "repair_rate", "no_misprediction", split, numerator=0, denominator=0
        )
    return MetricValue.ratio("repair_rate", flips.repaired, flips.wrong_before, split)


def repair_rate_printed(flips: Flips, split: str = "test") -> MetricValue:
    """Return the repaired inputs over all inputs (formula 6 as printed)."""
    return MetricValue.ratio("repair_rate_printed", flips.repaired, flips.inputs, split)


def nfr(flips: Flips, split: str = "test") -> MetricValue:
    """Return the negative flip rate: regression faults over all inputs (formula 9)."""
    return MetricValue.ratio("nfr", flips.regressed, flips.inputs, split)


def check_identity(
    before: MetricValue, after: MetricValue, repaired: MetricValue, regressed: MetricValue
) -> None:
    """Check in integers that accuracy, repair rate and NFR speak of the same predictions.

    Parameters
    ----------
    before, after : MetricValue
        Accuracy of the original and of the fixed model.
    repaired : MetricValue
        Repair rate.
    regressed : MetricValue
        NFR.

    Raises
    ------
    ModelfixError
        If ``accuracy' = accuracy + RR W / N - NFR`` is violated.
    """
    (right_before, n), (right_after, n_after) = before.counts, after.counts
    (repairs, wrong_before), (regressions, n_regressed) = repaired.counts, regressed.counts
    if (
        right_before + repairs - regressions != right_after
        or wrong_before != n - right_before
        or {n_after, n_regressed} != {n}
    ):
        raise ModelfixError(
            f"the values contradict each other: {right_before} right before, {repairs} of "
            f"{wrong_before} repaired and {regressions} regressed do not give {right_after} right "
            f"of {n}; evaluate the record again."
        )
