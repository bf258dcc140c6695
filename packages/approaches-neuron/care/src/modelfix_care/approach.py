"""The CARE approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Framework,
    Localisation,
    Need,
    Task,
)
from pydantic import Field

from modelfix_care.hidden import find_hidden

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]


class CareConfig(ApproachConfig):
    """Options of CARE.

    "Code" is the authors' implementation, "adaptation" the published one for misclassifications.
    """

    layer: str | None = Field(
        None,
        description="Hidden dense layer whose neurons are repaired; the default is the last one, "
        "or the vector that enters the classifier where there is none (adaptation: the last).",
    )
    values: int = Field(
        8,
        ge=2,
        le=10_000,
        description="Values that each neuron is forced to (adaptation: 4 for images, 8 for tables; "
        "code: 16).",
    )
    stride: int = Field(
        1, ge=1, description="Score every stride-th neuron (adaptation: 3 for images)."
    )
    neurons: Count | Share = Field(
        0.1,
        description="How many neurons to repair, or which share of the scored ones (adaptation: "
        "0.05 to 0.2; code: a number, 13 in its comments).",
    )
    rank: Literal["signed", "absolute"] = Field(
        "signed",
        description="Whether neurons that hurt accuracy rank last (both codes) or by the size of "
        "their effect (ours).",
    )
    objective: Literal["accuracy", "balanced"] = Field(
        "accuracy",
        description="What the search raises: accuracy (adaptation), or faults together counting as "
        "much as all other inputs (ours).",
    )
    particles: int = Field(
        20, ge=1, le=100_000, description="Of the swarm (code; adaptation: 10 for images)."
    )
    iterations: int = Field(
        100, ge=1, le=1_000_000, description="At most so many (code; adaptation: 50 for images)."
    )
    inertia: float = Field(0.8, ge=0, le=2, description="Share of a velocity kept (both codes).")
    own_pull: float = Field(
        0.41, ge=0, le=10, description="Attraction of a particle's own best, c1 (both codes)."
    )
    leader_pull: float = Field(
        0.41, ge=0, le=10, description="Attraction of the best of all, c2 (both codes)."
    )
    tolerance: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="Gain of accuracy in one iteration below which it counts as none (both codes).",
    )
    patience: int = Field(
        10, ge=1, description="Stop after so many iterations without gain (both codes)."
    )


class Care(Approach):
    """Find the hidden neurons on which accuracy depends most, and search factors for their values.

    Forcing a neuron to values of its range and averaging the accuracy lost gives its causal effect.
    The values of the neurons with the largest effect are multiplied by factors between 0 and 2 that
    a particle swarm searches for; the factors become part of the layer's weights.
    """

    info = ApproachInfo(
        name="care",
        abbreviation="CARE",
        title="CARE",
        category=Category.NEURON,
        framework=Framework.TORCH,
        paper="Bing Sun, Jun Sun, Long H. Pham, Jie Shi: Causality-based neural network repair. "
        "ICSE 2022, pp. 338-349. arXiv:2204.09274",
        summary="Average causal effect of hidden neurons on accuracy, then a particle swarm scales "
        "the few that matter most.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION}),
        localises=True,
        certainty="code",
    )
    Config = CareConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"values": 16, "neurons": 13},
        "study": {
            "values": 4,
            "stride": 3,
            "neurons": 0.2,
            "particles": 10,
            "iterations": 50,
        },
    }

    def check(self, task: Task) -> None:
        """Refuse models without a hidden vector of two or more neurons that can be scaled."""
        find_hidden(task.model, self.config.layer)

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        """Yield the neurons to scale, then a candidate whenever the swarm finds a better position.

        If it finds none better than the original model, that is the only candidate.
        """
        with task.timing("conversion"):
            from modelfix_care.run import Run

            run = Run(task, self.config)
        yield run.localise()
        yield from run.repair()
