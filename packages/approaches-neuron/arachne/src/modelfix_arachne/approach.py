"""The Arachne approach: what it is, its options, and how it runs on a task."""

import re
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
from modelfix_core.seeds import generator
from pydantic import Field, field_validator

# What may stand between a softmax and the output without changing the values.
PASSING = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"}
PROBABILITIES = {"Softmax", "LogSoftmax", "Sigmoid"}


class ArachneConfig(ApproachConfig):
    """Options of Arachne; "code" is the authors' reference implementation."""

    target: str = Field(
        "sample:0.1",
        description="Which failures of the repair split to fix: all, sample:q (a share q, drawn "
        "anew for each seed) or type:k (the k-th most frequent pair of true and predicted class) "
        "(code: sample:0.1 in RQ2, type in RQ3 to RQ7).",
    )
    layers: Literal["all", "last_dense"] | tuple[str, ...] = Field(
        "all",
        description="Whose weights may be edited: all dense layers and convolutions, last_dense, "
        "or names of layers (code: all).",
    )
    alpha: float = Field(
        10.0,
        gt=0,
        le=1e6,
        description="Weight of the failures in the fitness (code: scripts of RQ2 and RQ3; the "
        "paper tries 1 to 10 in RQ4).",
    )
    conv_fi: Literal["reference", "abs"] = Field(
        "reference",
        description="Forward impact of convolutions: signed terms normalised over all inputs "
        "(code), or absolute terms normalised for each input, as in dense layers.",
    )
    population: int = Field(
        100, ge=4, le=100_000, description="Individuals of the differential evolution (code)."
    )
    generations: int = Field(100, ge=1, le=1_000_000, description="At most so many (code).")
    crossover: float = Field(
        0.7, ge=0, le=1, description="Probability that a coordinate is new (code)."
    )
    factor: tuple[float, float] = Field(
        (0.5, 1.0), description="Range of the differential weight, drawn per generation (code)."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop when the best fitness was the same in more generations than this; the "
        "default is a tenth of the generations, at least 10 (code).",
    )
    update: Literal["async", "sync"] = Field(
        "async",
        description="Whether a better individual takes its place at once (code) or at the end of "
        "the generation.",
    )
    stop_when_perfect: bool = Field(
        True,
        description="Stop when all failures are repaired and nothing is broken: nothing better "
        "exists (ours; the code goes on).",
    )

    @field_validator("target")
    @classmethod
    def _check_target(cls, value: str) -> str:
        share = re.fullmatch(r"sample:(\d*\.?\d+)", value)
        if share and 0 < float(share[1]) <= 1:
            return value
        if value == "all" or re.fullmatch(r"type:[1-9]\d*", value):
            return value
        raise ValueError("expected all, sample:q with 0 < q <= 1, or type:k with k >= 1")

    @field_validator("factor")
    @classmethod
    def _check_factor(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 2:
            raise ValueError("expected a range (low, high) with 0 < low <= high <= 2")
        return value


class Arachne(Approach):
    """Localise a handful of weights that matter for the failures, and search new values for them.

    A weight counts if it is on the Pareto front of gradient and forward impact on failing inputs,
    each relative to the impact on passing inputs. Differential evolution replaces the values of
    these weights; the fitness counts inputs that are right, gives partial credit for a small loss,
    and weighs the failures `alpha` times.
    """

    info = ApproachInfo(
        name="arachne",
        abbreviation="AR",
        title="Arachne",
        category=Category.NEURON,
        framework=Framework.TENSORFLOW,
        paper="Jeongju Sohn, Sungmin Kang, Shin Yoo: Arachne: Search-based repair of deep neural "
        "networks. ACM Transactions on Software Engineering and Methodology 32(4), 2023, article "
        "85. doi:10.1145/3563210",
        summary="Pareto front of gradient and forward impact, then differential evolution of the "
        "few weights on it.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = ArachneConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"target": "type:1", "stop_when_perfect": False},
        "study": {"target": "sample:0.1", "stop_when_perfect": False},
    }

    def check(self, task: Task) -> None:
        """Refuse models without an editable layer and models whose outputs are probabilities."""
        if _gives_probabilities(task.model):
            raise Unadaptable(
                "its outputs are probabilities, from which neither loss nor gradient of the "
                "logits can be had; export the model with logits as output"
            )
        if not self.layers(task.model):
            raise Unadaptable(
                "the model has no dense layer to repair"
                if self.config.layers == "last_dense"
                else "the model has no dense layer and no 2-D convolution without groups to repair"
            )

    def layers(self, model: Model) -> list[Layer]:
        """Return the layers whose weights may be edited.

        Raises
        ------
        Unadaptable
            If a layer was named whose weights this approach cannot edit.
        ModelfixError
            If a named layer does not exist.
        """
        editable = [layer for layer in model.layers() if _is_editable(layer, model)]
        if self.config.layers == "all":
            return editable
        if self.config.layers == "last_dense":
            return [layer for layer in editable if layer.kind == "dense"][-1:]
        for name in self.config.layers:
            if model.layer(name) not in editable:
                raise Unadaptable(
                    f"layer {name!r} is neither a dense layer nor a 2-D convolution without groups"
                )
        return [layer for layer in editable if layer.name in self.config.layers]

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        """Yield the front, then a candidate whenever a generation ends with a better individual."""
        from modelfix_arachne import inputs

        with task.timing("conversion"):
            from modelfix_core.keras import load, predict

            from modelfix_arachne.localisation import localise
            from modelfix_arachne.repair import repair

            net = load(task.model)
        task.progress(0, self.config.generations, "predicting the repair split")
        logits, y = predict(net, task.repair), task.repair.y
        predicted = logits.argmax(axis=1)
        rng = generator(task.seed, stage="target")
        failing = inputs.failing(predicted, y, self.config.target, rng)
        passing = inputs.passing(predicted, y)
        rng = generator(task.seed, stage="passing")
        contrast = inputs.balanced(passing, y, len(failing), rng)
        task.progress(0, self.config.generations, f"localising {len(failing)} failures")
        front = localise(
            net,
            self.layers(task.model),
            task.repair.select(failing),
            task.repair.select(contrast),
            self.config.conv_fi,
        )
        yield front
        yield from repair(net, task, self.config, front, failing, inputs.by_margin(passing, logits))


def _is_editable(layer: Layer, model: Model) -> bool:
    if layer.kind == "dense":
        return True
    shape = model.weights[layer.weight].shape
    return layer.kind == "conv" and len(shape) == 4 and shape[1] == layer.input_shape[0]


def _gives_probabilities(model: Model) -> bool:
    makers = {output: node for node in model.proto().graph.node for output in node.output}
    node = makers.get(model.output_name)
    while node is not None and node.op_type in PASSING:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in PROBABILITIES
