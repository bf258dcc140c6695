"""What was proven of a candidate, as sentences for people and as a table for the record."""

import importlib.metadata
from dataclasses import dataclass

import numpy as np
from modelfix_core.approach import Evidence

from modelfix_minimal_3m.change import Change

SOLVERS = {
    "highs-lp": ("highspy", "HiGHS {}, linear program"),
    "highs-milp": ("highspy", "HiGHS {}, mixed-integer program"),
    "marabou": ("maraboupy", "Marabou {}, bisection over verification queries"),
}
NORM_TEXTS = {"l1": "sum of absolute changes", "linf": "largest absolute change"}
# Bounds this close together, relative to the cost, prove minimality.
MINIMAL_GAP = 1e-6


@dataclass(frozen=True)
class Proof:
    """What holds for a candidate: every given fault is right, and how small the change is.

    Attributes
    ----------
    change : Change
    norm : {"l1", "linf"}
    margin : float
        By how much labels had to win in the solver.
    ids : ndarray of int64, [k]
        Of the faults, as in the repair split.
    y : ndarray of int64, [k]
    margins : ndarray of float64, [k]
        By how much their labels win in the fixed model, run by onnxruntime.
    rounding : float
        By how much the logits behind `margins` may be off.
    """

    change: Change
    norm: str
    margin: float
    ids: np.ndarray
    y: np.ndarray
    margins: np.ndarray
    rounding: float

    @property
    def minimal(self) -> bool:
        """Whether no cheaper change of these weights makes the faults right."""
        change = self.change
        return change.cost - change.lower_bound <= MINIMAL_GAP * max(change.cost, 1e-9)

    @property
    def tolerance(self) -> float:
        """By how much a margin may fall short: the solver's tolerance and float32 rounding."""
        return self.change.tolerance + self.rounding

    def values(self) -> dict[str, float]:
        """Return what is worth plotting, for `Candidate.values`."""
        change = self.change
        values = {
            "faults": len(self.ids),
            "least_margin": self.margins.min(),
            f"cost_{self.norm}": change.cost,
            "lower_bound": change.lower_bound,
            "minimal": self.minimal,
            "layers": len(change.weights),
            "proposals": change.proposals,
        }
        if change.single_cost is not None:
            values["single_cost"] = change.single_cost
        return {key: float(value) for key, value in values.items()}

    def summary(self) -> str:
        """Say in one sentence what was proven."""
        change, faults, layers = self.change, len(self.ids), len(self.change.weights)
        return (
            f"{faults} fault{'s' * (faults != 1)} of the repair split get{'s' * (faults == 1)} "
            f"{'their' if faults != 1 else 'its'} label by a change of {layers} "
            f"layer{'s' * (layers != 1)} that costs {change.cost:.6g} ({NORM_TEXTS[self.norm]}): "
            f"{self._minimality()}. Each holds at the input itself, not around it; the margin is "
            "that of the fixed model in onnxruntime."
        )

    def _minimality(self) -> str:
        change = self.change
        if self.minimal:
            return "no cheaper change of these weights exists"
        if change.single_cost is None:
            return f"none costs less than {change.lower_bound:.6g}"
        return (
            f"the cheapest of {change.proposals} proposals, where the last layer alone costs "
            f"{change.single_cost:.6g}"
        )

    def evidence(self) -> Evidence:
        """Return one row for each fault."""
        count = len(self.ids)
        package, text = SOLVERS[self.change.solver]
        return Evidence(
            "proofs",
            self.summary(),
            {
                "sample": self.ids,
                "property": [
                    f"class {y} wins by at least {self.margin:g} at the point" for y in self.y
                ],
                "scope": ["point"] * count,
                "solver": [text.format(importlib.metadata.version(package))] * count,
                "tolerance": np.full(count, self.tolerance),
                "margin": self.margins,
                "holds": self.margins >= self.margin - self.tolerance,
            },
        )
