"""The VeRe approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Evidence,
    Framework,
    Localisation,
    Need,
    Task,
)
from pydantic import Field, model_validator

from modelfix_vere.site import find_site


class VeReConfig(ApproachConfig):
    """Options of VeRe.

    "Code" is the authors' artefact, "extension" their later code.
    """

    relaxed: bool = Field(
        False,
        description="Repair any hidden dense layer, not only beside a square one, and the features "
        "before a lone dense layer (ours; the study takes square layers only).",
    )
    layer: str | None = Field(
        None,
        description="With relaxed, the hidden dense layer whose neurons are repaired; default one "
        "with a hidden dense layer behind it, as in the code.",
    )
    rounds: int = Field(
        20, ge=1, le=100_000, description="Repaired neurons, with repetition (both codes)."
    )
    pieces: int = Field(
        10, ge=1, le=10_000, description="K, of each neuron's interval (both codes; 5 for safety)."
    )
    interval_times: float = Field(
        2.0,
        gt=0,
        le=100,
        description="Length of a neuron's interval in ranges d = max - min of its values, from "
        "min - d on (code: 2 for GTSRB, 1 for CIFAR10 and SVHN, 1.5 for Imagenette).",
    )
    limits: tuple[float, float] | None = Field(
        None,
        description="One interval for all neurons instead (extension: 0 to 100, 0 to 10 for "
        "safety).",
    )
    cap: int = Field(
        128, ge=1, le=1_000_000, description="Faulty inputs of a round, the first ones (code)."
    )
    faults: int | None = Field(
        None, ge=1, description="How many faulty inputs are drawn; default all (code: 1000)."
    )
    correct: int | None = Field(
        None, ge=1, description="How many correct inputs are drawn; default all (code: 1000)."
    )
    epochs: int = Field(
        30, ge=0, le=100_000, description="Of the fit (extension; 5 to 25 for safety)."
    )
    learning_rate: float = Field(
        0.01, gt=0, le=1, description="Of Adam (both codes; 0.001 for Imagenette)."
    )
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Of the fit (both codes).")
    loss: Literal["two means", "one mean"] = Field(
        "two means",
        description="Whether faulty and correct inputs of a batch are averaged apart (extension) "
        "or together (code).",
    )
    correct_per_fault: int | None = Field(
        None,
        ge=0,
        description="At most so many correct inputs per faulty one in the fit (code: 10, 3 for "
        "Imagenette; extension: no limit).",
    )
    strict_ideal: bool = Field(
        False,
        description="Whether the label must be proved to beat all other classes, not only the "
        "predicted one, before a piece counts as ideal (extension, for safety).",
    )
    only_gains: bool = Field(
        False,
        description="Keep a neuron's value where no movement is proved to help (code); otherwise "
        "the largest effect is taken, whatever its sign (extension).",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "VeReConfig":
        if self.layer is not None and not self.relaxed:
            raise ValueError("a layer can be named with relaxed = true only")
        if self.limits is not None and self.limits[0] >= self.limits[1]:
            raise ValueError("limits must rise")
        return self


class VeRe(Approach):
    """Find the neuron whose movement is proved to help most, and fit it to where it helps.

    Linear relaxation of the layers behind a hidden vector says for every neuron, faulty input and
    piece of an interval by how much moving the neuron there surely raises the label's margin. The
    neuron that promises most is fitted to such values on faulty inputs and to its old ones on
    correct inputs; then the next round begins.
    """

    info = ApproachInfo(
        name="vere",
        abbreviation="VERE",
        title="VeRe",
        category=Category.NEURON,
        framework=Framework.TORCH,
        paper="Jianan Ma, Pengfei Yang, Jingyi Wang, Youcheng Sun, Cheng-Chao Huang, Zhen Wang: "
        "VeRe: Verification guided synthesis for repairing deep neural networks. ICSE 2024, "
        "8:1-8:13. doi:10.1145/3597503.3623332",
        summary="Linear relaxation finds the neuron whose movement surely helps most faulty "
        "inputs, and a small fit moves it there.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION}),
        localises=True,
        certainty="code",
    )
    Config = VeReConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"faults": 1000, "correct": 1000},
        "study": {},
        "relaxed": {"relaxed": True},
    }

    def check(self, task: Task) -> None:
        """Refuse models without a square hidden dense layer or, relaxed, without a dense layer."""
        find_site(task.model, self.config.relaxed, self.config.layer)

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield the first round's ranking, and a candidate whenever more inputs are right.

        If no round gets more inputs right than the original model, that is the only candidate.
        """
        with task.timing("conversion"):
            from modelfix_vere.run import Run

            run = Run(task, self.config)
        yield from run.proposals()
