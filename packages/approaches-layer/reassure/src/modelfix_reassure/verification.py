"""The guarantees of a repair, checked on the fixed ONNX model itself."""

from dataclasses import dataclass

import numpy as np
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model

from modelfix_reassure.block import find_block
from modelfix_reassure.faults import merge
from modelfix_reassure.graph import PATCH, PREFIX


@dataclass(frozen=True)
class Guarantees:
    """What holds of a repaired model.

    Attributes
    ----------
    patches : int
    faults : int
        Inputs of the repair split that the original model mispredicts.
    covered : int
        Of these, how many lie in the region of a patch that is meant for their class.
    repaired : int
        Of the covered ones, how many are right now.
    outside : int
        Validation inputs outside all supports.
    changed_outside : int
        Of these, how many have logits that are not bit-equal to the original's; 0 by construction.
    inside : int
        Validation inputs that a support reaches.
    nodes_added, values_added : int
        Growth of the model: nodes of the graph, numbers in its initializers.
    """

    patches: int
    faults: int
    covered: int
    repaired: int
    outside: int
    changed_outside: int
    inside: int
    nodes_added: int
    values_added: int

    @property
    def complete(self) -> bool:
        """Whether every fault in the region of a patch is repaired."""
        return self.repaired == self.covered

    @property
    def local(self) -> bool:
        """Whether nothing changed outside the supports."""
        return self.changed_outside == 0


def verify(original: Model, fixed: Model, repair: Split, validation: Split) -> Guarantees:
    """Check what a model that REASSURE fixed promises, with onnxruntime.

    Parameters
    ----------
    original, fixed : Model
        Before and after; `fixed` may have been loaded from a file.
    repair, validation : Split
        The splits of the repair.

    Raises
    ------
    ModelfixError
        If `fixed` has no patches of REASSURE.
    """
    added = {t.name: t for t in fixed.proto().graph.initializer if t.name.startswith(PREFIX)}
    if PREFIX + "steps" not in added:
        raise ModelfixError(
            f"{fixed.name}: holds no patches of REASSURE; give the model that it fixed."
        )
    wrong = original.predict(repair).argmax(axis=1) != repair.y
    faults = repair.select(wrong)
    covered = (support_of(fixed, faults) == 1) & _consistent(original, faults)
    right = fixed.predict(faults).argmax(axis=1) == faults.y
    outside = support_of(fixed, validation) == 0
    changed = changed_bits(original, fixed, validation)
    return Guarantees(
        patches=added[PREFIX + "steps"].dims[0],
        faults=len(faults),
        covered=int(covered.sum()),
        repaired=int((covered & right).sum()),
        outside=int(outside.sum()),
        changed_outside=int((changed & outside).sum()),
        inside=int((~outside).sum()),
        nodes_added=len(fixed.proto().graph.node) - len(original.proto().graph.node),
        values_added=sum(int(np.prod(tensor.dims)) for tensor in added.values()),
    )


def support_of(fixed: Model, split: Split) -> np.ndarray:
    """Return the largest support of any patch at each input, float32 [N]."""
    return fixed.activations(split, [PATCH])[PATCH][:, 0]


def changed_bits(original: Model, fixed: Model, split: Split) -> np.ndarray:
    """Return which inputs have logits that are not bit-equal, bool [N]."""
    old, new = original.predict(split), fixed.predict(split)
    return (old.view(np.uint32) != new.view(np.uint32)).any(axis=1)


def _consistent(original: Model, faults: Split) -> np.ndarray:
    """Return which faults have the label that their region is repaired to, bool [B]."""
    block = find_block(original)
    features = original.activations(faults, [block.features])[block.features]
    return merge(block.patterns(features.astype(float)), faults.y).consistent
