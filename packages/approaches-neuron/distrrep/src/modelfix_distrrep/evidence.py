"""What the repair did, for a person: errors by misclassification, and every patched weight."""

from collections.abc import Sequence

import numpy as np
from modelfix_core.approach import Evidence

from modelfix_distrrep.blend import Blend
from modelfix_distrrep.patches import Repair
from modelfix_distrrep.risks import Misclassification, RiskSetting


def misclassifications(
    setting: RiskSetting,
    repairs: Sequence[Repair],
    coefficients: np.ndarray,
    repair_errors: np.ndarray,
    validation_errors: np.ndarray,
    labels: Sequence[str],
) -> Evidence:
    """Show what became of each misclassification.

    Parameters
    ----------
    setting : RiskSetting
    repairs : sequence of Repair
    coefficients : ndarray, [M + S]
        Those of the patches, then those of shared weights.
    repair_errors, validation_errors : ndarray of int64, [2, M]
        Before and after.
    labels : sequence of str
    """
    patched = {repair.blame.entry: number for number, repair in enumerate(repairs)}
    patches = [patched.get(entry) for entry in setting.misclassifications]
    entries = setting.misclassifications
    return Evidence(
        "misclassifications",
        "What counts, how many weights its own patch has and how many failing inputs that repairs "
        "alone, the patch's coefficient in the merged model, and the errors before and after.",
        {
            "true": [labels[entry.true] for entry in entries],
            "predicted": [_wrong(entry, labels) for entry in entries],
            "risk": [entry.risk for entry in entries],
            "weights": [0 if p is None else len(repairs[p].values) for p in patches],
            "repaired_alone": [0 if p is None else repairs[p].repaired for p in patches],
            "coefficient": [0.0 if p is None else float(coefficients[p]) for p in patches],
            "repair_errors_before": repair_errors[0],
            "repair_errors_after": repair_errors[1],
            "validation_errors_before": validation_errors[0],
            "validation_errors_after": validation_errors[1],
        },
    )


def weights(
    blend: Blend, repairs: Sequence[Repair], merged: np.ndarray, labels: Sequence[str]
) -> Evidence:
    """Show every weight of every patch beside its value in the merged model."""
    index = np.concatenate([repair.blame.index for repair in repairs])
    place = np.searchsorted(blend.index, index)
    owner = [repair.blame.entry for repair in repairs for _ in repair.values]
    unit, feature = np.divmod(index, blend.width)
    return Evidence(
        "patches",
        "Every weight of every patch: its original value, the patch's and the merged model's.",
        {
            "true": [labels[entry.true] for entry in owner],
            "predicted": [_wrong(entry, labels) for entry in owner],
            "class": [labels[number] for number in unit],
            "feature": feature,
            "original": blend.original[place],
            "patch": np.concatenate([repair.values for repair in repairs]),
            "merged": merged[place],
            "shared": blend.owners[place] > 1,
        },
    )


def _wrong(entry: Misclassification, labels: Sequence[str]) -> str:
    return "any other" if entry.predicted is None else labels[entry.predicted]
