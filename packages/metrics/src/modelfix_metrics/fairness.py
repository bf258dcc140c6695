"""Fairness between the groups of a sensitive attribute: average absolute odds difference."""

from dataclasses import dataclass

import numpy as np

from modelfix_metrics.decisions import are_probabilities, nan_warning, predicted
from modelfix_metrics.value import MetricValue

SMALL_CELL = 30  # members of a class within (or outside) a group below which rates are noise
METRICS = ("aaod", "aaod_soft", "aaod_max", "aaod_study")


@dataclass(frozen=True)
class Rates:
    """True and false positive rates of every class (one against the rest) within every group.

    Attributes
    ----------
    tpr, fpr : ndarray of float, [G, K]
        NaN where the cell is empty.
    positives, negatives : ndarray of int, [G, K]
        Members of each cell.
    """

    tpr: np.ndarray
    fpr: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @classmethod
    def hard(cls, y: np.ndarray, pred: np.ndarray, group: np.ndarray, classes: int) -> "Rates":
        """Count predicted classes."""
        from sklearn.metrics import multilabel_confusion_matrix  # importing it takes seconds

        tables = np.stack(
            [
                multilabel_confusion_matrix(y[member], pred[member], labels=np.arange(classes))
                for member in _members(group)
            ]
        )
        (tn, fp), (fn, tp) = tables.transpose(2, 3, 0, 1)
        return cls._of(tp, fp, tp + fn, fp + tn)

    @classmethod
    def soft(cls, y: np.ndarray, probability: np.ndarray, group: np.ndarray) -> "Rates":
        """Average the probability of each class, `probability` [N, K], over the cells."""
        classes = probability.shape[1]
        own = probability[np.arange(len(y)), y]
        members = _members(group)
        tp = np.stack([np.bincount(y[m], weights=own[m], minlength=classes) for m in members])
        total = np.stack([probability[m].sum(axis=0) for m in members])
        positives = np.stack([np.bincount(y[m], minlength=classes) for m in members])
        sizes = np.array([[m.sum()] for m in members])
        return cls._of(tp, total - tp, positives, sizes - positives)

    @classmethod
    def _of(cls, tp, fp, positives, negatives) -> "Rates":
        with np.errstate(divide="ignore", invalid="ignore"):
            tpr = np.where(positives > 0, tp / positives, np.nan)
            fpr = np.where(negatives > 0, fp / negatives, np.nan)
        return cls(tpr, fpr, positives, negatives)

    def odds_differences(self) -> np.ndarray:
        """Return each class's half of the TPR gap plus the FPR gap, [K], NaN for empty cells.

        The gap of more than two groups is the largest rate minus the smallest.
        """
        return (np.ptp(self.tpr, axis=0) + np.ptp(self.fpr, axis=0)) / 2

    def with_zero_for_empty(self) -> "Rates":
        """Return the rates with 0 in place of NaN, as the study's evaluation takes them."""
        return Rates(
            np.nan_to_num(self.tpr), np.nan_to_num(self.fpr), self.positives, self.negatives
        )


def _members(group: np.ndarray) -> list[np.ndarray]:
    return [group == value for value in np.unique(group)]


def aaod_values(
    y: np.ndarray,
    logits: np.ndarray,
    group: np.ndarray | None,
    split: str = "test",
    which: str = "fixed",
) -> list[MetricValue]:
    """Compute the average absolute odds difference and its variants.

    For each class k, one against the rest, ``aaod_k = (|TPR gap| + |FPR gap|) / 2`` between the
    groups; ``aaod`` is the mean over the classes for which it is defined, with predicted classes
    (formula 8, read as the study's evaluation and the work it follows read it).

    Parameters
    ----------
    y : ndarray of int, [N]
    logits : ndarray of float, [N, K]
    group : ndarray of int, [N], or None
    split : str
    which : str
        Whose logits these are, for warnings.

    Returns
    -------
    list of MetricValue
        ``aaod``, ``aaod_soft``, ``aaod_max``, ``aaod_study``; ABSENT without groups, UNDEFINED
        with a single one.
    """
    if group is None:
        return [MetricValue.absent(name, "no_sensitive_attribute", split) for name in METRICS]
    if len(np.unique(group)) < 2:
        return [MetricValue.undefined(name, "single_group", split) for name in METRICS]
    pred = predicted(logits)
    warnings = nan_warning(pred, which)
    hard = Rates.hard(y, pred, group, logits.shape[1])
    soft = Rates.soft(y, probabilities(logits), group)
    study = hard.with_zero_for_empty()
    return [
        _summary("aaod", hard, split, warnings),
        _summary("aaod_soft", soft, split, warnings),
        _summary("aaod_max", hard, split, warnings),
        _summary("aaod_study", study, split, warnings),
    ]


def _summary(metric: str, rates: Rates, split: str, warnings: tuple[str, ...]) -> MetricValue:
    odds = rates.odds_differences()
    defined = ~np.isnan(odds)
    details = {
        "groups": len(rates.tpr),
        "classes": len(odds),
        "classes_undefined": int((~defined).sum()),
        "worst_class": int(np.nanargmax(odds)) if defined.any() else None,
    }
    cells = np.concatenate([rates.positives, rates.negatives])
    small = int(((cells > 0) & (cells < SMALL_CELL)).sum())
    if small:
        warnings += (
            f"{small} of {cells.size} cells (class, group) have fewer than {SMALL_CELL} members",
        )
    if not defined.any():
        return MetricValue.undefined(
            metric, "no_defined_class", split, warnings=warnings, details=details
        )
    terms = odds[defined]
    if metric == "aaod_max":
        terms = terms.max(keepdims=True)
    return MetricValue.mean(
        metric, terms.sum(), len(terms), split, warnings=warnings, details=details
    )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits [N, K] in float64; rows with NaN get probability 0 everywhere.

    Outputs that are probabilities already are taken as they are.
    """
    if are_probabilities(logits):
        return logits.astype(np.float64)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    return np.nan_to_num(exp / exp.sum(axis=1, keepdims=True))
