"""The I-REPAIR approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

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
from modelfix_core.model import Model
from pydantic import Field

# What may stand between a softmax and the output without changing the values.
PASSING = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"}
SOFTMAX_REASON = (
    "its outputs are probabilities, whose absolute values always sum to 1, so that the influence "
    "on the general set is lost; export the model with logits as output"
)

Gamma = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class IRepairConfig(ApproachConfig):
    """Options of I-REPAIR; "code" is the authors' reference implementation."""

    gamma: tuple[Gamma, ...] = Field(
        (0.1, 0.5, 1.0, 2.0, 5.0),
        min_length=1,
        description="Weight of the influence on the general set; larger unlocks fewer weights, 0 "
        "is plain fine-tuning. Each value is run from the original model and the best candidate "
        "on validation wins (code: scripts use 0.001 to 5).",
    )
    iterations: int = Field(
        200, ge=1, description="Largest number of steps for each gamma (code: 5000 in all scripts)."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Of RMSprop; the default is 1e-4, or 1e-5 for a model with BatchNorm (code: "
        "scripts for MNIST, and for ResNets).",
    )
    general_per_class: int = Field(
        8,
        ge=1,
        description="Correctly classified samples per class in the general set (code: 4 or 8, and "
        "1 for Tiny ImageNet).",
    )
    specific: int | None = Field(
        None,
        ge=1,
        description="Largest size of the specific set; by default all misclassified samples of the "
        "repair split (code: 1 to 32; the study repairs all).",
    )
    evaluate_every: int = Field(
        50,
        ge=1,
        description="Steps between two candidates (ours; the authors keep the last model).",
    )
    batch_size: int = Field(
        256,
        ge=1,
        description="Inputs in one pass; changes memory and speed, not the result (ours).",
    )


class IRepair(Approach):
    """Repair misclassified inputs by gradient steps on the weights that matter to them most.

    In every iteration each weight is scored by its influence on the samples that are still wrong
    over `gamma` times its influence on correctly classified ones. Weights with a score of 1 or
    more take an RMSprop step on the cross-entropy of both sets; the others stay.
    """

    info = ApproachInfo(
        name="i-repair",
        abbreviation="IR",
        title="I-REPAIR",
        category=Category.NEURON,
        framework=Framework.TORCH,
        paper="Patrick Henriksen, Francesco Leofante, Alessio Lomuscio: Repairing "
        "misclassifications in neural networks using limited data. ACM SAC 2022, pp. 1031-1038. "
        "doi:10.1145/3477314.3507059",
        summary="Gradient steps on the weights whose influence on the faults outweighs their "
        "influence on what is already right.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = IRepairConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {
            "gamma": (2.0,),
            "iterations": 5000,
            "general_per_class": 4,
            "specific": 32,
        },
        "study": {"gamma": (2.0,), "iterations": 5000},
    }

    def check(self, task: Task) -> None:
        """Refuse models without trainable layers and models whose outputs are probabilities."""
        if not task.model.layers():
            raise Unadaptable("the model has no convolution, dense or BatchNorm layer to repair")
        if _ends_in_softmax(task.model):
            raise Unadaptable(SOFTMAX_REASON)

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        """Yield a candidate every `evaluate_every` steps and the last model, for each gamma.

        Before the first candidate of a gamma that takes the lead on validation comes its
        localisation: the weights that it unlocks in the original model.
        """
        from modelfix_i_repair.run import Run

        run = Run(task, self.config)
        if run.nothing_to_repair:
            yield Candidate(weights={})
            return
        leading, best = None, 0.0
        for gamma in self.config.gamma:
            for candidate in run.repair(gamma):
                accuracy = candidate.validation_accuracy
                assert accuracy is not None, "every candidate is measured as it is made"
                if accuracy >= best:
                    if leading != gamma:
                        yield run.localise(gamma)
                    leading, best = gamma, accuracy
                yield candidate


def _ends_in_softmax(model: Model) -> bool:
    graph = model.proto().graph
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(model.output_name)
    while node is not None and node.op_type in PASSING:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"
