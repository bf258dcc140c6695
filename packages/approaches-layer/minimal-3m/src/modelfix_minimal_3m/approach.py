"""The 3M-DNN approach: what it is, its options, and how it runs on a task."""

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
from pydantic import Field, model_validator

from modelfix_minimal_3m.chain import Chain, find_chain

Count = Annotated[int, Field(ge=1)] | Literal["all"]
Norm = Literal["l1", "linf"]
LAST = "last"


class Minimal3MConfig(ApproachConfig):
    """Options of 3M-DNN; "code" is the published single-layer engine it builds on."""

    mode: Literal["single", "multi"] = Field(
        "single",
        description="Change one layer (study, section 3.2), or the last layers, cut at separation "
        "layers (paper).",
    )
    layer: str = Field(
        LAST,
        description="Layer to change with mode `single`: `last`, or the name of a dense layer that "
        "only dense layers and ReLU follow (the study does not say which; ours).",
    )
    faults: tuple[Count, ...] = Field(
        (1, 2, 5, 10, 20, 50, "all"),
        min_length=1,
        description="Numbers of faults to make right; the best on validation wins (ours).",
    )
    order: Literal["data", "gap"] = Field(
        "data", description="Which faults come first: as in the data, or the nearest misses (ours)."
    )
    norms: tuple[Norm, ...] = Field(
        ("l1", "linf"),
        min_length=1,
        description="Norms to be made small, sum or largest of absolute changes (code: `linf` with "
        "linear programs, `l1` with verification).",
    )
    engine: Literal["lp_lazy", "lp", "marabou"] = Field(
        "lp_lazy",
        description="Linear programs with rows on demand or with all rows (mixed-integer programs "
        "for inner layers), or verification queries by Marabou, which needs the extra `verify` "
        "(code: Marabou or linear programs by Gurobi).",
    )
    margin: float = Field(
        1e-3,
        ge=1e-6,
        le=10,
        description="By how much the label must win (code: `correct_diff`).",
    )
    epsilon_max: float = Field(
        5.0,
        gt=0,
        le=1e4,
        description="Largest allowed change of a weight; for inner layers and Marabou also of the "
        "whole change in its norm, where the bisection starts (code: 5).",
    )
    epsilon_interval: float = Field(
        1e-4, gt=0, description="Where Marabou's bisection stops (code: 1e-4 to 1e-2)."
    )
    query_seconds: float = Field(
        30.0, gt=0, description="Limit of one linear program or verification query (ours)."
    )
    memory: float = Field(
        8.0,
        gt=0,
        description="Limit in GB of what the solver may need; decided by an estimate before "
        "anything is allocated (ours).",
    )
    separation_layers: int = Field(
        1, ge=1, description="Separation layers with mode `multi`, the last hidden ones (ours)."
    )
    heuristic: Literal["random", "greedy", "mcts"] = Field(
        "greedy",
        description="Search over the values of separation layers (paper; its steps are ours).",
    )
    step: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Grid step of a separation neuron, in standard deviations over the faults "
        "(ours).",
    )
    ucb: float = Field(
        1.4, ge=0, description="Exploration constant of the tree search (ours; UCB1 has 1.41)."
    )
    proposals: int = Field(
        500, ge=1, description="Values of separation layers to try for each set of faults (ours)."
    )
    timeout: float = Field(
        60.0, gt=0, description="Seconds of search for each set of faults, mode `multi` (ours)."
    )

    @model_validator(mode="after")
    def _combination(self) -> "Minimal3MConfig":
        if self.mode == "multi" and self.engine == "marabou":
            raise ValueError("mode 'multi' solves by linear programs; choose engine lp_lazy or lp")
        if self.mode == "multi" and self.layer != LAST:
            raise ValueError("mode 'multi' changes the last layers; leave out the option layer")
        return self


class Minimal3M(Approach):
    """Change the weights of one or several layers as little as makes given faults right.

    The last layer's smallest change is a linear program, an inner layer's a mixed-integer one. To
    change several layers, a search proposes values for the layers between, after which each layer
    is a problem of its own.
    """

    info = ApproachInfo(
        name="minimal-3m",
        abbreviation="3M",
        title="3M-DNN",
        category=Category.LAYER,
        framework=Framework.NONE,
        paper="Idan Refaeli, Guy Katz: Minimal Multi-Layer Modifications of Deep Neural Networks. "
        "NSV and FoMLAS 2022, LNCS 13466, 46-66. arXiv:2110.09929",
        summary="The smallest change of weights that provably makes given faults right.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION}),
        deterministic=False,  # the search of mode `multi` draws; the other presets do not
        certainty="paper",
    )
    Config = Minimal3MConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "study": {"mode": "single", "layer": LAST},
        "paper": {"mode": "multi", "faults": (1, 2, 5, 10)},
    }

    def check(self, task: Task) -> None:
        """Refuse models that do not end in the dense layers to be changed."""
        self._chain(task)

    def candidates(self, task: Task) -> Iterator[Candidate | Evidence]:
        """Yield better and better models, each right on its set of faults, and their proofs."""
        from modelfix_minimal_3m.repair import Repair

        yield from Repair(task, self._chain(task), self.config).candidates()

    def _chain(self, task: Task) -> Chain:
        """Return the chain from the first layer that may change to the logits."""
        chain, config = find_chain(task.model), self.config
        if not chain.layers:
            raise Unadaptable(
                f"the logits are not the output of a dense layer ({chain.stopped}); 3M-DNN changes "
                "the last dense layers"
            )
        if config.mode == "multi":
            needed, found = config.separation_layers + 1, len(chain.layers)
            if found < needed:
                raise Unadaptable(
                    f"the model ends in {found} dense layer{'s' * (found != 1)} with ReLU between "
                    f"({chain.stopped}); {config.separation_layers} separation "
                    f"layer{'s' * (needed != 2)} need {needed}"
                )
            return chain.last(needed)
        names = chain.names()
        name = names[-1] if config.layer == LAST else config.layer
        if name not in names:
            raise Unadaptable(
                f"layer {name!r} is none of the dense layers with ReLU between that end the model; "
                f"these are {', '.join(names)} ({chain.stopped})"
            )
        return chain.last(len(names) - names.index(name))
