"""The Apricot approach: what it is, its options, and how it runs on a task."""

import logging
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
    Need,
    Task,
)
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Model
from pydantic import Field

logger = logging.getLogger(__name__)

FEW = 50  # training images of a class in a submodel's subset


class ApricotConfig(ApproachConfig):
    """Options of Apricot.

    Sources: "code" is the re-implementation made for Arachne's comparison, from which the others
    descend; "study" is the comparative study; "ours" is neither.
    """

    submodels: int = Field(20, ge=1, description="Submodels K (code, study).")
    subset_fraction: float = Field(
        0.2, gt=0, le=1, description="Share of each class in a submodel's training images (code)."
    )
    subset_mode: Literal["overlap", "partition"] = Field(
        "overlap",
        description="Subsets drawn independently (code), or K disjoint parts of all training "
        "images, whatever the fraction (a reading of the study).",
    )
    submodel_start: Literal["scratch", "model"] = Field(
        "scratch", description="Submodels start from fresh weights (code) or the model's (ours)."
    )
    submodel_epochs: int = Field(60, ge=1, le=10_000, description="Epochs of a submodel (code).")
    submodel_learning_rate: float = Field(
        2e-4, gt=0, le=10, description="Adam's, of the submodels (code)."
    )
    submodel_batch_size: int = Field(128, ge=1, description="Images of their steps (code).")
    stacked: int = Field(
        20, ge=1, description="Submodels trained at once on a GPU; fewer take less memory (ours)."
    )
    eta: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="Adaptation rate (code); 0 is the control arm, plain retraining without "
        "submodels.",
    )
    strategy: Literal["both", "correct", "incorrect"] = Field(
        "both", description="Which submodels move the weights: those right, wrong, or both (code)."
    )
    sigma: Literal[-1, 1] = Field(
        -1,
        description="-1 moves towards the right submodels (the paper's abstract), +1 away from "
        "them (the formula as the re-implementations print it).",
    )
    granularity: Literal["batch", "pass"] = Field(
        "batch",
        description="A round adapts to a batch of training images (code) or to all of them (the "
        "paper's abstract).",
    )
    adaptation_batch_size: int = Field(20, ge=1, description="Images of such a batch (code).")
    rounds: int | None = Field(
        None, ge=1, description="Rounds at most; by default one pass over the images (code)."
    )
    retraining_epochs: int = Field(5, ge=1, description="Epochs of retraining in a round (code).")
    learning_rate: float = Field(2e-4, gt=0, le=10, description="Adam's, of retraining (code).")
    batch_size: int = Field(20, ge=1, description="Images of a step of retraining (code).")
    patience: int | None = Field(
        100, ge=0, description="Rounds without a better validation accuracy before a stop (code)."
    )
    select_post_training: bool = Field(
        True,
        description="The retrained model can be the best one (the paper's abstract); the code "
        "looks at adapted models only.",
    )
    recalibrate_bn: bool = Field(
        False,
        description="Estimate the statistics of BatchNorm again after an adaptation (ours).",
    )

    def rounds_for(self, images: int) -> int:
        """Return the number of rounds on so many training images."""
        return self.rounds or -(-images // self.round_size(images))

    def round_size(self, images: int) -> int:
        """Return the number of training images that a round adapts to."""
        return images if self.granularity == "pass" else min(self.adaptation_batch_size, images)


class Apricot(Approach):
    """Move the weights towards submodels that are right, and retrain, in turns.

    Submodels of the same architecture are trained on subsets of the training images. For each
    training image that the model mispredicts, its weights move towards the mean of the submodels
    that get it right and away from the mean of those that do not. Between such adaptations the
    model is retrained on all training images; the best on validation is kept.
    """

    info = ApproachInfo(
        name="apricot",
        abbreviation="AP",
        title="Apricot",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Hao Zhang, W. K. Chan: Apricot: A Weight-Adaptation Approach to Fixing Deep "
        "Learning Models. IEEE/ACM International Conference on Automated Software Engineering "
        "(ASE) 2019, pages 376-387",
        summary="Weights move towards submodels that are right, between epochs of retraining.",
        needs=frozenset({Need.TRAIN, Need.VALIDATION, Need.GRADIENTS}),
        certainty="code",
    )
    Config = ApricotConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "submodel_epochs": 10,
            "granularity": "pass",
            "rounds": 10,
            "retraining_epochs": 1,
            "learning_rate": 1e-4,
            "batch_size": 128,
            "patience": 3,
        },
        "paper": {},
        "study": {
            "adaptation_batch_size": 100,
            "retraining_epochs": 20,
            "learning_rate": 1e-4,
            "batch_size": 128,
            "patience": None,
        },
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without training images, without a layer, or too small for submodels."""
        if task.train is None or not len(task.train):
            raise Unadaptable("the task has no training images to adapt to and to retrain on")
        if not task.model.layers():
            raise Unadaptable("the model has no layer that could be trained")
        if self.config.eta > 0:
            self._check_subsets(task.train.y)
            self._check_memory(task)

    def _check_subsets(self, y: np.ndarray) -> None:
        config = self.config
        partition = config.subset_mode == "partition"
        fraction = 1 / config.submodels if partition else config.subset_fraction
        labels, counts = np.unique(y, return_counts=True)
        label, smallest = labels[counts.argmin()], int(fraction * counts.min())
        if smallest < 2:
            raise Unadaptable(
                f"a submodel would see {smallest} training images of class {label}; at least 2 are "
                "needed (more images, a larger subset_fraction or fewer submodels)"
            )
        if smallest < FEW:
            logger.warning(
                "submodels see %d training images of class %d; below %d they are poor advisers",
                smallest,
                label,
                FEW,
            )

    def _check_memory(self, task: Task) -> None:
        needed = 4 * self.config.submodels * parameters(task.model)
        limit = task.budget.memory
        if limit is not None and needed > limit:
            raise Unadaptable(
                f"the weights of {self.config.submodels} submodels take {needed:,} bytes; the "
                f"memory limit is {limit:,}"
            )

    def candidates(self, task: Task) -> Iterator[Candidate | Evidence]:
        """Yield the original model, how the submodels voted, and after each round the best so far.

        The values of a round: ``loss`` and ``train_accuracy`` of its last epoch of retraining,
        ``retrained_accuracy`` and ``adapted_accuracy`` on validation, the training images that were
        ``failing`` and those of them that ``moved`` the weights, the ``scale`` of the old weights
        in the adapted ones, whether the adapted weights were ``kept``, and the ``steps`` of
        retraining so far.
        """
        task.progress(0, 1, "starting")
        with task.timing("conversion"):
            from modelfix_core.torch import load

            from modelfix_apricot.repair import repair

            net = load(task.model, task.device)
        yield from repair(net, task, self.config)


def parameters(model: Model) -> int:
    """Return the number of trainable parameters P of a model's layers."""
    names = {name for layer in model.layers() for name in layer.parameters}
    return sum(model.weights[name].size for name in names)
