"""The GenMuNN approach: what it is, its options, and how it runs on a task."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

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
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Layer, Model
from pydantic import Field, model_validator

# About 10,000 evaluations of variants, the order of the study's running times.
RECONSTRUCTION = {"population": 100, "generations": 100, "elite": 10, "fitness_samples": 10_000}

Operator = Literal["noise", "sign", "zero", "scale"]


class GenMuNNConfig(ApproachConfig):
    """Options of GenMuNN.

    No source publishes a constant: "reconstruction" marks what was chosen for this one.
    """

    share: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share rho of each layer's weights that may be mutated, the most suspicious "
        "ones, at least one (reconstruction: the study calls the degree of mutation small).",
    )
    formula: Literal["ochiai", "tarantula", "dstar"] = Field(
        "ochiai", description="Suspiciousness from the spectrum (reconstruction)."
    )
    score: Literal["product", "spectrum"] = Field(
        "product",
        description="Rank weights by suspiciousness times influence, or by suspiciousness with the "
        "influence deciding ties (reconstruction: the abstracts say influence, the study says "
        "spectrum).",
    )
    threshold: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Activation theta above which a unit counts as active (reconstruction: "
        "DeepFault's default).",
    )
    mutated_weights: int = Field(
        4,
        ge=1,
        description="Largest number s_max of weights that one mutation changes (reconstruction).",
    )
    noise: float = Field(
        0.5,
        ge=0,
        le=100,
        description="Deviation eta of the noise of a mutation, in units of the deviation of the "
        "layer's weights (reconstruction).",
    )
    operators: tuple[Operator, ...] = Field(
        ("noise",),
        min_length=1,
        description="How a weight is mutated, drawn anew each time: add noise, change the sign, "
        "set to 0, or scale by 0.5 to 1.5 (reconstruction, after the weight operators of mutation "
        "testing).",
    )
    population: int = Field(
        50,
        ge=2,
        description="Number P of variants in a generation (reconstruction: 100).",
    )
    generations: int = Field(
        40, ge=1, description="Largest number G of generations (reconstruction: 100)."
    )
    elite: int = Field(
        5,
        ge=1,
        description="Number E of variants that survive unchanged (reconstruction: 10).",
    )
    crossover: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a child takes a weight from a second parent (reconstruction: "
        "no source names a crossover).",
    )
    patience: int = Field(
        20,
        ge=1,
        description="Stop after so many generations without a gain of accuracy (reconstruction).",
    )
    fitness_samples: int = Field(
        2000,
        ge=1,
        description="Largest size of the class-balanced training sample that, with all "
        "misclassified training samples, makes the fitness data (reconstruction: 10,000).",
    )

    @model_validator(mode="after")
    def _elite_leaves_room(self) -> "GenMuNNConfig":
        if self.elite >= self.population:
            raise ValueError(
                f"an elite of {self.elite} leaves no room for children in a population of "
                f"{self.population}; choose a smaller elite"
            )
        return self


class GenMuNN(Approach):
    """Mutate suspicious weights and let a genetic algorithm select the variants.

    A spectrum over the training data blames weights that are active when predictions fail; the
    most suspicious ones of each layer are mutated, a few at a time, and the variants with the best
    training accuracy are mutated further. The best one on validation is proposed if it beats the
    original model.
    """

    info = ApproachInfo(
        name="genmunn",
        abbreviation="GM",
        title="GenMuNN",
        category=Category.NEURON,
        framework=Framework.TORCH,
        paper="Huanhuan Wu, Zheng Li, Zhanqi Cui, Jianbin Liu: GenMuNN: A mutation-based approach "
        "to repair deep neural network models. International Journal of Modeling, Simulation, and "
        "Scientific Computing 14(2), 2023, article 2341008. doi:10.1142/S1793962323410088",
        summary="A genetic algorithm over small mutations of the weights that a spectrum blames "
        "(a reconstruction from the abstracts and the study's text).",
        needs=frozenset({Need.TRAIN, Need.VALIDATION, Need.REPAIR}),
        localises=True,
        certainty="study-text",
    )
    Config = GenMuNNConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": RECONSTRUCTION,
        "study": RECONSTRUCTION,
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without training data and models without a weight to mutate."""
        if task.train is None or not len(task.train):
            raise Unadaptable("it needs the training data, whose failures it localises")
        if not mutable_layers(task.model):
            raise Unadaptable(
                "the model has no dense layer and no 2-D convolution with weights of its own that "
                "differ from each other"
            )

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        """Yield the blamed weights, the original model and each variant that beats all before it.

        Only the best variant of a generation is looked at, and only if it is a new one.
        """
        from modelfix_genmunn.run import propose

        yield from propose(task, self.config)


def mutable_layers(model: Model) -> list[Layer]:
    """Return the dense layers and 2-D convolutions whose weights can be mutated.

    A weight that several layers share belongs to none of them, and noise in units of a constant
    layer's deviation would be none.
    """
    uses = Counter(layer.weight for layer in model.layers())
    return [
        layer
        for layer in model.layers()
        if layer.kind in ("dense", "conv")
        and model.weights[layer.weight].ndim in (2, 4)
        and uses[layer.weight] == 1
        and model.weights[layer.weight].std() > 0
    ]
