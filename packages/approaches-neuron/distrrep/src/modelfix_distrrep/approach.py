"""The DISTRREP approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
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
from modelfix_core.errors import Failure, ModelfixError, Unadaptable
from modelfix_core.model import Layer, Model
from pydantic import Field

from modelfix_distrrep.risks import RiskSetting, RiskTable, from_classes, from_table

Selection = Literal["score", "accuracy", "swarm"]


class DistrRepConfig(ApproachConfig):
    """Options of DISTRREP; "code" is the reference implementation (eAI-Repair-Toolkit)."""

    setting: RiskTable | None = Field(
        None,
        description="Misclassifications and their weights, with the names of the authors' manual; "
        "by default made of the data's class risks: every such class as any other and as its most "
        "frequent error (ours; the study publishes none).",
    )
    without_risks: Literal["refuse", "uniform"] = Field(
        "refuse",
        description="What to do where neither the data nor `setting` say which mistakes matter: "
        "refuse (study: UNADAPTABLE), or count all classes alike (ours).",
    )
    classes: int | None = Field(
        None,
        ge=1,
        description="Of the class risks, at most so many classes: those of largest risk, then "
        "those with most errors (ours, for the study 4: with 4 errors each of its own kind they "
        "make the 8 misclassifications that the code is written for).",
    )
    candidates: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Weights with the largest gradient that the localisation looks at, per failing "
        "input (code).",
    )
    n_pos: int = Field(
        200, ge=1, description="So many passing inputs in each patch's fitness, drawn once (code)."
    )
    particles: int = Field(
        100, ge=2, le=100_000, description="Size of the swarms of patches and merge (code)."
    )
    iterations: int = Field(
        100, ge=1, le=1_000_000, description="At most so many in each search (code)."
    )
    phi: float = Field(
        4.1, gt=4, le=100, description="Largest random factor of the two attractions (code)."
    )
    patience: int = Field(
        10,
        ge=1,
        description="Stop when, after more than this many iterations, the best of the last so "
        "many is not above the one before them (code).",
    )
    blend: Literal["linear", "minmax"] = Field(
        "linear",
        description="What a coefficient means: from the original model to the patch, or from the "
        "smaller to the larger of both values of each weight (code).",
    )
    selection: Selection = Field(
        "score",
        description="Which place of the merge becomes the fixed model: that of the best score on "
        "the validation split (ours), of the best validation accuracy (study), or the swarm's best "
        "on the repair split (code).",
    )


class DistrRep(Approach):
    """Repair each dangerous misclassification on its own, and merge the repairs by risk.

    For every misclassification that counts, the first Arachne localises weights of the last dense
    layer and searches new values, from the original model each time. A second particle swarm
    searches how much of each patch goes into one model; its score weighs the accuracy of important
    classes and the rates of dangerous misclassifications.
    """

    info = ApproachInfo(
        name="distrrep",
        abbreviation="DTR",
        title="DISTRREP",
        category=Category.NEURON,
        framework=Framework.TENSORFLOW,
        paper="Davide Li Calsi, Matias Duran, Xiao-Yi Zhang, Paolo Arcaini, Fuyuki Ishikawa: "
        "Distributed repair of deep neural networks. ICST 2023, 83-94",
        summary="A patch of the classifier for each dangerous misclassification, then a particle "
        "swarm that merges the patches by risk.",
        needs=frozenset({Need.REPAIR, Need.VALIDATION, Need.RISKS, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = DistrRepConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {"selection": "swarm"},
        "study": {"classes": 4, "selection": "accuracy"},
    }

    def check(self, task: Task) -> None:
        """Refuse models whose logits no dense layer makes, and tasks that do not say what matters.

        Raises
        ------
        Unadaptable
        ModelfixError
            If the data's class risks are all zero or one is below zero.
        """
        classifier(task.model)
        if self.config.setting is not None:
            from_table(self.config.setting, class_names(task.model))
            return
        risks = self._risks(task)
        if min(risks.values()) < 0 or max(risks.values()) == 0:
            raise ModelfixError(
                f"{self.info.name}: the class risks must be 0 or more, and one of them above 0."
            )

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield the blamed weights, then the merged models, then what became of each patch."""
        config = self.config
        task.progress(0, config.iterations, "loading the model")
        with task.timing("conversion"):
            from modelfix_core.keras import load, predict

            from modelfix_distrrep.merge import merge
            from modelfix_distrrep.patches import blame, localisation, repair

            net = load(task.model)
        logits = predict(net, task.repair)
        predicted = logits.argmax(axis=1)
        setting = self._setting(task, predicted)
        found = blame(net, task, logits, setting.misclassifications, config.candidates)
        if not found:
            raise Failure(
                "none of the misclassifications that count occurs in the repair split; there is "
                "nothing to repair"
            )
        yield localisation(net.model, found)
        searches = len(found)
        total = (searches + 1) * config.iterations
        repairs = repair(
            net, task, config, found, predicted, lambda done, note: task.progress(done, total, note)
        )
        start = searches * config.iterations
        yield from merge(
            net,
            task,
            config,
            setting,
            repairs,
            lambda done, note: task.progress(start + done, total, note),
        )

    def _risks(self, task: Task) -> Mapping[int, float]:
        if task.risks:
            return task.risks
        if self.config.without_risks == "uniform":
            return dict.fromkeys(range(task.model.num_classes), 1.0)
        raise Unadaptable(
            "it repairs by the importance of classes, and the data say nothing of it; give class "
            "risks with the data, or the option 'setting', or without_risks=uniform to count all "
            "classes alike"
        )

    def _setting(self, task: Task, predicted: np.ndarray) -> RiskSetting:
        if self.config.setting is not None:
            return from_table(self.config.setting, class_names(task.model))
        return from_classes(self._risks(task), predicted, task.repair.y, self.config.classes)


def classifier(model: Model) -> Layer:
    """Return the dense layer that makes the logits.

    Raises
    ------
    Unadaptable
        If none does.
    """
    for layer in model.layers("dense"):
        if layer.output == model.output_name:
            return layer
    raise Unadaptable("its logits are not the output of a dense layer, whose weights it repairs")


def class_names(model: Model) -> list[str]:
    """Return the names of the classes by label; numbers where the model has none."""
    return model.labels or [str(label) for label in range(model.num_classes)]
