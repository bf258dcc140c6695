"""What was proven of a candidate, as numbers that a record keeps and as sentences for people."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modelfix_minimal_3m.change import NORMS, Change

SOLVERS = {
    "highs-lp": "HiGHS, linear program",
    "highs-milp": "HiGHS, mixed-integer program",
    "marabou": "Marabou, bisection over verification queries",
}
NORM_TEXTS = {"l1": "sum of absolute changes", "linf": "largest absolute change"}
PREFIX = "proven."
INPUT = f"{PREFIX}input."
# Bounds this close together, relative to the cost, prove minimality.
MINIMAL_GAP = 1e-6
NAMED_INPUTS = 10  # in sentences; the values name all


@dataclass(frozen=True)
class Proof:
    """What holds for a candidate: every point is right, and how small the change is.

    Attributes
    ----------
    change : Change
    norm : {"l1", "linf"}
    margin : float
        By how much labels had to win in the solver.
    ids : ndarray of int64, [k]
        Of the inputs, as in the repair split.
    margins : ndarray of float64, [k]
        By how much their labels win in the fixed model, run by onnxruntime.
    """

    change: Change
    norm: str
    margin: float
    ids: np.ndarray
    margins: np.ndarray

    def values(self) -> dict[str, float]:
        """Return everything as numbers, for `Candidate.values`; `describe` reads them."""
        change = self.change
        values = {
            "points": len(self.ids),
            "regions": 0,  # single inputs are proven right, no region around them
            "margin": self.margin,
            "least_margin": self.margins.min(),
            "cost": change.cost,
            "lower_bound": change.lower_bound,
            "minimal": change.cost - change.lower_bound <= MINIMAL_GAP * max(change.cost, 1e-9),
            "tolerance": change.tolerance,
            "layers": len(change.weights),
            "proposals": change.proposals,
            f"norm.{self.norm}": 1,
            f"solver.{change.solver}": 1,
        }
        if change.single_cost is not None:
            values["single_cost"] = change.single_cost
        inputs = {
            f"{INPUT}{key}": float(margin)
            for key, margin in zip(self.ids, self.margins, strict=True)
        }
        return {**{f"{PREFIX}{key}": float(value) for key, value in values.items()}, **inputs}


def describe(values: Mapping[str, float]) -> str:
    """Say in sentences what was proven of a candidate.

    Parameters
    ----------
    values : mapping of str to float
        `Candidate.values` of this approach, or the entry of the candidate in a record.

    Returns
    -------
    str
        Empty where the values hold no proof.
    """
    if f"{PREFIX}points" not in values:
        return ""

    def value(key: str) -> float:
        return values[PREFIX + key]

    norm = next(n for n in NORMS if f"{PREFIX}norm.{n}" in values)
    solver = next(text for s, text in SOLVERS.items() if f"{PREFIX}solver.{s}" in values)
    ids = [key.removeprefix(INPUT) for key in values if key.startswith(INPUT)]
    count, layers = len(ids), int(value("layers"))
    named = ", ".join(ids[:NAMED_INPUTS])
    named += f" and {count - NAMED_INPUTS} more" if count > NAMED_INPUTS else ""
    proven = (
        f"{count} input{'s' * (count != 1)} of the repair split (id {named}), as single "
        f"points without a region around them, get their label: by a margin of at least "
        f"{value('margin'):g} in the solver ({solver}, tolerance {value('tolerance'):g}) and of at "
        f"least {value('least_margin'):.3g} in the fixed model, run by onnxruntime. "
    )
    cost = (
        f"The change of {layers} layer{'s' * (layers != 1)} costs {value('cost'):.6g} "
        f"({NORM_TEXTS[norm]})"
    )
    if value("minimal"):
        return f"{proven}{cost}; no cheaper one of these weights exists."
    if f"{PREFIX}single_cost" in values:
        return (
            f"{proven}{cost}, the cheapest of {value('proposals'):.0f} proposals; the last layer "
            f"alone costs {value('single_cost'):.6g}."
        )
    return f"{proven}{cost}; none costs less than {value('lower_bound'):.6g}."
