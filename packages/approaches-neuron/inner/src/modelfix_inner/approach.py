"""The INNER approach: what it is, its options, and how it runs on a task."""

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
from modelfix_core.errors import Unadaptable
from modelfix_core.population import DEFAULT_MEMORY
from pydantic import Field

from modelfix_inner.blocks import find_blocks


class InnerConfig(ApproachConfig):
    """Options of INNER; "code" is the authors' reference implementation."""

    source: Literal["train", "repair"] = Field(
        "train",
        description="Where the faulty inputs come from: misclassified training images, topped up "
        "from the repair split to `least_faults` (the study: nothing but training data), or the "
        "repair split alone (code: images that were not trained on).",
    )
    least_faults: int = Field(
        100, ge=1, description="Faulty inputs below which training images are topped up (ours)."
    )
    samples: int = Field(
        1000, ge=1, description="Largest number of faulty inputs, and of clean ones (code: 1000)."
    )
    probe_samples: int = Field(
        1000, ge=2, description="Clean training images that the probes learn from (code: 1000)."
    )
    probe_epochs: int = Field(50, ge=1, description="Of every probe's training (code: 50).")
    probe_learning_rate: float = Field(0.01, gt=0, le=1, description="Of Adam (code: 0.01).")
    probe_batch_size: int = Field(128, ge=2, description="Of the probes' training (code: 128).")
    score_samples: int = Field(
        30, ge=1, description="Faulty and clean inputs that choose the blocks (code: 30 each)."
    )
    blocks: int = Field(3, ge=1, description="How many blocks are repaired (code: 3).")
    routing_samples: int = Field(
        100, ge=1, description="Faulty inputs that are routed (code: 100)."
    )
    routing_steps: int = Field(40, ge=0, description="Steps of each routing (code: 40).")
    routing_rate: float = Field(0.009, ge=0, le=1, description="Size of a step (code: 0.009).")
    routing_decay: float = Field(
        0.005, ge=0, le=1, description="By which every step sparsifies the routing (code: 0.005)."
    )
    mask: Literal["reference", "topk"] = Field(
        "reference",
        description="Weights that are trained: all that one routing or more marks (code), or in "
        "each block the `neurons` that most mark (what its unused option intends).",
    )
    neurons: int = Field(
        100, ge=1, description="Weights in each block's mask `topk` (code: 100, without effect)."
    )
    epochs: int = Field(20, ge=0, description="Of the repair (code: 20).")
    label_passes: int = Field(
        2, ge=0, description="Passes over the faults by the final logits, in each epoch (code: 2)."
    )
    batch_size: int = Field(64, ge=1, description="Of the repair (code: 64; ImageNet 8).")
    learning_rate: float = Field(7e-4, gt=0, le=1, description="Of SGD (code: 0.0007).")
    alpha: float = Field(
        0.8, ge=0, le=1, description="Weight of the label against the clean probe's output (code)."
    )
    temperature: float = Field(3.0, gt=0, description="Of both probes' outputs (code: 3).")
    pairing: Literal["zip", "label"] = Field(
        "label",
        description="Clean partner of a faulty input: any (code), or one of the same class (the "
        "paper's intention; the code has it, its call is commented out).",
    )
    bn_mode: Literal["eval", "train"] = Field(
        "eval",
        description="Whether BatchNorm keeps its statistics in the repair, or takes the batches' "
        "and drifts (code).",
    )
    accuracy_drop: float = Field(
        0.1, ge=0, le=1, description="Accuracy that may be lost when the repair stops (code: 0.1)."
    )
    failure_rate: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Share of the validation faults left when it stops (code: 0.15).",
    )
    memory: int = Field(
        DEFAULT_MEMORY,
        ge=1,
        description="Bytes for the cached features and for the routings in work (ours).",
    )


NO_TRAINING_DATA = "INNER needs training data, on which its probes learn to read"
REFERENCE: Mapping[str, Any] = {"pairing": "zip", "bn_mode": "train"}


class Inner(Approach):
    """Read every depth by a probe, and train the weights that keep wrong readings alive.

    Probes are small classifiers on the features of several depths. Where their outputs for faulty
    inputs differ most from those for clean ones, the weights below the probe are pruned by a
    gradient (*routing*), input by input; what survives is marked. The marked weights are trained so
    that the probe reads the true class of faulty inputs.
    """

    info = ApproachInfo(
        name="inner",
        abbreviation="IN",
        title="INNER",
        category=Category.NEURON,
        framework=Framework.TORCH,
        paper="Zuohui Chen, Jun Zhou, Youcheng Sun, Jingyi Wang, Qi Xuan, Xiaoniu Yang: "
        "Interpretability based neural network repair. ISSTA 2024, pp. 908-919. "
        "doi:10.1145/3650212.3680330",
        summary="Probes choose the depths where faults look unlike clean inputs, routing marks the "
        "weights there, and these are trained by the probes.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = InnerConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {**REFERENCE, "source": "repair"},
        "paper": {**REFERENCE, "source": "repair"},
        "study": REFERENCE,
    }

    def check(self, task: Task) -> None:
        """Refuse models without a hidden layer, and tasks without training data."""
        find_blocks(task.model)
        if task.train is None:
            raise Unadaptable(NO_TRAINING_DATA)

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield the marked weights, the original, and two candidates in every epoch.

        A model without any fault is proposed as it is.
        """
        with task.timing("conversion"):
            from modelfix_inner.run import Run

            run = Run(task, self.config)
        if run.nothing_to_repair:
            yield Candidate(weights={})
            return
        yield from run.localise()
        yield from run.repair()
