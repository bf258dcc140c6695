"""What holds of a repaired model, as tables for the record: guarantees, proofs, growth."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

import numpy as np
from modelfix_core.approach import Evidence
from modelfix_core.dataset import Split
from modelfix_core.margins import margins, rounding
from modelfix_core.model import Model
from onnx import numpy_helper

from modelfix_reassure.block import Block
from modelfix_reassure.faults import Faults
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import TOLERANCE, Patch
from modelfix_reassure.verification import changed_bits, support_of

BATCH, REPEATS = 500, 5  # inputs of a timed prediction, of which the fastest counts


@dataclass(frozen=True)
class Given:
    """The faults given to a repair, with the patches of their regions.

    Attributes
    ----------
    split : Split
        The faults.
    faults : Faults
        Their regions.
    solved : ndarray of int, [L]
        Regions that have a patch.
    patches : sequence of Patch, [L]
    """

    split: Split
    faults: Faults
    solved: np.ndarray
    patches: Sequence[Patch]

    @cached_property
    def own(self) -> np.ndarray:
        """Patch of each fault's region, int [B]; -1 where it has none."""
        position = np.full(len(self.faults.labels), -1)
        position[self.solved] = np.arange(len(self.solved))
        return position[self.faults.region]

    @property
    def covered(self) -> np.ndarray:
        """Which faults lie in a patched region that is meant for their class, bool [B]."""
        return (self.own >= 0) & self.faults.consistent

    def network(self, block: Block, n: float) -> PatchNetwork:
        """Return the patch network of steepness `n`."""
        values = np.stack([patch.values for patch in self.patches])
        return PatchNetwork(block, self.faults.patterns[self.solved], values, n)


def guarantees(original: Model, fixed: Model, given: Given, validation: Split) -> Evidence:
    """Check on the fixed model that it is complete on the given faults and local elsewhere.

    Parameters
    ----------
    original, fixed : Model
        `fixed` is run by onnxruntime, as its users will.
    given : Given
    validation : Split

    Returns
    -------
    Evidence
        One row for each given fault, then one for each validation input outside all supports.
    """
    right = fixed.predict(given.split).argmax(axis=1) == given.split.y
    outside = support_of(fixed, validation) == 0
    unchanged = ~changed_bits(original, fixed, validation)[outside]
    covered, faults, kept = given.covered, len(given.split), int(outside.sum())
    patches = [given.patches[own] if own >= 0 else None for own in given.own]
    nothing = [None] * kept
    summary = (
        f"{int((right & covered).sum())} of {int(covered.sum())} given faults with a patch for "
        f"their class are right ({faults} given, {len(given.patches)} patches); "
        f"{int(unchanged.sum())} of {kept} validation inputs outside all supports have bit-equal "
        f"logits, {len(validation) - kept} lie inside one."
    )
    return Evidence(
        "guarantees",
        summary,
        {
            "sample": np.concatenate([given.split.ids, validation.ids[outside]]),
            "split": ["repair"] * faults + ["validation"] * kept,
            "guarantee": [*_promises(given), *["unchanged outside all regions"] * kept],
            "holds": np.concatenate([right, unchanged]),
            "constraints": [*(p and p.constraints for p in patches), *nothing],
            "faces": [*(p and p.faces for p in patches), *nothing],
            "largest_change": [*(p and float(np.abs(p.values).max()) for p in patches), *nothing],
        },
    )


def _promises(given: Given) -> list[str]:
    texts = []
    for own, consistent in zip(given.own, given.faults.consistent, strict=True):
        if own < 0:
            texts.append("none: its region has no patch")
        elif not consistent:
            texts.append("none: its region is repaired for another class")
        else:
            texts.append("right after the repair")
    return texts


def proofs(fixed: Model, given: Given, tau: float) -> Evidence:
    """Say of every given fault with a patch for its class what is proven, at it and around it.

    A region's margin is what its linear programs and its patch leave; a point's is measured.

    Parameters
    ----------
    fixed : Model
    given : Given
    tau : float
        By how much the label must win.
    """
    chosen = np.flatnonzero(given.covered)
    logits = fixed.predict(given.split.select(chosen))
    y, count = given.split.y[chosen], len(chosen)
    tolerance = np.tile([rounding(logits), TOLERANCE], count)
    proven = [given.patches[own].margin for own in given.own[chosen]]
    margin = np.stack([margins(logits, y), proven], axis=1).ravel()
    places = ("at the point", "everywhere in the linear region that no later patch reaches")
    versions = [importlib.metadata.version(name) for name in ("onnxruntime", "highspy")]
    solvers = [f"none, run by onnxruntime {versions[0]}", f"HiGHS {versions[1]}, linear programs"]
    return Evidence(
        "proofs",
        f"{count} faults in {len(given.patches)} linear regions: their label wins at the input "
        "itself (measured in the fixed model) and, in exact arithmetic, everywhere in its region "
        "within the observed range of each feature (proven), except where the fall-off of a later "
        "patch reaches in.",
        {
            "sample": np.repeat(given.split.ids[chosen], 2),
            "property": [f"class {k} wins by at least {tau:g} {at}" for k in y for at in places],
            "scope": ["point", "region"] * count,
            "solver": solvers * count,
            "tolerance": tolerance,
            "margin": margin,
            "holds": margin >= tau - tolerance,
        },
    )


def growth(original: Model, fixed: Model, split: Split) -> Evidence:
    """Measure by how much the repair made the model larger and slower.

    Parameters
    ----------
    original, fixed : Model
    split : Split
        Its first inputs are predicted.
    """
    batch = split.select(slice(0, BATCH))
    measured = [
        (len(m.proto().graph.node), _parameters(m), _seconds(m, batch) / len(batch))
        for m in (original, fixed)
    ]
    before, after = (list(map(float, column)) for column in measured)
    what = ["nodes", "parameters", f"seconds per prediction (batches of {len(batch)})"]
    return Evidence(
        "growth",
        f"The fixed model has {after[0] - before[0]:g} nodes and {after[1] - before[1]:g} numbers "
        f"more than the original and takes {after[2] / before[2]:.2f} times as long.",
        {"what": what, "before": before, "after": after},
    )


def _parameters(model: Model) -> int:
    return sum(numpy_helper.to_array(t).size for t in model.proto().graph.initializer)


def _seconds(model: Model, split: Split) -> float:
    x = split.images(slice(0, len(split)))
    model.predict(x)
    seconds = []
    for _ in range(REPEATS):
        start = perf_counter()
        model.predict(x)
        seconds.append(perf_counter() - start)
    return min(seconds)
