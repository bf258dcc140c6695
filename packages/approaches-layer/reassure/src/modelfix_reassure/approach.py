"""The REASSURE approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Evidence,
    Framework,
    Need,
    Task,
)
from modelfix_core.errors import Unadaptable
from pydantic import Field

from modelfix_reassure.block import Block, find_block

Count = Annotated[int, Field(ge=1)] | Literal["all"]
Steepness = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class ReassureConfig(ApproachConfig):
    """Options of REASSURE; "code" is the authors' reference implementation."""

    faults: tuple[Count, ...] = Field(
        (10, 20, 50, 100, "all"),
        min_length=1,
        description="Numbers of faults to repair, in data order; faults of one linear region share "
        "a patch (code: PNN_MNIST.py repairs 10, 20, 50 and 100 points; `all` is ours).",
    )
    n: tuple[Steepness, ...] = Field(
        (1.0, 10.0, 100.0, 1000.0),
        min_length=1,
        description="Inverse widths of the fall-off around a region to try (code: 0.5 for pixels, "
        "to be enlarged until all faults are repaired; the grid is ours, for features).",
    )
    tau: float = Field(
        1e-4,
        ge=0,
        le=1,
        description="By how much the right logit must win in a repaired region (ours; code: 0).",
    )
    min_fc: int = Field(
        3,
        ge=2,
        description="Least number of consecutive dense layers at the end of the model (study, "
        "section 6.1; two would do mathematically).",
    )
    seconds_per_point: float = Field(
        60.0,
        gt=0,
        description="Limit for the linear programs of one region; the region is then left out "
        "(ours).",
    )
    memory: float = Field(
        8.0,
        gt=0,
        description="Limit in GB; decided by an estimate before anything is computed (ours).",
    )
    solver: Literal["auto", "simplex", "ipm"] = Field(
        "auto",
        description="Of the linear programs; `auto` takes simplex up to 300 features and interior "
        "point above (ours).",
    )
    early_exit: bool = Field(
        True,
        description="Stop a linear program once it cannot be a region's worst; the largest change "
        "of a patch stays minimal, its smaller entries may grow up to it (ours).",
    )
    skip_conflicts: bool = Field(
        False,
        description="Leave out regions that hold training images of another class, which the "
        "patch would break (ours).",
    )


class Reassure(Approach):
    """Add to a ReLU network one small network for each linear region that holds faults.

    Inside its region a patch network makes every point right by the smallest possible change of
    the logits; a support network takes it back to nothing just outside. No weight is changed.
    """

    info = ApproachInfo(
        name="reassure",
        abbreviation="RA",
        title="REASSURE",
        category=Category.LAYER,
        framework=Framework.NONE,
        paper="Feisi Fu, Wenchao Li: Sound and Complete Neural Network Repair with Minimality and "
        "Locality Guarantees. ICLR 2022. arXiv:2110.07682",
        summary="Patch networks that correct the linear regions of faults and act nowhere else.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION}),
        deterministic=True,
        certainty="code",
    )
    Config = ReassureConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {
            "faults": (10, 20, 50, 100),
            "n": (0.5, 5.0, 50.0, 500.0),
            "tau": 0.0,
            "early_exit": False,
        },
        "study": {"faults": (10, 20, 50, 100, "all")},
    }

    def check(self, task: Task) -> None:
        """Refuse models that do not end in enough dense layers with (Leaky)ReLU between them."""
        self._block(task)

    def candidates(self, task: Task) -> Iterator[Candidate | Evidence]:
        """Yield a repaired model for each number of faults and each steepness, and evidence."""
        from modelfix_reassure.repair import Repair

        yield from Repair(task, self._block(task), self.config).candidates()

    def _block(self, task: Task) -> Block:
        block = find_block(task.model)
        needed = self.config.min_fc
        if block.dense < needed:
            raise Unadaptable(
                f"the model ends in {block.dense} consecutive dense "
                f"layer{'s' * (block.dense != 1)} with piecewise linear activations "
                f"({block.stopped}); REASSURE needs at least {needed}"
            )
        if not block.slopes:
            raise Unadaptable(
                "the dense layers at the end of the model have no ReLU between them; there are no "
                "linear regions to repair"
            )
        return block
