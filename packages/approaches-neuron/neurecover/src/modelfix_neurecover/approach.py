"""The NeuRecover approach: what it is, its options, and how it runs on a task."""

import re
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
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.model import Model
from modelfix_core.seeds import generator
from pydantic import Field, field_validator


class NeuRecoverConfig(ApproachConfig):
    """Options of NeuRecover; "code" is the reference implementation (eAI-Repair-Toolkit)."""

    prev: Literal["last", "best"] | Annotated[int, Field(ge=1)] = Field(
        "last",
        description="The earlier version to compare with: last, the one just before the model "
        "(code); best, the one that was right on most of the inputs that are wrong now (ours); or "
        "its position in the history, from 1 (ours).",
    )
    rho: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="Reduction rate: factor of the number of weights that each criterion ranks "
        "highly (code).",
    )
    max_weights: int | None = Field(
        None,
        ge=1,
        description="Keep at most so many localised weights, those that changed most relative to "
        "their layer (ours; code: all).",
    )
    target: str = Field(
        "all",
        description="Which failures of the repair split to fix: all, deg (those that were right "
        "before), class:c (of true class c) or type:k (the k-th most frequent pair of true and "
        "predicted class) (code: those in a folder; all is inferred for the study).",
    )
    alpha: float = Field(
        1.0, ge=0, le=1e6, description="Weight of the passing inputs in the fitness (code)."
    )
    n_pos: int = Field(
        200, ge=1, description="So many passing inputs in the fitness, drawn once (code)."
    )
    particles: int = Field(100, ge=2, le=100_000, description="Size of the swarm (code).")
    iterations: int = Field(100, ge=1, le=1_000_000, description="At most so many (code).")
    phi: float = Field(
        4.1, gt=4, le=100, description="Largest random factor of the two attractions (code)."
    )
    patience: int = Field(
        10,
        ge=1,
        description="Stop when, after more than this many iterations, the best of the last so "
        "many is not above the one before them (code).",
    )
    include_original: bool = Field(
        False,
        description="Start one particle at the model's own weights, so that the swarm never falls "
        "below them (ours; code: all particles are drawn from the weights' distribution).",
    )

    @field_validator("target")
    @classmethod
    def _check_target(cls, value: str) -> str:
        if value in ("all", "deg") or re.fullmatch(r"class:\d+|type:[1-9]\d*", value):
            return value
        raise ValueError("expected all, deg, class:c with c >= 0, or type:k with k >= 1")


class NeuRecover(Approach):
    """Find the weights that training spoiled, and search new values that break little.

    The model is compared with an earlier version of its own training. A weight is localised if it
    changed much and matters for inputs that became wrong, but not for inputs that became right. A
    particle swarm searches new values; its fitness weighs repairs and regressions alike.
    """

    info = ApproachInfo(
        name="neurecover",
        abbreviation="NR",
        title="NeuRecover",
        category=Category.NEURON,
        framework=Framework.TENSORFLOW,
        paper="Shogo Tokui, Susumu Tokumoto, Akihito Yoshii, Fuyuki Ishikawa, Takao Nakagawa, "
        "Kazuki Munakata, Shinji Kikuchi: NeuRecover: Regression-controlled repair of deep neural "
        "networks with training history. SANER 2022, 1111-1121. arXiv:2203.00191",
        summary="Weights that changed in training and matter for degraded but not for improved "
        "inputs, then a particle swarm over their values.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION, Need.HISTORY, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = NeuRecoverConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"rho": 2.0, "include_original": True},
        "paper": {"target": "type:1"},
        "study": {},
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without a dense layer or without a history of the same architecture.

        Raises
        ------
        Unadaptable
        ModelfixError
            If the option `prev` points outside of the history.
        """
        if not task.model.layers("dense"):
            raise Unadaptable("the model has no dense layer to repair")
        count = len(task.history)
        if count < 2:
            raise Unadaptable(
                "it compares the model with an earlier version of itself, which needs the training "
                f"history: models of at least two epochs, oldest first; there are {count}"
            )
        if isinstance(self.config.prev, int) and self.config.prev > count:
            raise ModelfixError(
                f"{self.info.name}: option 'prev' = {self.config.prev} but the history has {count} "
                "models."
            )
        for path in task.history:
            _check_fits(task.model, Model.load(path))

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        """Yield the localised weights, then a candidate whenever the swarm finds a better place."""
        from modelfix_neurecover import inputs

        with task.timing("conversion"):
            from modelfix_core.keras import load

            from modelfix_neurecover.history import compare
            from modelfix_neurecover.localisation import localise
            from modelfix_neurecover.repair import repair

            net = load(task.model)
        task.progress(0, self.config.iterations, "comparing with the training history")
        past = compare(net, task.history, task.repair, self.config.prev)
        failing = inputs.failing(past, self.config.target)
        rng = generator(task.seed, stage="passing")
        passing = inputs.passing(past, self.config.n_pos, rng)
        found = localise(net, past, task.repair, self.config.rho, self.config.max_weights)
        yield found
        yield from repair(net, task, self.config, found, failing, passing)


def _check_fits(model: Model, earlier: Model) -> None:
    shapes = {name: array.shape for name, array in model.weights.items()}
    for name, array in earlier.weights.items():
        if shapes.pop(name, None) != array.shape:
            raise Unadaptable(
                f"{earlier.name}: weight {name!r} of this earlier model is unknown to the model or "
                "has another shape; the history must be of the same architecture"
            )
    if shapes:
        raise Unadaptable(
            f"{earlier.name}: this earlier model lacks weight {next(iter(shapes))!r}; the history "
            "must be of the same architecture"
        )
